"""The command `lag`: what is stored and not applied yet, from the topic and the ledger."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated

import typer
from rich.table import Table

from bulkgrpc.cli import console
from bulkgrpc.cli.blocks import age
from bulkgrpc.consume.backlog import Backlog, measure
from bulkgrpc.consume.ports import RecordLogError, StoreError
from bulkgrpc.kafka.topic_log import KafkaTopicLog
from bulkgrpc.postgres.topics import PostgresTopicLedger
from bulkgrpc.settings import WorkerSettings
from bulkgrpc.settings import load as load_settings


def lag(
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")] = False,
) -> None:
    """Show how many messages of each partition are stored and not applied yet, and how old the oldest is.

    A message is a batch, or the seal of a job. The command asks Kafka and PostgreSQL, so it works although no server
    and no worker runs. Messages that are parked for a blocked dataset are applied in this sense: `bulkgrpc ledger show`
    has them.

    BULKGRPC_KAFKA, BULKGRPC_POSTGRES and BULKGRPC_TOPIC are those of the service. For example:

        bulkgrpc lag

    With --json, the command prints one JSON object.
    """
    settings = load_settings(WorkerSettings)
    with console.failures():
        found = _measured(settings)
    if as_json:
        console.print_json(_as_json(settings.topic, found))
    else:
        console.print_table(_table(settings.topic, found))


def _measured(settings: WorkerSettings) -> Backlog:
    ledger = PostgresTopicLedger(settings.postgres, settings.topic)
    try:
        return measure(KafkaTopicLog(settings), ledger, datetime.now(UTC))
    except (RecordLogError, StoreError) as error:
        raise console.CommandFailed(str(error)) from error


def _as_json(topic: str, found: Backlog) -> dict[str, object]:
    return {
        "topic": topic,
        "time": found.time.isoformat(),
        "messages": found.messages,
        "age_s": round(found.age_s, 3),
        "partitions": [
            {
                "partition": number,
                "next_offset": one.next_offset,
                "messages": one.messages,
                "age_s": round(one.age_s(found.time), 3),
            }
            for number, one in sorted(found.partitions.items())
        ],
    }


def _table(topic: str, found: Backlog) -> Table:
    table = Table(title=f"topic {topic}", title_justify="left", show_edge=False, pad_edge=False, show_footer=True)
    oldest = min((one.oldest for one in found.partitions.values() if one.oldest), default=None)
    footers = ("total", "", f"{found.messages:,}", age(oldest) if oldest else "")
    for name, footer in zip(("partition", "next offset", "messages", "oldest"), footers, strict=True):
        table.add_column(name, footer=footer, justify="right", no_wrap=True)
    for number, one in sorted(found.partitions.items()):
        table.add_row(str(number), f"{one.next_offset:,}", f"{one.messages:,}", age(one.oldest) if one.oldest else "")
    return table
