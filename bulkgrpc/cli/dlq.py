"""The commands `dlq list`, `show`, `redrive` and `discard`: the dead-letter queue."""

from __future__ import annotations

import base64
from typing import Annotated

import typer
from rich.table import Table

from bulkgrpc.cli import console
from bulkgrpc.consume.ports import NewerFormat
from bulkgrpc.kafka.connection import KafkaUnavailable
from bulkgrpc.kafka.dead_letters import DeadLetter, DeadLetters
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
    for name in ("from", "sha256", "reason"):
        table.add_column(name, overflow="fold")
    for letter in letters:
        size = f"{len(letter.payload):,}"
        table.add_row(str(letter.offset), size, _source(letter), letter.digest[:12], letter.reason)
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
def redrive(offset: Offset, as_json: AsJson = False) -> None:
    """Send a dead letter to its source partition again, where a worker reads it.

    The message is sent unchanged. Fix the cause before you redrive it: `bulkgrpc dlq show` prints the reason. If the
    cause remains, the message becomes a dead letter again. A message of a newer format is not sent.

    For example:

        bulkgrpc dlq redrive 0

    With --json, the command prints one JSON object.
    """
    with console.failures():
        letters, letter = _find(offset)
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
        "payload_bytes": len(letter.payload),
        "sha256": letter.digest,
    }


def _report(letter: DeadLetter, how: str, as_json: bool) -> None:
    if as_json:
        console.print_json({"offset": letter.offset, "settled": how})
    else:
        typer.echo(f"Dead letter {letter.offset} from {_source(letter)} is {how}.")
