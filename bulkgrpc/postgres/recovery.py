"""Carries out what an operator decided about lost messages: moves the ledger, fails jobs that may have lost any.

Returns where a job is, for one whose dead letters are sent again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime

from bulkgrpc.consume.losses import ways_out
from bulkgrpc.consume.plan import Lane
from bulkgrpc.consume.recovery import Plan, shifted
from bulkgrpc.model import JobKey, JobState
from bulkgrpc.postgres import statements
from bulkgrpc.postgres.connection import Connection
from bulkgrpc.postgres.ledger import LOCK_OFFSETS

_SQL = statements.family("recovery")


class PlanOutdated(Exception):
    """The ledger moved since a plan was made; nothing was changed."""


@dataclass(frozen=True, slots=True)
class LostJob:
    """A job that has not ended and may have lost messages. written: records of it that are in the table.

    next_sequence: the batch at which it continues when it is opened again.
    """

    key: JobKey
    dataset: str
    state: JobState
    written: int
    create_time: datetime
    next_sequence: int = 0


@dataclass(frozen=True, slots=True)
class JobPosition:
    """Where a job is. partitions: of its lanes. lanes: every lane, by number."""

    state: JobState
    partitions: Sequence[int]
    create_time: datetime
    lanes: Mapping[int, Lane]


def job_position(connection: Connection, key: JobKey) -> JobPosition | None:
    """Return where a job is, None if the ledger does not have it."""
    row = connection.execute(_SQL["job_position"], {"job_id": key.job_id, "tenant": key.tenant}).fetchone()
    if row is None:
        return None
    state, partitions, create_time, *moved = row
    lanes = {number: Lane(number, sealed=False) for number in range(len(partitions))}
    for number, next_sequence, sealed in zip(*moved, strict=True):
        lanes[number] = Lane(next_sequence, sealed=sealed)
    return JobPosition(JobState(state), partitions, create_time, lanes)


def first_day(connection: Connection) -> date:
    """Return the day of the oldest job that the ledger has."""
    row = connection.execute(_SQL["first_day"]).fetchone()
    assert row is not None  # noqa: S101 — an aggregate returns a row
    day: date = row[0]
    return day


def lost_jobs(connection: Connection, plan: Plan) -> list[LostJob]:
    """Return the jobs that fail if a plan is carried out."""
    failing = [one for one in plan.partitions if one.fails_jobs]
    values = {
        "topic": plan.topic,
        "partitions": [one.partition for one in failing],
        "befores": [one.created_before for one in failing],
    }
    return [
        LostJob(JobKey(tenant, job_id), dataset, JobState(state), written, create_time, next_sequence)
        for job_id, tenant, dataset, state, written, create_time, next_sequence in connection.execute(
            _SQL["lost_jobs"], values
        )
    ]


def carry_out(connection: Connection, plan: Plan) -> Sequence[LostJob]:
    """Carry out a plan in one transaction; return the jobs that failed. Raises PlanOutdated."""
    numbers = [one.partition for one in plan.partitions]
    with connection.transaction():
        # In the order of every worker: offsets, then jobs.
        locked = connection.execute(LOCK_OFFSETS, {"topic": plan.topic, "partitions": numbers}).fetchall()
        positions = {partition: next_offset for partition, next_offset, *_ in locked}
        for one in plan.partitions:
            if positions.get(one.partition, 0) != one.next_offset:
                raise PlanOutdated(
                    f"partition {one.partition} is at offset {positions.get(one.partition, 0)} now, and was at "
                    f"{one.next_offset} when the plan was made: run the command again"
                )
        # Twice: workers are at other partitions of these jobs, until they are locked.
        _lock(connection, lost_jobs(connection, plan))
        lost = lost_jobs(connection, plan)
        fail_jobs(connection, {job.key: f"{plan.failure_reason}; {ways_out(job.next_sequence)}" for job in lost})
        for one in plan.partitions:
            if shifted(one):
                connection.execute(_SQL["shift_parked"], {"topic": plan.topic, "partition": one.partition})
        values = {
            "topic": plan.topic,
            "topic_id": plan.adopted_id,
            "partitions": numbers,
            "next_offsets": [one.resume_at for one in plan.partitions],
        }
        connection.execute(_SQL["move_offsets"], values)
        connection.execute(_SQL["clear_stops"], values)
        connection.execute(_SQL["note_move"], values)
        if plan.adopted_id is not None:
            connection.execute(_SQL["adopt_topic"], values)
    return lost


def _lock(connection: Connection, lost: Sequence[LostJob]) -> None:
    connection.execute(_SQL["lock_jobs"], {"job_ids": [job.key.job_id for job in lost]})


def fail_jobs(connection: Connection, reasons: Mapping[JobKey, str]) -> None:
    """End jobs that lost batches as FAILED, each with a reason; their clients can open them again. They are locked."""
    values = {"job_ids": [key.job_id for key in reasons], "reasons": list(reasons.values())}
    connection.execute(_SQL["fail_jobs"], values)
