"""The command `doctor`: whether the stores answer, and whether PostgreSQL came back older than what was applied."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from bulkgrpc.cli import console
from bulkgrpc.cli.blocks import local
from bulkgrpc.consume.heartbeat import Heartbeat, TookBack, taken_back
from bulkgrpc.consume.ports import RecordLogError
from bulkgrpc.kafka.group_offsets import KafkaGroupOffsets
from bulkgrpc.kafka.topic_log import KafkaTopicLog
from bulkgrpc.postgres import heartbeats, schema
from bulkgrpc.postgres.connection import connect
from bulkgrpc.postgres.errors import PostgresError
from bulkgrpc.postgres.heartbeats import Restore
from bulkgrpc.postgres.outage import explained
from bulkgrpc.postgres.rights import RightsMissing
from bulkgrpc.redis.probe import why_no_answer
from bulkgrpc.settings import ServerSettings, WorkerSettings
from bulkgrpc.settings import load as load_settings

PROBE_TIMEOUT_S = 2.0


@dataclass(frozen=True, slots=True)
class Finding:
    """What a check found. ok: None if it could not be made."""

    check: str
    ok: bool | None
    text: str


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")] = False,
) -> None:
    """Check that Kafka, PostgreSQL and Redis answer, and that PostgreSQL has not travelled back in time.

    A restore, or a fail-over to a standby that lagged behind, takes PostgreSQL back to an earlier time. Workers notice
    it and read again from Kafka what was applied since. What is not in Kafka is gone: the command names the time
    between the last heartbeat that the ledger had and the last one that Kafka has. docs/operations.md says what to do.

    BULKGRPC_KAFKA, BULKGRPC_POSTGRES, BULKGRPC_REDIS and BULKGRPC_GROUP are those of the service. For example:

        bulkgrpc doctor

    Exits with 1 if a check fails. With --json, the command prints one JSON object.
    """
    settings = load_settings(WorkerSettings)
    findings = [
        _found("kafka", lambda: _kafka(settings)),
        _found("postgres", lambda: _postgres(settings)),
        _found("redis", lambda: _redis(load_settings(ServerSettings).redis)),
    ]
    restores: Sequence[Restore] = ()
    if all(one.ok for one in findings[:2]):
        ledger, restores = _ledger(settings)
        findings.append(ledger)
    else:
        findings.append(Finding("ledger", None, "not compared: it needs Kafka and PostgreSQL"))
    if as_json:
        console.print_json({"checks": [asdict(one) for one in findings], "restores": [asdict(one) for one in restores]})
    else:
        console.print_table(_table(findings))
        for restore in restores:
            typer.echo(f"noticed at {local(restore.notice_time)}: {_explained(restore.ledger, restore.found)}")
    if not all(one.ok for one in findings):
        raise typer.Exit(console.EXIT_FAILURE)


def _found(check: str, ask: Callable[[], str]) -> Finding:
    try:
        return Finding(check, True, ask())
    except PostgresError as error:
        return Finding(check, False, explained(error))
    except (RecordLogError, schema.SchemaMissing, RightsMissing, console.CommandFailed) as error:
        return Finding(check, False, " ".join(str(error).split()))


def _kafka(settings: WorkerSettings) -> str:
    partitions = KafkaTopicLog(settings).partitions()
    if partitions is None:
        raise console.CommandFailed(f"Kafka at {settings.kafka} has no topic {settings.topic}")
    return f"topic {settings.topic} has {partitions} partitions"


def _postgres(settings: WorkerSettings) -> str:
    with connect(settings.postgres, "bulkgrpc-doctor") as connection:
        schema.check(connection)
        return heartbeats.database_position(connection)


def _redis(url: str) -> str:
    reason = why_no_answer(url, PROBE_TIMEOUT_S)
    if reason is not None:
        raise console.CommandFailed(reason)
    return "answers"


def _ledger(settings: WorkerSettings) -> tuple[Finding, Sequence[Restore]]:
    """Compare the ledger with what the group committed; return also the restores that workers noticed."""
    try:
        # Kafka first: what workers apply meanwhile is in the ledger before it is there.
        partitions = range(KafkaTopicLog(settings).partitions() or 0)
        committed = KafkaGroupOffsets(settings).committed(partitions)
        with connect(settings.postgres, "bulkgrpc-doctor") as connection:
            ledger = heartbeats.state(connection, settings.topic)
            restores = heartbeats.restores(connection, settings.topic)
    except (RecordLogError, PostgresError) as error:
        return Finding("ledger", None, " ".join(str(error).split())), ()
    found = taken_back(ledger, committed)
    if found is not None:
        return Finding("ledger", False, _explained(ledger.heartbeat, found)), restores
    beat = ledger.heartbeat
    text = "no worker has beaten yet" if beat is None else f"as new as Kafka knows; heartbeat at {local(beat.time)}"
    return Finding("ledger", True, text), restores


def _explained(ledger: Heartbeat | None, found: TookBack) -> str:
    """Return what a restore took back, for people."""
    text = "PostgreSQL came back older than what was applied"
    if found.spans:
        spans = ", ".join(f"partition {number} [{start}, {end})" for number, (start, end) in found.spans.items())
        text += f": workers read {spans} again"
    if ledger is not None and found.known is not None:
        text += (
            f"; what was done from {local(ledger.time)} ({ledger.database}) to {local(found.known.time)} "
            f"({found.known.database}) and is not in Kafka is gone: docs/operations.md lists it"
        )
    return text


def _table(findings: Sequence[Finding]) -> Table:
    table = Table(show_header=False, show_edge=False, pad_edge=False)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for one in findings:
        mark = "?" if one.ok is None else "ok" if one.ok else "FAILED"
        table.add_row(one.check, mark, escape(one.text), style=None if one.ok else "red")
    return table
