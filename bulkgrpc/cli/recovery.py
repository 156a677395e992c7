"""The commands `ledger adopt-topic` and `ledger accept-loss`: continue after Kafka lost what the ledger needs."""

from __future__ import annotations

import uuid
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, time
from typing import Annotated

import typer
from rich.console import Group
from rich.markup import escape
from rich.table import Table

from bulkgrpc.cli import console
from bulkgrpc.cli.blocks import local
from bulkgrpc.consume.log_identity import Recorded, StopCause, examine
from bulkgrpc.consume.ports import RecordLogError
from bulkgrpc.consume.recovery import Found, Mirror, Plan, fewer_partitions, plan_partition
from bulkgrpc.kafka.topic_log import KafkaTopicLog
from bulkgrpc.postgres import recovery, topics
from bulkgrpc.postgres.connection import Connection, connect
from bulkgrpc.postgres.errors import PostgresError
from bulkgrpc.postgres.recovery import LostJob
from bulkgrpc.settings import StackSettings
from bulkgrpc.settings import load as load_settings

JOBS_SHOWN_MAX = 20
YesOption = Annotated[bool, typer.Option("--yes", help="Do not ask for confirmation.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]


@dataclass(frozen=True, slots=True)
class Situation:
    """The topic as Kafka has it and as the ledger knows it."""

    topic: str
    recorded_id: uuid.UUID | None
    found_id: uuid.UUID
    partitions: Mapping[int, Found]


def adopt_topic(
    *,
    mirror: Annotated[
        Mirror,
        typer.Option(
            help="Whether the topic has the messages of the former one: `same-offsets` and `other-offsets` are mirrors."
        ),
    ] = Mirror.NONE,
    yes: YesOption = False,
    as_json: AsJson = False,
) -> None:
    """Continue with a topic that was created again, or with a mirror of another cluster.

    The ledger knows the topic by the ID that Kafka gave it. Workers stop the partitions of any other topic of the same
    name, and servers refuse batches, until you adopt it. The command first shows what is lost, and which jobs fail
    because batches of them may be among it. It changes only the ledger.

    A topic that was created again is read from its start. A mirror with the same offsets is read from where the ledger
    is. A mirror with other offsets is read again from the day of the ledger's oldest job; batches that were applied are
    recognized. No job fails because of a mirror; cancel those that stay SEALED because the mirror lacks their batches.

    BULKGRPC_KAFKA and BULKGRPC_POSTGRES are the addresses of the stores. For example:

        bulkgrpc ledger adopt-topic

    With --json, the command prints one JSON object.
    """
    with _recovery() as (settings, connection):
        situation = _situation(settings, connection)
        plan = _adoption(situation, mirror)
        _carry_out(connection, plan, yes=yes, as_json=as_json)


def accept_loss(
    *,
    partition: Annotated[int | None, typer.Option(help="Only this partition, instead of all stopped ones.")] = None,
    yes: YesOption = False,
    as_json: AsJson = False,
) -> None:
    """Continue partitions whose next messages Kafka has lost. What is lost stays lost.

    Workers stop a partition if Kafka's log of it starts after, or ends before, the offset that the ledger needs next,
    or lacks it. The command first shows the lost span of each, and which jobs fail because batches of them may be in
    it. It changes only the ledger; workers continue within seconds.

    BULKGRPC_KAFKA and BULKGRPC_POSTGRES are the addresses of the stores. For example:

        bulkgrpc ledger accept-loss --partition 3

    With --json, the command prints one JSON object.
    """
    with _recovery() as (settings, connection):
        situation = _situation(settings, connection)
        plan = _acceptance(situation, partition)
        _carry_out(connection, plan, yes=yes, as_json=as_json)


@contextmanager
def _recovery() -> Iterator[tuple[StackSettings, Connection]]:
    """Yield the settings and a connection; an expected failure becomes one line."""
    settings = load_settings(StackSettings)
    with console.failures():
        try:
            with connect(settings.postgres, "bulkgrpc-recovery") as connection:
                yield settings, connection
        except RecordLogError as error:
            raise console.CommandFailed(f"{error}: check BULKGRPC_KAFKA") from error
        except PostgresError as error:
            raise console.CommandFailed(f"PostgreSQL at BULKGRPC_POSTGRES: {error}") from error
        except recovery.PlanOutdated as error:
            raise console.CommandFailed(str(error)) from error


def _situation(settings: StackSettings, connection: Connection) -> Situation:
    log = KafkaTopicLog(settings)
    found_id, partitions = log.topic_id(), log.partitions()
    if found_id is None or partitions is None:
        raise console.CommandFailed(
            f"Kafka has no topic {settings.topic}: restore it, or create it with as many partitions as it had"
        )
    recorded = topics.partitions(connection, settings.topic)
    if fewer_partitions({number: one.recorded for number, one in recorded.items()}, partitions):
        raise console.CommandFailed(
            f"topic {settings.topic} has {partitions} partitions, and the ledger has positions of {max(recorded) + 1}: "
            "add partitions to the topic"
        )
    numbers = range(partitions)
    logs = log.ranges(numbers)
    if missing := sorted(set(numbers) - logs.keys()):
        raise console.CommandFailed(f"Kafka does not answer about the partitions {missing} now: try again")
    first = log.first_from(numbers, None)
    day = datetime.combine(recovery.first_day(connection), time(), UTC)
    kept = log.first_from(numbers, day)
    found = {}
    for number in numbers:
        one = recorded.get(number)
        found[number] = Found(
            Recorded(0) if one is None else one.recorded,
            logs[number],
            None if one is None else one.stop_time,
            first[number][1] if number in first else None,
            kept[number][0] if number in kept else logs[number].end,
        )
    return Situation(settings.topic, topics.topic_id(connection, settings.topic), found_id, found)


def _adoption(situation: Situation, mirror: Mirror) -> Plan:
    recorded_id, found_id = situation.recorded_id, situation.found_id
    if recorded_id is None or recorded_id == found_id:
        raise console.CommandFailed(
            f"the ledger knows no other topic {situation.topic} than Kafka's ({found_id}): there is nothing to adopt; "
            "`bulkgrpc ledger accept-loss` is for stopped partitions"
        )
    plans = []
    for number, found in situation.partitions.items():
        stop = examine(recorded_id, found_id, found.recorded, found.log)
        if stop is not None:
            plans.append(plan_partition(number, found, stop, mirror))
    return Plan(situation.topic, tuple(plans), recorded_id, found_id, found_id)


def _acceptance(situation: Situation, partition: int | None) -> Plan:
    recorded_id, found_id = situation.recorded_id, situation.found_id
    plans = []
    for number, found in situation.partitions.items():
        stop = examine(recorded_id, found_id, found.recorded, found.log)
        if stop is not None and stop.cause is StopCause.TOPIC_REPLACED:
            raise console.CommandFailed(
                f"topic {situation.topic} has the ID {found_id}, and the ledger knows {recorded_id}: it is another "
                "topic; run `bulkgrpc ledger adopt-topic`"
            )
        if stop is not None and partition in (None, number):
            plans.append(plan_partition(number, found, stop))
    if not plans:
        what = "every partition" if partition is None else f"partition {partition}"
        raise console.CommandFailed(f"{what} has what the ledger needs next: there is nothing to accept")
    return Plan(situation.topic, tuple(plans), recorded_id, found_id)


def _carry_out(connection: Connection, plan: Plan, *, yes: bool, as_json: bool) -> None:
    """Show a plan, ask, carry it out, and report it."""
    lost = recovery.lost_jobs(connection, plan)
    if not yes or not as_json:
        console.stderr_console().print(plan_tables(plan, lost))
    if not yes:
        typer.confirm(_question(plan, lost), abort=True, err=True)
    failed = recovery.carry_out(connection, plan)
    if as_json:
        console.print_json(plan_document(plan, failed))
    else:
        typer.echo(f"{_done(plan)} {len(failed):,} jobs failed. Workers continue within seconds.")


def _question(plan: Plan, lost: Collection[LostJob]) -> str:
    what = (
        f"Adopt topic {plan.found_id}" if plan.adopted_id else f"Accept the loss in {len(plan.partitions)} partitions"
    )
    return f"{what} and fail {len(lost):,} jobs?"


def _done(plan: Plan) -> str:
    if plan.adopted_id:
        return f"The ledger has topic {plan.topic} with the ID {plan.adopted_id}."
    return f"The loss in {len(plan.partitions)} partitions is accepted."


def plan_tables(plan: Plan, lost: Sequence[LostJob]) -> Group:
    """Return a plan as tables: the topic, its partitions, the jobs that fail."""
    table = Table(title=_title(plan), title_justify="left", show_edge=False, pad_edge=False)
    table.add_column("partition", no_wrap=True)
    for name in ("ledger", "Kafka has", "lost", "continues at"):
        table.add_column(name, justify="right", no_wrap=True)
    for one in plan.partitions:
        log = f"[{one.log.start}, {one.log.end})"
        cells = (f"{one.next_offset:,}", log, one.stop.lost, f"{one.resume_at:,}")
        table.add_row(f"{one.partition}\n{one.stop.cause.value}", *map(escape, cells))
    if not lost:
        return Group(table, "", "No job fails.")
    jobs = Table(title=f"{len(lost):,} jobs fail", title_justify="left", show_edge=False, pad_edge=False)
    for name in ("job", "dataset", "state", "created"):
        jobs.add_column(name, overflow="fold")
    jobs.add_column("written", justify="right", no_wrap=True)
    for job in lost[:JOBS_SHOWN_MAX]:
        jobs.add_row(job.key.name, job.dataset, job.state.name, local(job.create_time), f"{job.written:,}")
    more = [f"{len(lost) - JOBS_SHOWN_MAX:,} more jobs are not shown."] if len(lost) > JOBS_SHOWN_MAX else []
    return Group(table, "", jobs, *more)


def _title(plan: Plan) -> str:
    if plan.adopted_id:
        return f"topic {plan.topic}: the ledger knows {plan.recorded_id}, Kafka has {plan.found_id}"
    return f"topic {plan.topic} ({plan.found_id})"


def plan_document(plan: Plan, failed: Sequence[LostJob]) -> dict[str, object]:
    """Return what was carried out as `--json` prints it."""
    return {
        "topic": plan.topic,
        "recorded_id": None if plan.recorded_id is None else str(plan.recorded_id),
        "topic_id": str(plan.found_id),
        "partitions": [
            {
                "partition": one.partition,
                "cause": one.stop.cause.value,
                "next_offset": one.next_offset,
                "log_start": one.log.start,
                "log_end": one.log.end,
                "lost_from": one.stop.from_offset,
                "lost_to": one.stop.to_offset,
                "resume_at": one.resume_at,
            }
            for one in plan.partitions
        ],
        "failed_jobs": [
            {"name": job.key.name, "dataset": job.dataset, "state": job.state.name, "written": job.written}
            for job in failed
        ],
    }
