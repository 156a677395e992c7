"""The transaction of a chunk: rows, rejections, counts and offsets, there whole or not at all."""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
import psycopg
from google.protobuf.message import DecodeError

from bulkgrpc import faults
from bulkgrpc.consume.assembly import Received, jobs_of
from bulkgrpc.consume.decode import Group, PreparedChunk
from bulkgrpc.consume.job_delta import JobDelta, failure, why_refused
from bulkgrpc.consume.plan import TAKEN, Fate, LanePlan, plan_lanes
from bulkgrpc.consume.ports import Applied
from bulkgrpc.datasets.definition import Dataset
from bulkgrpc.datasets.rows import RejectedRecord, Rows, record_bytes
from bulkgrpc.model import JobKey, JobSpec, Kind
from bulkgrpc.postgres import dedupe, ledger, rejections, shared, staged
from bulkgrpc.postgres.catalog import get_dataset
from bulkgrpc.postgres.ledger import JobRow
from bulkgrpc.postgres.writers.around import ROW_ERRORS, unless_partitioned_anew
from bulkgrpc.postgres.writers.table import TableWriter
from bulkgrpc.postgres.writers.written import RefusedRow
from bulkgrpc.v1.ingest_pb2 import RecordBatch

Connection = psycopg.Connection[tuple[Any, ...]]


def write_chunk(connection: Connection, topic: str, prepared: PreparedChunk, writer: TableWriter) -> Applied:
    """Apply a chunk in one transaction and commit it.

    Raises NotNext if the ledger does not take the chunk, psycopg.Error if PostgreSQL fails; nothing was applied
    then, but where the connection broke during the commit only the ledger can tell.
    """
    missing = False
    while True:
        try:
            return _write_chunk(connection, topic, prepared, writer)
        except shared.Overtaken:
            # Another worker ends a job, or moves its lane on, only so often.
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
        for item, fate in zip(items, plan.fates, strict=True):
            _count(item, fate, work.deltas[item.message.spec.key])
        held_jobs = shared.hold(connection, jobs, view, plan)
        for spec in {item.message.spec.key: item.message.spec for item in items}.values():
            work.deltas[spec.key].unsealed = spec.key.job_id in held_jobs.unsealed
            if spec.key.job_id in jobs:
                _decide(connection, spec, held_jobs.jobs[spec.key.job_id], work.deltas[spec.key])
        with connection.pipeline():
            _conclude(connection, work)
        # Not in the pipeline: after one, PostgreSQL 18 does not begin to count the time that a transaction is idle, and
        # a worker that is frozen before its COMMIT would keep its locks for as long as a transaction may take.
        ledger.advance_offsets(connection, topic, prepared.chunk.spans)
        faults.reach("before_commit")
    counts = {job: done.counts for job, done in work.deltas.items()}
    return Applied(counts, rows_s, time.perf_counter() - begun_s)


@dataclass(frozen=True, slots=True)
class _Work:
    """A chunk's messages, what becomes of each, the rows of their jobs, and what was done for each job so far."""

    items: Sequence[Received]
    plan: LanePlan
    jobs: Mapping[uuid.UUID, JobRow]
    deltas: Mapping[JobKey, JobDelta]


def _lock_jobs(connection: Connection, items: Sequence[Received]) -> dict[uuid.UUID, JobRow]:
    """Return the rows of the chunk's jobs; those that begin here and have none yet are made."""
    keys = jobs_of(items)
    jobs = ledger.lock_jobs(connection, keys)
    begun = [item for item in items if item.message.opens and item.message.spec.key.job_id not in jobs]
    # In one order for all: the lanes of a job may begin at several workers.
    for item in sorted(begun, key=lambda item: item.message.spec.key.job_id):
        ledger.open_job(connection, item)
    return ledger.lock_jobs(connection, keys) if begun else jobs


def _write_group(connection: Connection, group: Group, work: _Work, writer: TableWriter) -> None:
    """Write the rows of a group's batches that apply: into the table, or, of atomic jobs, where they are staged."""
    indices = list(group.items)
    items = [work.items[index] for index in indices]
    applies = work.plan.mask(Fate.APPLY)[indices]
    rows = [work.jobs.get(item.message.spec.key.job_id) for item in items]
    atomic = np.array([row is not None and row.atomic for row in rows], np.bool_)
    for chosen, holds in ((applies & ~atomic, False), (applies & atomic, True)):
        if not chosen.any():
            continue
        kept = group.rows if chosen.all() else group.rows.of_payloads(chosen)
        records = [*kept.rejected]
        if holds:
            staged.copy(connection, kept, [(item.message.spec.key.job_id, item.message.sequence) for item in items])
        else:
            records += _write_rows(connection, kept, items, work, writer)
        for record in records:
            message = items[record.payload].message
            work.deltas[message.spec.key].reject(message, record)


def _write_rows(
    connection: Connection, rows: Rows, items: Sequence[Received], work: _Work, writer: TableWriter
) -> list[RejectedRecord]:
    """Write rows into their table, count them for their jobs, and return those that it refuses."""
    keys = jobs_of(items)
    number = {job: position for position, job in enumerate(keys)}
    job_of_payload = np.array([number[item.message.spec.key] for item in items], np.int32)
    outcome = writer.write(connection, rows, job_of_payload[rows.payload])
    for job, count in zip(keys, outcome.written.tolist(), strict=False):
        work.deltas[job].written += count
    return [_refused_record(items, rows, refusal) for refusal in outcome.refused]


def _refused_record(items: Sequence[Received], rows: Rows, refusal: RefusedRow) -> RejectedRecord:
    payload, index = int(rows.payload[refusal.row]), int(rows.record_index[refusal.row])
    data = record_bytes(items[payload].payload, index)
    return RejectedRecord(payload, index, refusal.code, "", refusal.reason, data)


def _count(item: Received, fate: Fate, done: JobDelta) -> None:
    """Count a message for its job. A batch that may have been acknowledged and is not written is reported whole."""
    message = item.message
    if fate is Fate.KNOWN:
        return
    if message.kind is Kind.SEAL:
        done.sealed_at = message.sent_at
        return
    done.accepted += message.records
    if fate is Fate.DISCARD:
        done.expired += message.records
    elif fate is not Fate.APPLY:
        code, reason = why_refused(message, fate)
        for index, record in enumerate(_records(item)):
            done.reject(message, RejectedRecord(0, index, code, "", reason, record))


def _records(item: Received) -> list[bytes]:
    """Return a batch's records; if they are not what its server counted, its bytes as the first of so many."""
    try:
        records = list(RecordBatch.FromString(item.payload).records)
    except DecodeError:
        records = []
    count = item.message.records
    return records if len(records) == count else [item.payload, *[b""] * count][:count]


def _decide(connection: Connection, spec: JobSpec, row: JobRow, done: JobDelta) -> None:
    """Decide whether a job fails here; apply or discard what an atomic one holds, if its end has come."""
    if row.state.ended:
        return
    done.failure = failure(row.atomic, row.rejections_max, row.rejected + done.rejected, row.expired + done.expired)
    if not row.atomic:
        done.settle()
    elif done.failure or done.ends_at:
        # What it holds is of no meaning once it has ended; housekeeping sweeps it, in pieces: there may be very much.
        written = 0 if done.failure else _apply_held(connection, spec, row, done)
        done.release(row.staged, written)


def _apply_held(connection: Connection, spec: JobSpec, row: JobRow, done: JobDelta) -> int:
    """Move what an atomic job holds into its table and return how many rows that were; or say why it fails."""
    if not done.waiting(row.staged):
        return 0
    # The row's version: the seal may have come on a stream with another.
    dataset = get_dataset(connection, spec.dataset, row.dataset_version)
    if dataset is None:
        done.failure = f"dataset {spec.dataset} version {row.dataset_version} is gone"
        return 0
    try:
        with connection.transaction():
            # As long as it takes: the transaction's own time-out is meant for chunks, and rolls back all the same.
            connection.execute("SET LOCAL statement_timeout = 0")
            connection.execute("SET LOCAL transaction_timeout = 0")
            waiting = done.waiting(row.staged) - _drop_known(connection, dataset, spec)
            apply, values = staged.apply(dataset), {"job_id": spec.key.job_id}
            written = unless_partitioned_anew(connection, lambda: connection.execute(apply, values).rowcount)
            there = waiting - written
            if dataset.conflict == "reject" and there:
                done.failure = f"the job is atomic and {there} of its keys are in the table already, or come twice"
                raise psycopg.Rollback
            # Under `update` a record that a later one replaces counts as written, as everywhere.
            return waiting if dataset.conflict == "update" else written
    except ROW_ERRORS as error:
        done.failure = f"the table refuses the job: {error.diag.message_primary or error}"
    return 0


def _drop_known(connection: Connection, dataset: Dataset, spec: JobSpec) -> int:
    """Drop from what an atomic job holds the records that are known, remember the others, and return how many went."""
    if not dataset.dedupe_window_s:
        return 0
    halves = dedupe.take(connection, dataset.name)
    values = {"job_id": spec.key.job_id, "now": halves.now, "since": halves.since}
    return connection.execute(staged.drop_known(dataset, halves), values).rowcount


def _conclude(connection: Connection, work: _Work) -> None:
    """Tell the ledger, the jobs and the report what was done."""
    taken = [
        item.message
        for item, fate in zip(work.items, work.plan.fates, strict=True)
        if item.message.kind is Kind.BATCH and fate in TAKEN
    ]
    if work.plan.lanes:
        ledger.advance_lanes(connection, work.plan.lanes, work.jobs)
    if taken:
        ledger.add_batches(connection, taken, work.jobs)
    done = {job: delta for job, delta in work.deltas.items() if not delta.nothing}
    if done:
        ledger.add_counts(connection, done, work.jobs)
    reported = [rejection for delta in done.values() for rejection in delta.rejections]
    if reported:
        rejections.add(connection, reported, {job_id: row.create_day for job_id, row in work.jobs.items()})
