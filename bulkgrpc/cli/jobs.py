"""The commands `jobs get`, `list`, `watch`, `cancel`, `delete`, and `rejections`, which has its own module."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from contextlib import aclosing
from typing import Annotated

import typer
from rich.live import Live

from bulkgrpc.cli import console
from bulkgrpc.cli.connecting import SERVER, Caller, JsonOption, ServerOption, TenantOption, TlsCaOption, TokenOption
from bulkgrpc.cli.rejections import rejections
from bulkgrpc.client import Job, JobState, NotEnded


def _state(text: str | JobState) -> JobState:
    """Read a state's name. Raises BadParameter naming all."""
    if isinstance(text, JobState):
        return text
    try:
        return JobState[text.upper()]
    except KeyError:
        names = ", ".join(state.name for state in JobState)
        raise typer.BadParameter(f"{text!r} is no state; the states are {names}") from None


app = typer.Typer(
    add_completion=False, no_args_is_help=True, rich_markup_mode="markdown", help="See what became of jobs."
)
JobArgument = Annotated[
    str, typer.Argument(metavar="JOB", help="`tenants/…/jobs/…`, or the id alone.", show_default=False)
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
    """Show one job.

    bulkgrpc jobs get tenants/default/jobs/0b6ec6dc-…
    """
    with console.failures():
        caller = Caller(server, tenant, token, tls_ca)
        with caller.client() as client:
            found = client.get_job(caller.job_name(job))
    _print(found, as_json=as_json)


@app.command("list")
def list_jobs(
    *,
    limit: Annotated[int, typer.Option(min=1, help="Most jobs to show.")] = 50,
    state: Annotated[
        JobState | None, typer.Option(parser=_state, metavar="STATE", help="Only jobs in this state.")
    ] = None,
    server: ServerOption = SERVER,
    tenant: TenantOption = "",
    token: TokenOption = "",
    tls_ca: TlsCaOption = None,
    as_json: JsonOption = False,
) -> None:
    """List the tenant's jobs, newest first. With --json, one object a line.

    bulkgrpc jobs list --limit 10 --state failed
    """
    with console.failures(), Caller(server, tenant, token, tls_ca).client() as client:
        found = (job for job in client.list_jobs() if state in (None, job.state))
        jobs = list(itertools.islice(found, limit))
    if not as_json:
        console.print_table(console.jobs_table(jobs))
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
    """Follow a job until it has ended. With --json, one object a line for each change.

        bulkgrpc jobs watch tenants/default/jobs/0b6ec6dc-…

    Exit codes: 0 all written, 3 some records rejected or expired, 4 the job failed, 5 it was cancelled or expired, 1 it
    did not end in time.
    """
    last: Job | None = None

    def tell(now: Job) -> None:
        nonlocal last
        if as_json and now != last:
            console.print_json(console.job_document(now))
        live.update(console.job_table(now))
        last = now

    with console.failures():
        caller = Caller(server, tenant, token, tls_ca)
        with _live(shown=not as_json) as live:
            ended = asyncio.run(_watched(caller, caller.job_name(job), deadline, tell))
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
    """End a job that has not ended: what is not written yet never will be.

    bulkgrpc jobs cancel tenants/default/jobs/0b6ec6dc-…
    """
    with console.failures():
        caller = Caller(server, tenant, token, tls_ca)
        with caller.client() as client:
            cancelled = client.job(caller.job_name(job)).cancel()
    _print(cancelled, as_json=as_json)


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
    """Delete an ended job, its rejections and its idempotency key. What it wrote stays in the table.

    bulkgrpc jobs delete tenants/default/jobs/0b6ec6dc-…
    """
    with console.failures():
        caller = Caller(server, tenant, token, tls_ca)
        name = caller.job_name(job)
        with caller.client() as client:
            client.job(name).delete()
    if as_json:
        console.print_json({"deleted": name})
    else:
        typer.echo(f"Deleted {name}.")


app.command("rejections")(rejections)


async def _watched(caller: Caller, name: str, deadline_s: float, tell: Callable[[Job], None]) -> Job:
    """Follow a job to its end. Raises NotEnded, BulkError."""
    now: Job | None = None
    async with caller.async_client() as client:
        try:
            async with asyncio.timeout(deadline_s), aclosing(client.job(name).watch()) as changes:
                async for now in changes:
                    tell(now)
        except TimeoutError:
            raise NotEnded(name, "OPEN" if now is None else now.state.name, deadline_s) from None
        return now or await client.get_job(name)


def _live(*, shown: bool) -> Live:
    screen = console.human()
    screen.quiet = not shown
    return Live(console=screen, transient=True, refresh_per_second=8)


def _print(job: Job, *, as_json: bool) -> None:
    if as_json:
        console.print_json(console.job_document(job))
    else:
        console.print_table(console.job_table(job))
