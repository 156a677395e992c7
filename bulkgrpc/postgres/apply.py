"""Applies messages in the caller's transaction: rows, rejections, lanes, counts, job ends.

Chunks of the main path and slices of parked messages are applied by the same code.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime

import numpy as np

from bulkgrpc import faults
from bulkgrpc.consume.assembly import Received, jobs_of
from bulkgrpc.consume.decode import Group
from bulkgrpc.consume.deferral import DeferralReason, Deferrals, DeferralView, plan_chunk
from bulkgrpc.consume.express import LeftToMainPath, left_to_main_path
from bulkgrpc.consume.failures import Failure
from bulkgrpc.consume.job_delta import JobDelta, failure_reason, why_rejected
from bulkgrpc.consume.plan import EXPIRED, REPORTED_LATE, TAKEN, Fate, LanePlan, LedgerView
from bulkgrpc.consume.report import report
from bulkgrpc.datasets.rows import Rows
from bulkgrpc.model import JobCounts, JobKey, JobSpec, Kind
from bulkgrpc.postgres import apply_task, ledger, multi_lane_jobs, rejections, staged
from bulkgrpc.postgres.connection import Connection
from bulkgrpc.postgres.ledger import Conclusion, JobRow, JobsFound
from bulkgrpc.postgres.multi_lane_jobs import LockedJobs
from bulkgrpc.postgres.writers.table import TableWriter
from bulkgrpc.rejections import Integers, Rejections


class RowsFailed(Exception):
    """The rows of one dataset were not written, and not because of some of them. `__cause__` says why."""

    def __init__(self, dataset: str) -> None:
        super().__init__(dataset)
        self.dataset = dataset


class NotDecoded(Exception):
    """A message is to be applied and was not decoded; nothing was applied. index: of the first such item."""

    def __init__(self, index: int, failure: Failure) -> None:
        super().__init__(failure.message)
        self.index = index
        self.failure = failure


@dataclass(frozen=True, slots=True)
class Work:
    """Messages to apply. groups: their rows by dataset version. deferrals: why some of them are parked instead.

    undecoded: by index, why items are in no group: they may be discarded, rejected or parked, and not applied. ahead:
    on the express path.
    """

    items: Sequence[Received]
    groups: Sequence[Group]
    deferrals: Deferrals
    view: DeferralView
    undecoded: Mapping[int, Failure] = field(default_factory=dict)
    ahead: bool = False


@dataclass(frozen=True, slots=True)
class Effect:
    """What was done for each job, and the seconds that the rows took.

    late_batches: of those jobs that have some. lost: the jobs that fail because Kafka lost batches of them, and the
    reason of each. tasks: how many atomic jobs leave their staged rows to a task. conclusion: what is left to be
    written, before the commit.
    """

    counts: Mapping[JobKey, JobCounts]
    rows_s: float
    conclusion: Conclusion
    late_batches: Mapping[JobKey, int]
    lost: Mapping[JobKey, str]
    tasks: int


def apply(connection: Connection, work: Work, jobs: JobsFound, writer: TableWriter) -> Effect:
    """Apply messages up to `Effect.conclusion`; those that are deferred only get their jobs' rows.

    jobs: those of all messages, locked. Raises NotDecoded, RowsFailed, multi_lane_jobs.PlanOutdated, psycopg.Error, and
    ahead of the main path LeftToMainPath. The caller rolls back then.
    """
    with writer.contracts.one_transaction(connection):
        return _apply(connection, work, jobs, writer)


def _apply(connection: Connection, work: Work, found: JobsFound, writer: TableWriter) -> Effect:
    items = work.items
    found = _open_jobs(connection, work, found)
    jobs = found.rows
    ledger_view = ledger.view(connection, items, found)
    plan = plan_chunk(items, work.deferrals, work.view, ledger_view, datetime.now(UTC))
    if work.ahead and (tenants := left_to_main_path(items, work.deferrals, plan, ledger_view)):
        raise LeftToMainPath(tenants)
    _check_decoded(work, plan, ledger_view)
    applied = _Applied(items, plan, jobs, {job: JobDelta() for job in jobs_of(items)})
    rows_begun_s = time.perf_counter()
    for group in work.groups:
        with _of_dataset(group.rows.dataset.name):
            _write_group(connection, group, applied, writer)
    rows_s = time.perf_counter() - rows_begun_s
    faults.reach("after_rows")
    for index in range(len(items)):
        _count(index, applied)
    late = [(item, fate) for item, fate in zip(items, plan.fates, strict=True) if fate in REPORTED_LATE]
    if (
        applied.rejections
        or late
        or any(work.deferrals)
        or any(row.lanes > 1 or row.atomic for row in jobs.values())
        or connection.info.encoding != "utf-8"
    ):
        # What follows is no part of the rows: reports, parked messages, tasks, locks, savepoints. Else `conclude` does.
        writer.contracts.end_rows(connection)
    locked = multi_lane_jobs.lock(connection, jobs, ledger_view, plan)
    planned = {
        i.message.spec.key: i.message.spec for i, f in zip(items, plan.fates, strict=True) if f is not Fate.DEFERRED
    }
    for spec in planned.values():
        applied.deltas[spec.key].unsealed = spec.key.job_id in locked.unsealed
        _note_loss(spec.key.job_id, plan, locked, applied.deltas[spec.key])
        if spec.key.job_id in jobs:
            _decide(spec, locked.jobs[spec.key.job_id], applied.deltas[spec.key], work.view)
    _report(connection, applied)
    if late:
        ledger.add_late_batches(connection, late, jobs)
    late_batches = {job: delta.late_batches for job, delta in applied.deltas.items() if delta.late_batches}
    lost = {job: delta.failure_reason for job, delta in applied.deltas.items() if delta.lost}
    counts = {job: delta.counts for job, delta in applied.deltas.items()}
    tasks = _leave_to_tasks(connection, applied, locked.jobs)
    # The check of a table bounds the statements that follow; those of the ledger have their usual time.
    conclusion = _conclusion(applied, locked.jobs, writer.contracts.take_end(connection))
    return Effect(counts, rows_s, conclusion, late_batches, lost, tasks)


def _check_decoded(work: Work, plan: LanePlan, ledger_view: LedgerView) -> None:
    """Check that no message is applied that was not decoded: its records would count as duplicates. Raises NotDecoded.

    The seal of a job that has ended, or that an operator discards, seals its lane, whatever else it says.
    """
    for index, failure in sorted(work.undecoded.items()):
        message = work.items[index].message
        job_id = message.spec.key.job_id
        over = job_id in ledger_view.ended or job_id in work.view.discarded_jobs
        if plan.fates[index] is Fate.APPLY and not (message.kind is Kind.SEAL and over):
            raise NotDecoded(index, failure)


@contextmanager
def _of_dataset(name: str) -> Iterator[None]:
    """Raise RowsFailed for whatever fails inside."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:
        # A panic of native code is an exception that is no Exception.
        raise RowsFailed(name) from error


@dataclass(frozen=True, slots=True)
class _Applied:
    """A chunk's messages, what becomes of each, their jobs' rows, what was done for each job, and what was rejected.

    rejections: by index into `items`.
    """

    items: Sequence[Received]
    plan: LanePlan
    jobs: Mapping[uuid.UUID, JobRow]
    deltas: Mapping[JobKey, JobDelta]
    rejections: list[Rejections] = field(default_factory=list)

    def reject(self, found: Rejections) -> None:
        """Reject records, and count them for their jobs."""
        if not len(found):
            return
        self.rejections.append(found)
        for index, count in enumerate(np.bincount(found.payload).tolist()):
            if count:
                self.deltas[self.items[index].message.spec.key].rejected += count


def _open_jobs(connection: Connection, work: Work, found: JobsFound) -> JobsFound:
    """Insert the rows of jobs that begin, and return the locked jobs of the messages that are not deferred.

    Jobs of deferred messages are inserted too, so that they are found.
    """
    begun = [
        item
        for item, reason in zip(work.items, work.deferrals, strict=True)
        if item.message.opens and item.message.spec.key.job_id not in found.rows and reason is not DeferralReason.PASSED
    ]
    # Sorted, as in every worker: the lanes of a job may begin at several workers.
    for item in sorted(begun, key=lambda item: item.message.spec.key.job_id):
        ledger.open_job(connection, item)
    direct = jobs_of([item for item, reason in zip(work.items, work.deferrals, strict=True) if reason is None])
    if begun and direct:
        return ledger.lock_jobs(connection, direct)
    ids = {job.job_id for job in direct}
    return JobsFound({job_id: row for job_id, row in found.rows.items() if job_id in ids}, found.lanes)


def _write_group(connection: Connection, group: Group, applied: _Applied, writer: TableWriter) -> None:
    """Write the rows of a group's batches that apply: into the table, or, for atomic jobs, into the staged rows."""
    indices = np.array(group.items, np.int32)
    items = [applied.items[index] for index in group.items]
    applies = applied.plan.mask(Fate.APPLY)[indices]
    rows = [applied.jobs.get(item.message.spec.key.job_id) for item in items]
    atomic = np.array([row is not None and row.atomic for row in rows], np.bool_)
    for chosen, stages in ((applies & ~atomic, False), (applies & atomic, True)):
        if not chosen.any():
            continue
        kept = group.rows if chosen.all() else group.rows.of_payloads(chosen)
        applied.reject(kept.rejections.renumbered(indices))
        if stages:
            staged.copy(connection, kept, [(item.message.spec.key.job_id, item.message.sequence) for item in items])
        else:
            _write_rows(connection, kept, indices, applied, writer)


def _write_rows(connection: Connection, rows: Rows, indices: Integers, applied: _Applied, writer: TableWriter) -> None:
    """Write rows into their table and count them for their jobs. indices: of each payload, its index in the chunk."""
    items = [applied.items[index] for index in indices.tolist()]
    keys = jobs_of(items)
    number = {job: position for position, job in enumerate(keys)}
    job_of_payload = np.array([number[item.message.spec.key] for item in items], np.int32)
    outcome = writer.write(connection, rows, job_of_payload[rows.payload])
    for job, count in zip(keys, outcome.written.tolist(), strict=False):
        applied.deltas[job].written += count
    for job, count in zip(keys, outcome.skipped.tolist(), strict=False):
        applied.deltas[job].skipped += count
    applied.reject(outcome.rejected.at(rows.payload, rows.record_index).renumbered(indices))


def _count(index: int, applied: _Applied) -> None:
    """Count a message for its job. A batch that may have been acknowledged and is not written is rejected whole.

    One that is late changes no count: its job may have been reported as ended.
    """
    message, fate = applied.items[index].message, applied.plan.fates[index]
    delta = applied.deltas[message.spec.key]
    if fate in (Fate.KNOWN, Fate.LOST, Fate.DEFERRED):
        return
    if message.kind is Kind.SEAL:
        delta.sealed_at = message.sent_at
        return
    if fate in REPORTED_LATE:
        delta.late_batches += 1
        return
    delta.accepted += message.records
    if fate in EXPIRED:
        delta.expired += message.records
    elif fate is not Fate.APPLY:
        applied.reject(Rejections.of_payload(index, message.records, *why_rejected(message, fate)))


def _note_loss(job_id: uuid.UUID, plan: LanePlan, locked: LockedJobs, delta: JobDelta) -> None:
    """Have a job fail if the chunk shows that Kafka lost batches of it."""
    loss = plan.losses.get(job_id)
    if loss is not None:
        # Of an atomic job nothing is kept.
        applied_to = locked.next_sequences.get(job_id, loss.from_sequence)
        delta.failure_reason = loss.reason(0 if locked.jobs[job_id].atomic else applied_to)
        delta.lost = True


def _decide(spec: JobSpec, row: JobRow, delta: JobDelta, view: DeferralView) -> None:
    """Decide whether a job fails here. The staged rows of an atomic job that is sealed are left to a task."""
    if row.state.ended:
        return
    counts = row.counts + delta.counts
    discarded = view.discarded_jobs.get(spec.key.job_id)
    if discarded is None and not delta.lost:
        delta.failure_reason = failure_reason(row.atomic, row.rejections_max, counts.rejected, counts.expired)
    elif discarded is not None and delta.ends_at:
        # Not before its seal: the report is to have every record.
        delta.failure_reason = discarded
    if not row.atomic:
        delta.count_duplicates()
        return
    if not delta.lost and spec.dataset in view.discarding_datasets and (delta.expired or delta.ends_at):
        delta.failure_reason = f"the job is atomic and its parked messages are discarded: {view.discard_reason}"
    # Staged rows of a failed job are deleted by maintenance, in several transactions: there may be very many.
    delta.leave_staged(row.staged)


def _leave_to_tasks(connection: Connection, applied: _Applied, locked: Mapping[uuid.UUID, JobRow]) -> int:
    """Leave the staged rows of atomic jobs to tasks, in the order of their seals; return how many."""
    sealed = dict.fromkeys(i.message.spec.key for i in reversed(applied.items) if i.message.kind is Kind.SEAL)
    left = {job: applied.deltas[job].task_rows for job in reversed(sealed) if applied.deltas[job].task_rows}
    if left:
        apply_task.add(connection, left, locked)
    return len(left)


def _conclusion(applied: _Applied, locked: Mapping[uuid.UUID, JobRow], before: Sequence[str]) -> Conclusion:
    """Return what is to be written of lanes, digests and counts.

    locked: the jobs' rows, which no other worker changes now.
    """
    taken = [
        item.message
        for item, fate in zip(applied.items, applied.plan.fates, strict=True)
        if item.message.kind is Kind.BATCH and fate in TAKEN
    ]
    return Conclusion(
        before,
        ledger.lane_rows(applied.plan.lanes, applied.jobs),
        ledger.batch_rows(taken, applied.jobs),
        ledger.count_rows({job: delta for job, delta in applied.deltas.items() if not delta.is_empty}, locked),
    )


def _report(connection: Connection, applied: _Applied) -> None:
    found = Rejections.concat(applied.rejections)
    if len(found):
        create_days = {job_id: row.create_day for job_id, row in applied.jobs.items()}
        rejections.add(connection, report(applied.items, found, create_days))
