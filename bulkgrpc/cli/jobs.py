"""The commands `jobs get`, `list`, `watch`, `cancel`, `discard`, `delete`. `rejections`, `revert` have own modules."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from contextlib import aclosing
from typing import Annotated

import typer
from rich.live import Live

from bulkgrpc.cli import console
from bulkgrpc.cli.connection_options import (
    SERVER,
    ConnectionOptions,
    JsonOption,
    ServerOption,
    TenantOption,
    TlsCaOption,
    TokenOption,
)
from bulkgrpc.cli.rejections import rejections
from bulkgrpc.cli.revert import revert
from bulkgrpc.client import Job, JobState, NotEnded


def _state(text: str | JobState) -> JobState:
    """Parse a state's name. Raises BadParameter, which lists the names."""
    if isinstance(text, JobState):
        return text
    try:
        return JobState[text.upper()]
    except KeyError:
        names = ", ".join(state.name for state in JobState)
        raise typer.BadParameter(f"{text!r} is not a state; the states are {names}") from None


app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode="markdown",
    help="Show, follow, cancel, discard, revert and delete jobs, and list their rejected records.\n\n"
    "For example:\n\n    bulkgrpc jobs list --state partially_succeeded\n\nEvery command has its own `--help`.",
)
JobArgument = Annotated[
    str, typer.Argument(metavar="JOB", help="The job: `tenants/…/jobs/…`, or only the ID.", show_default=False)
]


@app.command("get")
def get(
    job: JobArgument,
    *,
    server: ServerOption = SERVER,
    tenant: TenantOption = "",
    token: TokenOption = "",
    tls_ca: TlsCaOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show one job: its state, counts, options and times; if it is blocked, since when and why.

    For example:

        bulkgrpc jobs get tenants/default/jobs/0b6ec6dc-…

    With --json, the command prints one JSON object.
    """
    with console.failures():
        options = ConnectionOptions(server, tenant, token, tls_ca)
        with options.client() as client:
            found = client.get_job(options.job_name(job))
    _print(found, as_json=as_json)


@app.command("list")
def list_jobs(
    *,
    limit: Annotated[int, typer.Option(min=1, help="Maximum number of jobs.")] = 50,
    state: Annotated[
        JobState | None,
        typer.Option(parser=_state, metavar="STATE", help="List only jobs in this state. Default: all."),
    ] = None,
    server: ServerOption = SERVER,
    tenant: TenantOption = "",
    token: TokenOption = "",
    tls_ca: TlsCaOption = None,
    as_json: JsonOption = False,
) -> None:
    """List the tenant's jobs, newest first.

    For example:

        bulkgrpc jobs list --limit 10 --state failed

    With --json, the command prints one JSON object per line.
    """
    with console.failures(), ConnectionOptions(server, tenant, token, tls_ca).client() as client:
        found = (job for job in client.list_jobs() if state in (None, job.state))
        jobs = list(itertools.islice(found, limit))
    if not as_json:
        console.print_jobs(jobs)
        return
    for job in jobs:
        console.print_json(console.job_document(job))


@app.command("watch")
def watch(
    job: JobArgument,
    *,
    deadline: Annotated[float, typer.Option(min=1, help="Seconds to wait for the job's end.")] = 300.0,
    server: ServerOption = SERVER,
    tenant: TenantOption = "",
    token: TokenOption = "",
    tls_ca: TlsCaOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show a job and each of its changes until it has ended.

    For example:

        bulkgrpc jobs watch tenants/default/jobs/0b6ec6dc-…

    With --json, the command prints one JSON object per line, one for each change.

    Exit codes: 0 all records written; 1 the job did not end in time; 3 some records were rejected or expired; 4 the job
    failed; 5 the job was cancelled or expired.
    """
    last: Job | None = None

    def show(now: Job) -> None:
        nonlocal last
        if as_json and now != last:
            console.print_json(console.job_document(now))
        live.update(console.job_table(now))
        last = now

    with console.failures():
        options = ConnectionOptions(server, tenant, token, tls_ca)
        with _live(shown=not as_json) as live:
            ended = asyncio.run(_watched(options, options.job_name(job), deadline, show))
    if not as_json:
        _print(ended, as_json=False)
    console.exit_by_state(ended.state)


@app.command("cancel")
def cancel(
    job: JobArgument,
    *,
    server: ServerOption = SERVER,
    tenant: TenantOption = "",
    token: TokenOption = "",
    tls_ca: TlsCaOption = None,
    as_json: JsonOption = False,
) -> None:
    """Cancel a job that has not ended. Records that are not written yet are discarded; written rows stay.

    For example:

        bulkgrpc jobs cancel tenants/default/jobs/0b6ec6dc-…

    With --json, the command prints the cancelled job as one JSON object.
    """
    with console.failures():
        options = ConnectionOptions(server, tenant, token, tls_ca)
        with options.client() as client:
            cancelled = client.job(options.job_name(job)).cancel()
    _print(cancelled, as_json=as_json)


@app.command("discard")
def discard(
    job: JobArgument,
    *,
    reason: Annotated[str, typer.Option(help="Why, for those who look at the job.")] = "",
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask for confirmation.")] = False,
    server: ServerOption = SERVER,
    tenant: TenantOption = "",
    token: TokenOption = "",
    tls_ca: TlsCaOption = None,
    as_json: JsonOption = False,
) -> None:
    """Give up a sealed job that a message of its own blocks. Records that are not written are rejected.

    Written rows stay. The job ends as FAILED within seconds; its rejection report has the records. To give up an open
    job, cancel it.

    For example:

        bulkgrpc jobs discard tenants/default/jobs/0b6ec6dc-… --reason "version 3 is lost"

    With --json, the command prints the job as one JSON object.
    """
    with console.failures():
        options = ConnectionOptions(server, tenant, token, tls_ca)
        with options.client() as client:
            handle = client.job(options.job_name(job))
            if not yes:
                found = handle.get()
                console.stderr_console().print(console.job_table(found))
                typer.confirm(f"Reject what is not applied of {found.name}?", abort=True, err=True)
            discarded = handle.discard(reason=reason)
    _print(discarded, as_json=as_json)


@app.command("delete")
def delete(
    job: JobArgument,
    *,
    server: ServerOption = SERVER,
    tenant: TenantOption = "",
    token: TokenOption = "",
    tls_ca: TlsCaOption = None,
    as_json: JsonOption = False,
) -> None:
    """Delete a job that has ended, with its rejections and its idempotency key. Written rows stay in the table.

    For example:

        bulkgrpc jobs delete tenants/default/jobs/0b6ec6dc-…

    With --json, the command prints one JSON object.
    """
    with console.failures():
        options = ConnectionOptions(server, tenant, token, tls_ca)
        name = options.job_name(job)
        with options.client() as client:
            client.job(name).delete()
    if as_json:
        console.print_json({"deleted": name})
    else:
        typer.echo(f"Deleted {name}.")


app.command("rejections")(rejections)
app.command("revert")(revert)


async def _watched(options: ConnectionOptions, name: str, deadline_s: float, on_change: Callable[[Job], None]) -> Job:
    """Return the job once it has ended. Raises NotEnded, BulkError."""
    now: Job | None = None
    async with options.async_client() as client:
        try:
            async with asyncio.timeout(deadline_s), aclosing(client.job(name).watch()) as changes:
                async for now in changes:
                    on_change(now)
        except TimeoutError:
            state, block = ("OPEN", None) if now is None else (now.state.name, now.block)
            raise NotEnded(name, state, deadline_s, block) from None
        return now or await client.get_job(name)


def _live(*, shown: bool) -> Live:
    screen = console.stderr_console()
    screen.quiet = not shown
    return Live(console=screen, transient=True, refresh_per_second=8)


def _print(job: Job, *, as_json: bool) -> None:
    if as_json:
        console.print_json(console.job_document(job))
    else:
        console.print_table(console.job_table(job))
