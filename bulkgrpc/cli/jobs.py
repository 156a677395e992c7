"""The commands `jobs get`, `jobs list`, `jobs watch`."""

from __future__ import annotations

import itertools
from typing import Annotated

import typer
from rich.live import Live

from bulkgrpc.cli import console
from bulkgrpc.cli.connecting import SERVER, Caller, JsonOption, ServerOption, TenantOption, TlsCaOption, TokenOption
from bulkgrpc.client import Job

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
    limit: Annotated[int, typer.Option(min=1, help="Most jobs to show.")] = 50,
    server: ServerOption = SERVER,
    tenant: TenantOption = "",
    token: TokenOption = "",
    tls_ca: TlsCaOption = None,
    as_json: JsonOption = False,
) -> None:
    """List the tenant's jobs, newest first. With --json, one object a line.

    bulkgrpc jobs list --limit 10
    """
    with console.failures(), Caller(server, tenant, token, tls_ca).client() as client:
        jobs = list(itertools.islice(client.list_jobs(), limit))
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

    Exit codes: 0 all written, 3 some records rejected, 4 all rejected, 1 it did not end in time.
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
        with caller.client() as client, _live(shown=not as_json) as live:
            ended = client.job(caller.job_name(job)).wait(deadline_s=deadline, on_progress=tell)
    if not as_json:
        _print(ended, as_json=False)
    console.exit_by_state(ended.state)


def _live(*, shown: bool) -> Live:
    screen = console.human()
    screen.quiet = not shown
    return Live(console=screen, transient=True, refresh_per_second=8)


def _print(job: Job, *, as_json: bool) -> None:
    if as_json:
        console.print_json(console.job_document(job))
    else:
        console.print_table(console.job_table(job))
