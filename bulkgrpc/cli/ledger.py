"""The commands `ledger show`, `adopt-topic` and `accept-loss`: what workers have applied, and how to continue."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

import typer
from rich.console import Group
from rich.markup import escape
from rich.table import Table

from bulkgrpc.cli import console
from bulkgrpc.cli.blocks import age, local
from bulkgrpc.cli.connection_options import (
    SERVER,
    ConnectionOptions,
    JsonOption,
    ServerOption,
    TenantOption,
    TlsCaOption,
    TokenOption,
)
from bulkgrpc.cli.recovery import accept_loss, adopt_topic
from bulkgrpc.client import LedgerSnapshot, ParkedQueue, PartitionPosition

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode="markdown",
    help="Show the ledger: how far workers have applied each partition, and what they have parked. Continue partitions "
    "that are stopped because Kafka lost what the ledger needs next.\n\n"
    "For example:\n\n    bulkgrpc ledger show\n\nEvery command has its own `--help`.",
)
app.command("adopt-topic")(adopt_topic)
app.command("accept-loss")(accept_loss)


@app.command("show")
def show(
    server: ServerOption = SERVER,
    tenant: TenantOption = "",
    token: TokenOption = "",
    tls_ca: TlsCaOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show each partition's next offset and owner epoch, why it is stopped if it is, and the queues of parked messages.

    A queue is the parked messages of one tenant's dataset in one partition. The owner epoch grows each time that a
    worker acquires the partition. The token needs the scope `bulk.admin`.

    For example:

        bulkgrpc ledger show

    With --json, the command prints one JSON object.
    """
    with console.failures(), ConnectionOptions(server, tenant, token, tls_ca).client() as client:
        found = client.get_ledger()
    if as_json:
        console.print_json(asdict(found))
    else:
        console.print_table(ledger_tables(found))


def ledger_tables(found: LedgerSnapshot) -> Group:
    """Return the partitions and the queues as tables that fit 80 columns."""
    parts: list[Table | str] = [_partitions(found.topic, found.partitions)]
    if found.queues:
        parts += ["", _queues(found.queues)]
    if found.omitted_queues:
        parts.append(f"{found.omitted_queues:,} more queues are not shown.")
    return Group(*parts)


def _partitions(topic: str, partitions: Sequence[PartitionPosition]) -> Table:
    table = Table(title=f"topic {topic}", title_justify="left", show_edge=False, pad_edge=False)
    for name in ("partition", "next offset", "owner epoch"):
        table.add_column(name, justify="right", no_wrap=True)
    any_stopped = any(one.stop_reason for one in partitions)
    if any_stopped:
        table.add_column("stopped", overflow="fold", style="red")
    for one in partitions:
        cells = [str(one.partition), f"{one.next_offset:,}", f"{one.owner_epoch:,}"]
        table.add_row(*cells, *([escape(_stopped(one))] if any_stopped else []))
    return table


def _stopped(one: PartitionPosition) -> str:
    since = "" if one.stop_time is None else f" since {local(one.stop_time)}"
    return f"{one.stop_reason}{since}" if one.stop_reason else ""


def _queues(queues: Sequence[ParkedQueue]) -> Table:
    table = Table(title="parked", title_justify="left", show_edge=False, pad_edge=False, show_lines=True)
    table.add_column("queue", overflow="fold")
    table.add_column("parked", justify="right", no_wrap=True)
    table.add_column("why", overflow="fold", min_width=20)
    for one in queues:
        oldest = "" if one.parked.oldest_time is None else f"oldest {age(one.parked.oldest_time)}"
        amounts = (
            f"{one.parked.messages:,} messages",
            f"{one.parked.records:,} records",
            f"{one.parked.payload_bytes:,} bytes",
            oldest,
        )
        trials = [f"{one.trials} failed trials"] if one.trials else []
        table.add_row(
            f"partition {one.partition}\n{one.tenant}\n{one.dataset}",
            "\n".join(amounts),
            "\n".join([one.reason or "is being applied", *trials]),
        )
    return table
