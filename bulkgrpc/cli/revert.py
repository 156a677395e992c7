"""The command `jobs revert`: removes the rows that a job wrote."""

from __future__ import annotations

import sys
from typing import Annotated

import typer
from rich.table import Table

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
from bulkgrpc.client import Reverted


def revert(
    job: Annotated[
        str, typer.Argument(metavar="JOB", help="The job: `tenants/…/jobs/…`, or only the ID.", show_default=False)
    ],
    *,
    plan: Annotated[bool, typer.Option("--plan", help="Only show what would be removed.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask for confirmation.")] = False,
    server: ServerOption = SERVER,
    tenant: TenantOption = "",
    token: TokenOption = "",
    tls_ca: TlsCaOption = None,
    as_json: JsonOption = False,
) -> None:
    """Remove the rows that an ended job wrote from its table. Rows of other jobs stay, and so does the job.

    The dataset needs the option `provenance`, and a conflict policy other than update. The command counts the rows
    first, and asks. Rows are removed in small transactions, so readers see them go part by part; if the command is
    interrupted, run it again. Submitting the job again with its idempotency key writes nothing: use another key.

    For example:

        bulkgrpc jobs revert tenants/default/jobs/0b6ec6dc-… --plan

    With --json, the command prints one JSON object.
    """
    with console.failures():
        options = ConnectionOptions(server, tenant, token, tls_ca)
        with options.client() as client:
            handle = client.job(options.job_name(job))
            found = handle.revert(validate_only=True)
            if not as_json:
                console.print_table(revert_table(found))
            done = None
            if found.rows and not plan:
                _confirm(found, yes=yes)
                done = handle.revert()
    _print(found, done, plan=plan, as_json=as_json)


def revert_table(found: Reverted) -> Table:
    """Return what a revert would remove, as a table of names and values."""
    table = Table(show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    table.add_row("job", found.job.name)
    table.add_row("state", console.styled_state(found.job.state))
    table.add_row("dataset", f"{found.job.dataset} (version {found.job.dataset_version})")
    table.add_row("table", found.table)
    table.add_row("written", f"{found.job.counts.written:,}")
    table.add_row("rows to remove", f"{found.rows:,}")
    return table


def _confirm(found: Reverted, *, yes: bool) -> None:
    if yes:
        return
    if not sys.stdin.isatty():
        raise console.CommandFailed("nothing was removed: without a terminal to ask on, pass --yes, or --plan")
    typer.confirm(f"Remove {found.rows:,} rows from {found.table}?", abort=True, err=True)


def _print(found: Reverted, done: Reverted | None, *, plan: bool, as_json: bool) -> None:
    removed, left = (0, 0) if done is None else (done.rows, done.left)
    if as_json:
        amounts = {"written": found.job.counts.written, "found": found.rows, "removed": removed, "left": left}
        console.print_json({"job": found.job.name, "table": found.table, **amounts})
    elif done is not None:
        typer.echo(f"Removed {removed:,} rows from {found.table}.")
    elif not plan:
        typer.echo(f"Nothing to do: {found.table} has no row of the job.")
    if left:
        console.fail(f"{left:,} rows of the job are still in {found.table}: a trigger of the table keeps them")
