"""The commands `datasets pause`, `resume` and `discard`, and the status that `datasets show` prints."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime
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
from bulkgrpc.client import DatasetState, DatasetStatus, Parked, TenantParked

NameArgument = Annotated[str, typer.Argument(help="The dataset's name.", show_default=False)]
_STATES = {DatasetState.WRITABLE: "green", DatasetState.PAUSED: "yellow"}


def pause(
    name: NameArgument,
    *,
    reason: Annotated[str, typer.Option(help="Why, for those who look at the dataset or at its jobs.")] = "",
    server: ServerOption = SERVER,
    tenant: TenantOption = "",
    token: TokenOption = "",
    tls_ca: TlsCaOption = None,
    as_json: JsonOption = False,
) -> None:
    """Pause a dataset: records are accepted and kept, and not written until you resume it.

    Use it to change a table without errors, or to stop trials of a blocked one. Transactions that are under way may
    still write. Other datasets are not affected.

    For example:

        bulkgrpc datasets pause weather --reason "table is being rebuilt"

    With --json, the command prints the state of the dataset as one JSON object.
    """
    with console.failures(), ConnectionOptions(server, tenant, token, tls_ca).client() as client:
        status = client.pause_dataset(name, reason=reason)
    _print(status, as_json=as_json)


def resume(
    name: NameArgument,
    *,
    server: ServerOption = SERVER,
    tenant: TenantOption = "",
    token: TokenOption = "",
    tls_ca: TlsCaOption = None,
    as_json: JsonOption = False,
) -> None:
    """Resume a dataset: what is parked is applied, in order, then its records are written directly again.

    A dataset that an operator did not pause, but that is blocked because its table cannot be written, is tried now
    instead of at its next trial. If a discard is under way, what it has not discarded yet is kept.

    For example:

        bulkgrpc datasets resume weather

    With --json, the command prints the state of the dataset as one JSON object.
    """
    with console.failures(), ConnectionOptions(server, tenant, token, tls_ca).client() as client:
        status = client.resume_dataset(name)
    _print(status, as_json=as_json)


def discard(
    name: NameArgument,
    *,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask for confirmation.")] = False,
    server: ServerOption = SERVER,
    tenant: TenantOption = "",
    token: TokenOption = "",
    tls_ca: TlsCaOption = None,
    as_json: JsonOption = False,
) -> None:
    """Discard what is parked of a blocked or paused dataset. The records are lost.

    The command first shows what that is, by tenant. Discarded records count as expired, and their jobs say why; atomic
    jobs that lose records fail. What arrives later is parked and not discarded, so the dataset stays blocked or paused.

    For example:

        bulkgrpc datasets discard weather --yes

    With --json, the command prints what is discarded and the state of the dataset as one JSON object.
    """
    with console.failures(), ConnectionOptions(server, tenant, token, tls_ca).client() as client:
        if not yes:
            found = client.discard_parked(name, validate_only=True)
            console.stderr_console().print(tenants_table(found.tenants))
            typer.confirm(f"Discard {_amount(found.parked)} of dataset {name}?", abort=True, err=True)
        discarded = client.discard_parked(name)
    if as_json:
        tenants = [{"tenant": one.tenant, **asdict(one.parked)} for one in discarded.tenants]
        document = {"discarded": {**asdict(discarded.parked), "tenants": tenants}}
        console.print_json({**document, **status_document(discarded.status)})
        return
    typer.echo(f"Discarding {_amount(discarded.parked)} of dataset {name}.")
    console.print_table(status_table(discarded.status))


def status_document(status: DatasetStatus) -> dict[str, object]:
    """Return the status of a dataset as `--json` prints it."""
    return {
        "state": status.state.name.lower(),
        "reason": status.reason,
        "sqlstate": status.sqlstate,
        "block_time": status.block_time,
        "trials": status.trials,
        "next_trial_time": status.next_trial_time,
        "parked": asdict(status.parked),
    }


def status_table(status: DatasetStatus) -> Table:
    """Return the status of a dataset as a table of names and values."""
    table = Table(show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    style = _STATES.get(status.state, "red")
    table.add_row("state", f"[{style}]{status.state.name.lower()}[/{style}]")
    if status.reason:
        table.add_row("reason", status.reason)
    if status.sqlstate:
        table.add_row("SQLSTATE", status.sqlstate)
    for label, time in (("since", status.block_time), ("next trial", status.next_trial_time)):
        if time is not None:
            table.add_row(label, local(time))
    if status.trials:
        table.add_row("failed trials", str(status.trials))
    if status.parked.messages:
        table.add_row("parked", _amount(status.parked))
        if status.parked.oldest_time is not None:
            table.add_row("oldest parked", f"{local(status.parked.oldest_time)} ({age(status.parked.oldest_time)})")
    return table


def tenants_table(tenants: Sequence[TenantParked]) -> Table:
    """Return what is parked, a row a tenant."""
    table = Table(show_edge=False, pad_edge=False)
    table.add_column("tenant", overflow="fold")
    for name in ("messages", "records", "bytes", "jobs"):
        table.add_column(name, justify="right", no_wrap=True)
    for one in tenants:
        parked = one.parked
        numbers = (parked.messages, parked.records, parked.payload_bytes, parked.jobs)
        table.add_row(one.tenant, *(f"{number:,}" for number in numbers))
    return table


def local(time: datetime) -> str:
    """Return a time for people, in local time."""
    return time.astimezone().isoformat(" ", "seconds")


def age(since: datetime) -> str:
    """Return how long ago a time is, in its largest unit."""
    seconds = max(0.0, (datetime.now(since.tzinfo) - since).total_seconds())
    for unit, length_s in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= length_s:
            return f"{seconds / length_s:,.1f} {unit}"
    return f"{seconds:.0f} s"


def _amount(parked: Parked) -> str:
    return (
        f"{parked.messages:,} messages with {parked.records:,} records ({parked.payload_bytes:,} bytes) "
        f"of {parked.jobs:,} jobs"
    )


def _print(status: DatasetStatus, *, as_json: bool) -> None:
    if as_json:
        console.print_json({"dataset": status.dataset, **status_document(status)})
    else:
        console.print_table(status_table(status))
