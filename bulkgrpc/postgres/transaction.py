"""The transaction of a chunk: rows, rejections, counts and offsets, committed together or not at all."""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

import numpy as np
import psycopg

from bulkgrpc import faults
from bulkgrpc.consume.assembly import Received, jobs_of
from bulkgrpc.consume.decode import Group, PreparedChunk
from bulkgrpc.consume.job_delta import JobDelta, failure_reason, why_rejected
from bulkgrpc.consume.plan import TAKEN, Fate, LanePlan, plan_lanes
from bulkgrpc.consume.ports import Applied
from bulkgrpc.consume.report import report
from bulkgrpc.datasets.definition import Dataset
from bulkgrpc.datasets.rows import Rows
from bulkgrpc.model import JobKey, JobSpec, Kind
from bulkgrpc.postgres import dedupe, ledger, multi_lane_jobs, rejections, staged
from bulkgrpc.postgres.catalog import get_dataset
from bulkgrpc.postgres.connection import Connection
from bulkgrpc.postgres.ledger import JobRow
from bulkgrpc.postgres.writers.row_errors import is_about_a_row
from bulkgrpc.postgres.writers.savepoint import in_savepoint
from bulkgrpc.postgres.writers.table import TableWriter
from bulkgrpc.rejections import Integers, Rejections


def write_chunk(connection: Connection, topic: str, prepared: PreparedChunk, writer: TableWriter) -> Applied:
    """Apply a chunk in one transaction and commit it.

    Raises NotNext if the ledger does not accept the chunk, psycopg.Error if PostgreSQL fails. Nothing was applied then,
    except where the connection broke during the commit: only the ledger knows.
    """
    missing = False
    while True:
        try:
            return _write_chunk(connection, topic, prepared, writer)
        except multi_lane_jobs.PlanOutdated:
            # Bounded: another worker ends a job once, and advances a lane once per chunk of its own.
            continue
        except psycopg.errors.UndefinedTable:
            # A job with several lanes may have been cancelled, and its dataset deleted, after the chunk was planned.
            if missing:
                raise
            missing = True


def _write_chunk(connection: Connection, topic: str, prepared: PreparedChunk, writer: TableWriter) -> Applied:
    items = prepared.chunk.items
    begun_s = time.perf_counter()
    with connection.transaction():
        ledger.lock_spans(connection, topic, prepared.chunk.spans)
        jobs = _lock_jobs(connection, items)
        view = ledger.view(connection, items, jobs)
        plan = plan_lanes(items, view, datetime.now(UTC))
        work = _Work(items, plan, jobs, {job: JobDelta() for job in jobs_of(items)})
        rows_begun_s = time.perf_counter()
        for group in prepared.groups:
            _write_group(connection, group, work, writer)
        rows_s = time.perf_counter() - rows_begun_s
        faults.reach("after_rows")
        for index in range(len(items)):
            _count(index, work)
        locked = multi_lane_jobs.lock(connection, jobs, view, plan)
        for spec in {item.message.spec.key: item.message.spec for item in items}.values():
            work.deltas[spec.key].unsealed = spec.key.job_id in locked.unsealed
            if spec.key.job_id in jobs:
                _decide(connection, spec, locked.jobs[spec.key.job_id], work.deltas[spec.key])
        with connection.pipeline():
            _conclude(connection, work, locked.jobs)
        _report(connection, work)
        # Not in the pipeline: after one, PostgreSQL 18 does not begin to count the time that a transaction is idle, and
        # a worker that is frozen before its COMMIT would keep its locks for as long as a transaction may take.
        ledger.advance_offsets(connection, topic, prepared.chunk.spans)
        faults.reach("before_commit")
    counts = {job: delta.counts for job, delta in work.deltas.items()}
    return Applied(counts, rows_s, time.perf_counter() - begun_s)


@dataclass(frozen=True, slots=True)
class _Work:
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


def _lock_jobs(connection: Connection, items: Sequence[Received]) -> dict[uuid.UUID, JobRow]:
    """Return the rows of the chunk's jobs; insert the rows of jobs that begin here and have none."""
    keys = jobs_of(items)
    jobs = ledger.lock_jobs(connection, keys)
    begun = [item for item in items if item.message.opens and item.message.spec.key.job_id not in jobs]
    # Sorted, as in every worker: the lanes of a job may begin at several workers.
    for item in sorted(begun, key=lambda item: item.message.spec.key.job_id):
        ledger.open_job(connection, item)
    return ledger.lock_jobs(connection, keys) if begun else jobs


def _write_group(connection: Connection, group: Group, work: _Work, writer: TableWriter) -> None:
    """Write the rows of a group's batches that apply: into the table, or, for atomic jobs, into the staged rows."""
    indices = np.array(group.items, np.int32)
    items = [work.items[index] for index in group.items]
    applies = work.plan.mask(Fate.APPLY)[indices]
    rows = [work.jobs.get(item.message.spec.key.job_id) for item in items]
    atomic = np.array([row is not None and row.atomic for row in rows], np.bool_)
    for chosen, stages in ((applies & ~atomic, False), (applies & atomic, True)):
        if not chosen.any():
            continue
        kept = group.rows if chosen.all() else group.rows.of_payloads(chosen)
        work.reject(kept.rejections.renumbered(indices))
        if stages:
            staged.copy(connection, kept, [(item.message.spec.key.job_id, item.message.sequence) for item in items])
        else:
            _write_rows(connection, kept, indices, work, writer)


def _write_rows(connection: Connection, rows: Rows, indices: Integers, work: _Work, writer: TableWriter) -> None:
    """Write rows into their table and count them for their jobs. indices: of each payload, its index in the chunk."""
    items = [work.items[index] for index in indices.tolist()]
    keys = jobs_of(items)
    number = {job: position for position, job in enumerate(keys)}
    job_of_payload = np.array([number[item.message.spec.key] for item in items], np.int32)
    outcome = writer.write(connection, rows, job_of_payload[rows.payload])
    for job, count in zip(keys, outcome.written.tolist(), strict=False):
        work.deltas[job].written += count
    work.reject(outcome.rejected.at(rows.payload, rows.record_index).renumbered(indices))


def _count(index: int, work: _Work) -> None:
    """Count a message for its job. A batch that may have been acknowledged and is not written is rejected whole."""
    message, fate = work.items[index].message, work.plan.fates[index]
    delta = work.deltas[message.spec.key]
    if fate is Fate.KNOWN:
        return
    if message.kind is Kind.SEAL:
        delta.sealed_at = message.sent_at
        return
    delta.accepted += message.records
    if fate is Fate.DISCARD:
        delta.expired += message.records
    elif fate is not Fate.APPLY:
        work.reject(Rejections.of_payload(index, message.records, *why_rejected(message, fate)))


def _decide(connection: Connection, spec: JobSpec, row: JobRow, delta: JobDelta) -> None:
    """Decide whether a job fails here; apply the staged rows of an atomic job, or expire them, if it ends."""
    if row.state.ended:
        return
    counts = row.counts + delta.counts
    delta.failure_reason = failure_reason(row.atomic, row.rejections_max, counts.rejected, counts.expired)
    if not row.atomic:
        delta.count_duplicates()
    elif delta.failure_reason or delta.ends_at:
        # Staged rows of a failed job are deleted by maintenance, in several transactions: there may be very many.
        written = 0 if delta.failure_reason else _apply_staged(connection, spec, row, delta)
        delta.end_staging(row.staged, written)


def _apply_staged(connection: Connection, spec: JobSpec, row: JobRow, delta: JobDelta) -> int:
    """Move an atomic job's staged rows into its table and return how many were written; or set why the job fails."""
    if not delta.staged_after(row.staged):
        return 0
    # The row's version: the seal may have arrived on a stream with another.
    dataset = get_dataset(connection, spec.dataset, row.dataset_version)
    if dataset is None:
        delta.failure_reason = f"dataset {spec.dataset} version {row.dataset_version} does not exist"
        return 0
    try:
        with connection.transaction():
            # As long as it takes: the limits are those of a chunk. A broken connection still rolls back.
            connection.execute("SET LOCAL statement_timeout = 0")
            connection.execute("SET LOCAL transaction_timeout = 0")
            waiting = delta.staged_after(row.staged) - _delete_known(connection, dataset, spec)
            apply, values = staged.apply(dataset), {"job_id": spec.key.job_id}
            written = in_savepoint(connection, lambda: connection.execute(apply, values).rowcount)
            left = waiting - written
            if dataset.conflict_policy == "reject" and left:
                delta.failure_reason = (
                    f"the job is atomic and {left} of its keys are in the table already, or occur twice"
                )
                raise psycopg.Rollback
            # Under `update` a record that a later one replaces counts as written, as in every writer.
            return waiting if dataset.conflict_policy == "update" else written
    except psycopg.Error as error:
        if not is_about_a_row(error):
            raise
        delta.failure_reason = f"PostgreSQL rejects a row of the job: {error.diag.message_primary or error}"
    return 0


def _delete_known(connection: Connection, dataset: Dataset, spec: JobSpec) -> int:
    """Delete the staged rows whose records are known, remember the others, and return how many were deleted."""
    if not dataset.dedupe_window_s:
        return 0
    generations = dedupe.lock(connection, dataset.name)
    values = {"job_id": spec.key.job_id, "now": generations.now, "since": generations.since}
    return connection.execute(staged.delete_known(dataset, generations), values).rowcount


def _conclude(connection: Connection, work: _Work, locked: Mapping[uuid.UUID, JobRow]) -> None:
    """Write lanes, digests and counts. locked: the jobs' rows, which no other worker changes now."""
    taken = [
        item.message
        for item, fate in zip(work.items, work.plan.fates, strict=True)
        if item.message.kind is Kind.BATCH and fate in TAKEN
    ]
    if work.plan.lanes:
        ledger.advance_lanes(connection, work.plan.lanes, work.jobs)
    if taken:
        ledger.add_batches(connection, taken, work.jobs)
    deltas = {job: delta for job, delta in work.deltas.items() if not delta.is_empty}
    if deltas:
        ledger.add_counts(connection, deltas, locked)


def _report(connection: Connection, work: _Work) -> None:
    found = Rejections.concat(work.rejections)
    if len(found):
        create_days = {job_id: row.create_day for job_id, row in work.jobs.items()}
        rejections.add(connection, report(work.items, found, create_days))
