"""The commands `dlq list`, `show`, `redrive` and `discard`: the dead-letter queue."""

from __future__ import annotations

import base64
from typing import Annotated

import typer
from rich.table import Table

from bulkgrpc.cli import console
from bulkgrpc.cli.redrive import redrive_job
from bulkgrpc.consume.ports import NewerFormat
from bulkgrpc.kafka.connection import KafkaUnavailable
from bulkgrpc.kafka.dead_letters import DeadLetter, DeadLetters
from bulkgrpc.model import JobKey
from bulkgrpc.settings import StackSettings
from bulkgrpc.settings import load as load_settings

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode="markdown",
    help="Inspect the dead-letter queue: messages that no worker can attribute to a job.\n\n"
    "For example:\n\n    bulkgrpc dlq list && bulkgrpc dlq redrive 0\n\n"
    "The environment variable BULKGRPC_KAFKA has the address of Kafka. Every command has its own `--help`.",
)

Offset = Annotated[int, typer.Argument(help="Offset of the dead letter; `dlq list` shows it.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")]


@app.command("list")
def list_letters(as_json: AsJson = False) -> None:
    """List the dead letters that are neither redriven nor discarded, oldest first.

    For example:

        bulkgrpc dlq list

    With --json, the command prints one JSON object per line.
    """
    with console.failures():
        _, letters = _read()
    if as_json:
        for letter in letters:
            console.print_json(_document(letter))
        return
    table = Table(show_edge=False, pad_edge=False)
    for name in ("offset", "bytes"):
        table.add_column(name, justify="right", no_wrap=True)
    for name in ("from", "job", "sha256", "reason"):
        table.add_column(name, overflow="fold")
    for letter in letters:
        size = f"{len(letter.payload):,}"
        job = "" if letter.message is None else letter.message.spec.key.name
        table.add_row(str(letter.offset), size, _source(letter), job, letter.digest[:12], letter.reason)
    console.print_table(table)


@app.command()
def show(offset: Offset, as_json: AsJson = False) -> None:
    """Show one dead letter: its reason, its source, its headers and its payload.

    For example:

        bulkgrpc dlq show 0

    With --json, the command prints one JSON object.
    """
    with console.failures():
        _, letter = _find(offset)
    document = {
        **_document(letter),
        "key": letter.key.decode(errors="replace"),
        "headers": {name: value.decode(errors="replace") for name, value in letter.headers},
        "payload_base64": base64.b64encode(letter.payload).decode(),
    }
    if as_json:
        console.print_json(document)
        return
    table = Table(show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in document.items():
        table.add_row(name, str(value))
    console.print_table(table)


@app.command()
def redrive(
    offset: Annotated[int | None, typer.Argument(help="Offset of the dead letter; `dlq list` shows it.")] = None,
    *,
    job: Annotated[str, typer.Option(help="Restore this job, `tenants/TENANT/jobs/JOB`.")] = "",
    as_json: AsJson = False,
) -> None:
    """Send a dead letter to its source partition again, where a worker reads it; with its whole job, if it has one.

    A message of no job is sent unchanged. Fix the cause before you redrive it: `bulkgrpc dlq show` prints the reason.
    If the cause remains, the message becomes a dead letter again. A message of a newer format is not sent.

    Earlier releases stored batches of jobs as dead letters, too. Such a job is restored as a whole, in order: all its
    dead letters, what was passed over behind them, and its seal. What is applied is recognized. `--job` does so also if
    its dead letters were redriven before. If its dataset is still broken, the job is blocked, and waits.

    BULKGRPC_KAFKA and BULKGRPC_POSTGRES are the addresses of the stores. For example:

        bulkgrpc dlq redrive 0

    With --json, the command prints one JSON object. Exit codes: 0 done; 1 failed, or some of the job was not found.
    """
    with console.failures():
        if (offset is None) == (not job):
            raise console.CommandFailed("name a dead letter by its offset, or a job with `--job`")
        if offset is None:
            _redrive_job(DeadLetters(load_settings(StackSettings)), _job_key(job), as_json)
            return
        letters, letter = _find(offset)
        if letter.message is not None:
            _redrive_job(letters, letter.message.spec.key, as_json)
            return
        try:
            letters.redrive(letter)
        except NewerFormat as error:
            raise console.CommandFailed(
                f"dead letter {offset} has {error}. Its partition would wait at it for newer workers: upgrade them, "
                "then redrive it with the newer bulkgrpc"
            ) from error
    _report(letter, "redriven", as_json)


@app.command()
def discard(offset: Offset, as_json: AsJson = False) -> None:
    """Remove a dead letter from the list without sending it. The message stays on the dead-letter topic.

    For example:

        bulkgrpc dlq discard 0

    With --json, the command prints one JSON object.
    """
    with console.failures():
        letters, letter = _find(offset)
        letters.discard(letter)
    _report(letter, "discarded", as_json)


def _job_key(name: str) -> JobKey:
    key = JobKey.parse(name)
    if key is None:
        raise console.CommandFailed(f"{name!r} is not of the form tenants/TENANT/jobs/JOB")
    return key


def _redrive_job(letters: DeadLetters, job: JobKey, as_json: bool) -> None:
    try:
        done = redrive_job(load_settings(StackSettings), letters, job)
    except KafkaUnavailable as error:
        raise console.CommandFailed(str(error)) from error
    if as_json:
        missing = [{"lane": lane, "from_sequence": sequence} for lane, sequence in sorted(done.missing.items())]
        document = {
            "job": job.name,
            "messages": done.messages,
            "settled": list(done.settled),
            "complete": done.complete,
        }
        console.print_json({**document, "missing": missing})
    else:
        typer.echo(
            f"{done.messages:,} messages of {job.name} are sent again; {len(done.settled):,} dead letters are settled."
        )
    if not done.complete:
        sequence = min(done.missing.values())
        raise console.CommandFailed(
            f"{job.name} lacks what follows from batch {sequence} on: neither Kafka nor a dead letter has it. The job "
            "ends as FAILED after BULKGRPC_ABANDONED_AFTER_S, or cancel it now; submit its records under another key"
        )


def _read() -> tuple[DeadLetters, list[DeadLetter]]:
    try:
        letters = DeadLetters(load_settings(StackSettings))
        return letters, list(letters.unsettled())
    except KafkaUnavailable as error:
        raise console.CommandFailed(str(error)) from error


def _find(offset: int) -> tuple[DeadLetters, DeadLetter]:
    letters, unsettled = _read()
    for letter in unsettled:
        if letter.offset == offset:
            return letters, letter
    raise console.CommandFailed(f"there is no dead letter at offset {offset}: `bulkgrpc dlq list` lists them")


def _source(letter: DeadLetter) -> str:
    return f"{letter.source_topic}/{letter.source_partition}@{letter.source_offset}"


def _document(letter: DeadLetter) -> dict[str, object]:
    return {
        "offset": letter.offset,
        "reason": letter.reason,
        "source_topic": letter.source_topic,
        "source_partition": letter.source_partition,
        "source_offset": letter.source_offset,
        "job": "" if letter.message is None else letter.message.spec.key.name,
        "payload_bytes": len(letter.payload),
        "sha256": letter.digest,
    }


def _report(letter: DeadLetter, how: str, as_json: bool) -> None:
    if as_json:
        console.print_json({"offset": letter.offset, "settled": how})
    else:
        typer.echo(f"Dead letter {letter.offset} from {_source(letter)} is {how}.")
