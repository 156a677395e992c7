"""The transaction of a chunk: rows, rejections, counts and offsets, there whole or not at all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import numpy as np
import psycopg

from bulkgrpc.datasets.rows import RejectedRecord, Rows, record_bytes
from bulkgrpc.errors import Rejected
from bulkgrpc.store import ledger, rejections, statements
from bulkgrpc.store.chunk import Chunk, Group, LanePlan, PreparedChunk, Received, jobs_of, plan_lanes
from bulkgrpc.store.rejections import Rejection
from bulkgrpc.store.writers.ignore import IgnoreWriter, RefusedRow
from bulkgrpc.words import JobCounts, JobKey, Kind, Message

_SQL = statements.family("ledger")
Connection = psycopg.Connection[tuple[Any, ...]]


@dataclass(frozen=True, slots=True)
class Applied:
    """What a committed chunk did for each job."""

    counts: Mapping[JobKey, JobCounts]


@dataclass(slots=True)
class _Tally:
    """What a chunk's groups did so far."""

    counts: dict[JobKey, JobCounts] = field(default_factory=dict)
    rejections: list[Rejection] = field(default_factory=list)

    def add(self, job: JobKey, counts: JobCounts) -> None:
        self.counts[job] = self.counts.get(job, JobCounts()) + counts


def write_chunk(connection: Connection, topic: str, prepared: PreparedChunk, writer: IgnoreWriter) -> Applied:
    """Apply a chunk in one transaction and commit it.

    Raises ledger.NotNext if the ledger does not take the chunk, psycopg.Error if PostgreSQL fails; nothing was applied
    then, but where the connection broke during the commit only the ledger can tell.
    """
    chunk, tally = prepared.chunk, _Tally()
    with connection.transaction():
        ledger.lock_spans(connection, topic, chunk.spans)
        plan = plan_lanes(chunk.items, ledger.lock_lanes(connection, jobs_of(chunk.items)))
        for item, applies in zip(chunk.items, plan.applies, strict=True):
            if applies and item.message.sequence == 0:
                ledger.open_job(connection, item)
        for group in prepared.groups:
            _write_group(connection, chunk, group, plan, writer, tally)
        with connection.pipeline():
            if plan.lanes:
                ledger.advance_lanes(connection, plan.lanes)
                _add_counts(connection, tally.counts, _seal_times(chunk, plan))
            if tally.rejections:
                rejections.add(connection, tally.rejections)
            ledger.advance_offsets(connection, topic, chunk.spans)
    return Applied(tally.counts)


def _write_group(
    connection: Connection, chunk: Chunk, group: Group, plan: LanePlan, writer: IgnoreWriter, tally: _Tally
) -> None:
    """Write the rows of a group's batches that apply, and count what became of them."""
    items = [chunk.items[index] for index in group.items]
    wanted = plan.applies[list(group.items)]
    rows = group.rows if wanted.all() else group.rows.of_payloads(wanted)
    jobs = jobs_of(items)
    number = {job: position for position, job in enumerate(jobs)}
    job_of_payload = np.array([number[item.message.spec.key] for item in items], np.int32)
    outcome = writer.write(connection, rows, job_of_payload[rows.payload])

    records = [*rows.rejected, *(_refused_record(items, rows, refusal) for refusal in outcome.refused)]
    tally.rejections += [_rejection(items[record.payload].message, record) for record in records]
    accepted = np.bincount(
        job_of_payload, [item.message.records if applies else 0 for item, applies in zip(items, wanted, strict=True)]
    )
    rejected = np.bincount(job_of_payload[[record.payload for record in records]], minlength=len(jobs))
    written = np.zeros(len(jobs), np.int64)
    written[: len(outcome.written)] = outcome.written
    for position, job in enumerate(jobs):
        total, good, bad = int(accepted[position]), int(written[position]), int(rejected[position])
        tally.add(job, JobCounts(total, good, total - good - bad, bad))


def _refused_record(items: Sequence[Received], rows: Rows, refusal: RefusedRow) -> RejectedRecord:
    payload, index = int(rows.payload[refusal.row]), int(rows.record_index[refusal.row])
    data = record_bytes(items[payload].payload, index)
    return RejectedRecord(payload, index, Rejected.REFUSED_BY_TABLE, "", refusal.reason, data)


def _rejection(message: Message, record: RejectedRecord) -> Rejection:
    return Rejection(
        message.spec.key.job_id,
        message.sequence,
        record.record_index,
        record.code,
        record.field,
        record.reason,
        record.record,
    )


def _seal_times(chunk: Chunk, plan: LanePlan) -> dict[JobKey, datetime]:
    """Return the jobs whose seal the chunk applies, with the time at which the server took it."""
    return {
        item.message.spec.key: item.message.sent_at
        for item, applies in zip(chunk.items, plan.applies, strict=True)
        if applies and item.message.kind is Kind.SEAL
    }


def _add_counts(
    connection: Connection, counts: Mapping[JobKey, JobCounts], seal_times: Mapping[JobKey, datetime]
) -> None:
    jobs = sorted(counts.keys() | seal_times.keys(), key=lambda job: job.job_id)
    values = [counts.get(job, JobCounts()) for job in jobs]
    connection.execute(
        _SQL["add_counts"],
        {
            "job_ids": [job.job_id for job in jobs],
            "accepted": [value.accepted for value in values],
            "written": [value.written for value in values],
            "duplicate": [value.duplicate for value in values],
            "rejected": [value.rejected for value in values],
            "seal_times": [seal_times.get(job) for job in jobs],
        },
    )
