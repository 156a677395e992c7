"""The ledger: what was applied. Offsets and owners of partitions, sequences of lanes; in the caller's transaction.

A stale owner is fenced here: LOCK_OFFSETS locks the partitions' rows until the transaction ends, and `check_spans`
does not accept a chunk that is not the next one under its owner's epoch.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from typing import Any

import psycopg

from bulkgrpc.consume.assembly import Received, Span
from bulkgrpc.consume.job_delta import JobDelta, why_rejected
from bulkgrpc.consume.plan import Fate, Lane, LaneKey, LedgerView, repeated_batches
from bulkgrpc.consume.ports import NotNext
from bulkgrpc.model import JobCounts, JobKey, JobState, Message
from bulkgrpc.positions import Outcome, Ownership, may_apply_span
from bulkgrpc.postgres import statements
from bulkgrpc.postgres.connection import Connection
from bulkgrpc.postgres.jobs import open_values

_SQL = statements.family("ledger")
_JOBS = statements.family("jobs")
LOCK_OFFSETS = _SQL["lock_offsets"]
LOCK_JOBS = _SQL["lock_jobs"]
LOCK_JOBS_ALONE = _SQL["lock_jobs_alone"]
READ_OFFSETS = _SQL["read_offsets"]
Row = tuple[Any, ...]


def acquire(connection: Connection, topic: str, partitions: Sequence[int]) -> dict[int, Ownership]:
    """Acquire partitions under a new epoch, which fences their former owners; return their positions."""
    return _ownerships(
        connection.execute(_SQL["acquire_partitions"], {"topic": topic, "partitions": sorted(partitions)})
    )


def read(connection: Connection, topic: str, partitions: Sequence[int]) -> dict[int, Ownership]:
    """Return the positions of partitions and the epochs of their owners."""
    return _ownerships(connection.execute(_SQL["read_offsets"], {"topic": topic, "partitions": list(partitions)}))


def offsets_values(topic: str, spans: Sequence[Span]) -> dict[str, Any]:
    """Return the values of the statement LOCK_OFFSETS."""
    return {"topic": topic, "partitions": [span.partition for span in spans]}


def check_spans(locked: Iterable[Row], spans: Sequence[Span]) -> None:
    """Check the spans against the rows of LOCK_OFFSETS.

    Raises NotNext unless every span is the next one of its partition under its owner's epoch (`may_apply_span`).
    """
    ledger = _ownerships(locked)
    outcomes = {span.partition: _outcome(ledger.get(span.partition), span) for span in spans}
    if any(outcome is not Outcome.NEXT for outcome in outcomes.values()):
        raise NotNext(outcomes, ledger)


def positions(rows: Iterable[Row], spans: Sequence[Span]) -> dict[int, int]:
    """Return the next offset of each partition in the rows of READ_OFFSETS.

    Raises NotNext if a partition of the spans has another owner, or PostgreSQL is not the server that it was.
    """
    ledger = _ownerships(rows)
    fenced = {
        span.partition: outcome
        for span in spans
        if (outcome := _outcome(ledger.get(span.partition), span)) in (Outcome.FENCED, Outcome.RESTARTED)
    }
    if fenced:
        raise NotNext(fenced, ledger)
    return {partition: owned.next_offset for partition, owned in ledger.items()}


@dataclass(frozen=True, slots=True)
class JobRow:
    """What a chunk needs to know of a job: the day that its rows are kept under, its state, its options, its counts.

    lanes: how many. deleted_version: the last version of its dataset that was deleted, 0 if none was. attempt, lost:
    `Job.attempt`, `Job.lost`.
    """

    create_day: date
    state: JobState
    counts: JobCounts
    atomic: bool
    rejections_max: int
    lanes: int
    dataset_version: int
    deleted_version: int
    staged: int
    attempt: int
    lost: bool


@dataclass(frozen=True, slots=True)
class JobsFound:
    """The rows of jobs, and those of their lanes that exist."""

    rows: Mapping[uuid.UUID, JobRow]
    lanes: Mapping[LaneKey, Lane]


def has_job(connection: Connection, job: JobKey) -> bool:
    """Return whether there is a row of a job."""
    row = connection.execute(_SQL["has_job"], {"job_id": job.job_id, "tenant": job.tenant}).fetchone()
    return row is not None


def lock_jobs(connection: Connection, jobs: Sequence[JobKey]) -> JobsFound:
    """Return those of the jobs that have a row; none of them is ended by others until the transaction ends."""
    return jobs_of_rows(connection.execute(LOCK_JOBS, jobs_values(jobs)))


def jobs_values(jobs: Sequence[JobKey]) -> dict[str, Any]:
    """Return the values of the statement LOCK_JOBS."""
    return {"job_ids": [job.job_id for job in jobs]}


def jobs_of_rows(found: Iterable[Row]) -> JobsFound:
    """Return what LOCK_JOBS found."""
    rows, lanes = {}, {}
    for job_id, *columns, numbers, next_sequences, sealed in found:
        rows[job_id] = _job_row(*columns)
        for lane, next_sequence, is_sealed in zip(numbers or (), next_sequences or (), sealed or (), strict=True):
            lanes[job_id, lane] = Lane(next_sequence, sealed=is_sealed)
    return JobsFound(rows, lanes)


def lock_multi_lane_jobs(connection: Connection, jobs: Mapping[uuid.UUID, JobRow]) -> dict[uuid.UUID, JobRow]:
    """Return the current rows of those of the jobs that exist; nothing else changes them until the transaction ends."""
    return _job_rows(connection.execute(_SQL["lock_multi_lane_jobs"], _of_jobs(jobs)))


def lock_job(connection: Connection, create_day: date, job_id: uuid.UUID) -> JobRow | None:
    """Return a job's current row, which nothing else changes until the transaction ends; None if there is none."""
    values = {"create_days": [create_day], "job_ids": [job_id]}
    return _job_rows(connection.execute(_SQL["lock_multi_lane_jobs"], values)).get(job_id)


def lanes(connection: Connection, jobs: Mapping[uuid.UUID, JobRow]) -> dict[LaneKey, Lane]:
    """Return the lanes of jobs, those that exist."""
    cursor = connection.execute(_SQL["get_lanes"], _of_jobs(jobs))
    return {(job_id, lane): Lane(next_sequence, sealed=sealed) for job_id, lane, next_sequence, sealed in cursor}


def open_job(connection: Connection, first: Received) -> None:
    """Insert the row of the job that a first batch belongs to, if there is none; also if its dataset was deleted.

    Records of it that were acknowledged are reported in the job then.
    """
    partitions = first.message.partitions or (first.partition,)
    values = open_values(first.message.spec, partitions, first.message.sent_at, of_deleted=True)
    connection.execute(_JOBS["lock_job"], values)
    connection.execute(_JOBS["open_job"], values)


def view(connection: Connection, items: Sequence[Received], jobs: JobsFound) -> LedgerView:
    """Return what the ledger knows of the messages' lanes and, for batches that were applied before, their digests.

    Cost: a round trip if there are such batches, none otherwise.
    """
    rows = jobs.rows
    if not rows:
        return LedgerView()
    found = LedgerView(
        ended=frozenset(job_id for job_id, row in rows.items() if row.state.ended),
        lost=frozenset(job_id for job_id, row in rows.items() if row.lost),
        attempts={job_id: row.attempt for job_id, row in rows.items()},
        lane_counts={job_id: row.lanes for job_id, row in rows.items() if row.lanes > 1},
        lanes=jobs.lanes,
        deleted_versions={job_id: row.deleted_version for job_id, row in rows.items()},
        atomic_versions={job_id: row.dataset_version for job_id, row in rows.items() if row.atomic},
    )
    # Lanes are also known of jobs whose messages are all deferred.
    again = [key for key in repeated_batches(items, found) if key[0] in rows]
    if not again:
        return found
    values = {
        "create_days": [rows[job_id].create_day for job_id, _ in again],
        "job_ids": [job_id for job_id, _ in again],
        "sequences": [sequence for _, sequence in again],
    }
    digests = connection.execute(_SQL["get_digests"], values)
    return replace(found, digests={(job_id, sequence): digest for job_id, sequence, digest in digests})


@dataclass(frozen=True, slots=True)
class Conclusion:
    """What is written last in a transaction that applies messages.

    before: statements without results that come first. lanes, batches, counts: rows, with the names of their columns.
    """

    before: Sequence[str] = ()
    lanes: Sequence[Mapping[str, object]] = ()
    batches: Sequence[Mapping[str, object]] = ()
    counts: Sequence[Mapping[str, object]] = ()


def conclude(
    connection: Connection, what: Conclusion, topic: str = "", spans: Sequence[Span] = (), *, commits: bool = False
) -> None:
    """Write a conclusion, advance the spans' partitions to their ends, and commit if `commits`.

    Cost: one round trip.
    """
    ends = [{"partition": span.partition, "to_offset": span.to_offset} for span in spans]
    rows = {"lanes": what.lanes, "batches": what.batches, "counts": what.counts, "ends": ends}
    # ASCII: the message is read whatever encoding a trigger has set.
    values = {name: json.dumps(found) if found else None for name, found in rows.items()}
    statement = psycopg.ClientCursor(connection).mogrify(_SQL["conclude"], {**values, "topic": topic})
    message = "; ".join([*what.before, statement, *["COMMIT"] * commits])
    connection.cursor().execute(message.encode(), prepare=False)


def lane_rows(moved: Mapping[LaneKey, Lane], jobs: Mapping[uuid.UUID, JobRow]) -> Sequence[Mapping[str, object]]:
    """Return the lanes with their new positions, for `Conclusion`."""
    return [
        {
            **_key(job_id, jobs[job_id]),
            "lane": number,
            "next_sequence": lane.next_sequence,
            "sealed": lane.sealed,
        }
        for (job_id, number), lane in moved.items()
    ]


def batch_rows(batches: Sequence[Message], jobs: Mapping[uuid.UUID, JobRow]) -> Sequence[Mapping[str, object]]:
    """Return the digests of the batches that a chunk takes, for `Conclusion`."""
    return [
        {
            **_key(batch.spec.key.job_id, jobs[batch.spec.key.job_id]),
            "sequence": batch.sequence,
            "digest": batch.digest.hex(),
        }
        for batch in batches
    ]


def count_rows(
    deltas_of: Mapping[JobKey, JobDelta], jobs: Mapping[uuid.UUID, JobRow]
) -> Sequence[Mapping[str, object]]:
    """Return what was done, for `Conclusion`: it is added to the counts of each job, and ends those that it ends.

    jobs: their locked rows.
    """
    return [
        {
            **_key(job.job_id, row := jobs[job.job_id]),
            "accepted": delta.accepted,
            "written": delta.written,
            "duplicate": delta.duplicate,
            "rejected": delta.rejected,
            "expired": delta.expired,
            "skipped": delta.skipped,
            "state": None if (state := delta.next_state(row.state, row.counts)) is None else state.value,
            "seal_time": None if delta.ends_at is None else delta.ends_at.isoformat(),
            "failure_reason": delta.failure_reason,
            "lost": delta.lost,
        }
        for job, delta in sorted(deltas_of.items(), key=lambda item: item[0].job_id)
    ]


def _key(job_id: uuid.UUID, row: JobRow) -> dict[str, object]:
    return {"create_day": row.create_day.isoformat(), "job_id": str(job_id)}


def add_late_batches(
    connection: Connection, late: Sequence[tuple[Received, Fate]], jobs: Mapping[uuid.UUID, JobRow]
) -> None:
    """Report batches that arrived too late to count for their jobs, each once, also if they are read again."""
    messages = [item.message for item, _ in late]
    reasons = [why_rejected(item.message, fate) for item, fate in late]
    values = {
        "create_days": [jobs[message.spec.key.job_id].create_day for message in messages],
        "job_ids": [message.spec.key.job_id for message in messages],
        "partitions": [item.partition for item, _ in late],
        "offsets": [item.offset for item, _ in late],
        "sequences": [message.sequence for message in messages],
        "records": [message.records for message in messages],
        "digests": [message.digest for message in messages],
        "codes": [code.value for code, _ in reasons],
        "reasons": [reason for _, reason in reasons],
        "sent_times": [message.sent_at for message in messages],
    }
    connection.execute(_SQL["add_late_batches"], values)


def _job_rows(cursor: psycopg.Cursor[tuple[Any, ...]]) -> dict[uuid.UUID, JobRow]:
    return {job_id: _job_row(*columns) for job_id, *columns in cursor}


def _job_row(create_day: date, state: int, counts: Sequence[int], *rest: Any) -> JobRow:
    return JobRow(create_day, JobState(state), JobCounts(*counts), *rest)


def _of_jobs(jobs: Mapping[uuid.UUID, JobRow]) -> dict[str, Any]:
    return {"create_days": sorted({row.create_day for row in jobs.values()}), "job_ids": list(jobs)}


def _outcome(ledger: Ownership | None, span: Span) -> Outcome:
    if ledger is None:
        return Outcome.FENCED
    same_server = span.server_start in (None, ledger.server_start)
    return may_apply_span(
        ledger.next_offset, ledger.owner_epoch, span.from_offset, span.owner_epoch, same_server=same_server
    )


def _ownerships(rows: Iterable[Row]) -> dict[int, Ownership]:
    return {row[0]: Ownership(*row) for row in rows}
