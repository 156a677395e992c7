"""The transactions of the worker: a chunk of the main path or of the express path, and a slice of parked messages.

Rows, rejections, counts, parked messages and offsets are committed together or not at all.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import psycopg

from bulkgrpc import faults
from bulkgrpc.consume.assembly import Chunk, Received, jobs_of
from bulkgrpc.consume.decode import DecodableChunk, PreparedChunk, prepare
from bulkgrpc.consume.deferral import DeferralReason, Deferrals, DeferralView, QueueKey, defer, eligible
from bulkgrpc.consume.express import check_deferrals_ahead, check_jobs_ahead, defer_ahead
from bulkgrpc.consume.failures import Consequence, Failure, classify
from bulkgrpc.consume.ports import Applied, WriteFailed
from bulkgrpc.datasets.codec import BatchCodec
from bulkgrpc.model import JobKey
from bulkgrpc.postgres import ledger, multi_lane_jobs, parked
from bulkgrpc.postgres.apply import NotDecoded, RowsFailed, Work, apply
from bulkgrpc.postgres.connection import Connection, meanwhile, rolled_back_after_a_failure
from bulkgrpc.postgres.parked import MessageReader, Undecodable
from bulkgrpc.postgres.pooler import begin_statements
from bulkgrpc.postgres.writers.table import TableWriter


def write_chunk(
    connection: Connection, topic: str, chunk: DecodableChunk, writer: TableWriter, blocked: Collection[str] = ()
) -> Applied:
    """Apply a chunk in one transaction and commit it. A chunk that is not decoded is decoded while PostgreSQL begins.

    blocked: datasets whose messages are parked whatever the store says. Raises NotNext if the ledger does not accept
    the chunk, WriteFailed if a dataset that is not blocked cannot be decoded, RowsFailed if the rows of one cannot be
    written, psycopg.Error if PostgreSQL fails. Nothing was applied then, except where the connection broke during the
    commit: only the ledger knows.
    """
    missing = False
    while True:
        try:
            return _write_chunk(connection, topic, chunk, writer, blocked)
        except multi_lane_jobs.PlanOutdated:
            # Bounded: another worker ends a job once, and advances a lane once per chunk of its own.
            continue
        except RowsFailed as error:
            # A job with several lanes may have been cancelled, and its dataset deleted, after the chunk was planned.
            if missing or not isinstance(error.__cause__, psycopg.errors.UndefinedTable):
                raise
            missing = True


def _write_chunk(
    connection: Connection, topic: str, chunk: DecodableChunk, writer: TableWriter, blocked: Collection[str]
) -> Applied:
    items, spans = chunk.chunk.items, chunk.chunk.spans
    begun_s = time.perf_counter()
    with rolled_back_after_a_failure(connection):
        view, jobs = _begin(connection, topic, chunk)
        prepared = chunk.prepared
        _check_decodable(prepared, blocked)
        view = replace(view, blocked_datasets=view.blocked_datasets.union(blocked))
        deferrals = defer(items, view, prepared.undecoded, prepared.unreadable)
        effect = apply(connection, Work(items, prepared.groups, deferrals, view), jobs, writer)
        deferred = [item for item, reason in zip(items, deferrals, strict=True) if reason is not None]
        if deferred:
            parked.park(connection, topic, deferred)
        unreadable = _unreadable(prepared, deferrals)
        if unreadable:
            parked.block_jobs(connection, {job.job_id: failure for job, failure in unreadable.items()})
        faults.reach("before_commit")
        ledger.conclude(connection, effect.conclusion, topic, spans, commits=True)
    total_s = time.perf_counter() - begun_s
    return Applied(
        effect.counts,
        effect.rows_s,
        total_s,
        len(deferred),
        effect.late_batches,
        unreadable,
        effect.lost,
        effect.tasks,
    )


def _check_decodable(prepared: PreparedChunk, blocked: Collection[str]) -> None:
    for failure in prepared.undecodable.values():
        if failure.dataset not in blocked:
            raise WriteFailed(failure)


def _unreadable(prepared: PreparedChunk, deferrals: Deferrals) -> dict[JobKey, Failure]:
    """Return the jobs of messages that cannot be read, and why. What is parked behind others is read again later."""
    return {
        prepared.chunk.items[index].message.spec.key: failure
        for index, failure in prepared.unreadable.items()
        if deferrals[index] is DeferralReason.UNREADABLE
    }


_AHEAD_LOCK_TIMEOUT = "SET LOCAL lock_timeout = '1s'"
"""The main path may have a job for as long as a chunk takes."""


def write_ahead(connection: Connection, topic: str, prepared: PreparedChunk, writer: TableWriter) -> Applied:
    """Apply messages before the main path comes to them, in one transaction, and commit it. The offsets stay.

    Raises LeftToMainPath if some of them may not be applied ahead, NotNext if a partition has another owner, else as
    `write_chunk`. No offset is locked: neither path waits for the other, unless they are at the same job.
    """
    items = prepared.chunk.items
    begun_s = time.perf_counter()
    # Before their jobs are locked: a drain may have one for a minute, and then a message of its queue is parked.
    check_deferrals_ahead(items, defer(items, parked.view(connection, topic, items, main_path=True)))
    with rolled_back_after_a_failure(connection):
        deferrals, view, jobs, locked = _begin_ahead(
            connection, topic, prepared, *begin_statements(connection), _AHEAD_LOCK_TIMEOUT
        )
        begun = [
            item
            for item, reason in zip(items, deferrals, strict=True)
            if item.message.opens and item.message.spec.key.job_id not in jobs.rows and reason is None
        ]
        if begun:
            for item in sorted(begun, key=lambda item: item.message.spec.key.job_id):
                ledger.open_job(connection, item)
            # The main path may have come to these jobs before their rows were there to be locked.
            deferrals, view, jobs, locked = _begin_ahead(connection, topic, prepared)
        # The main path may have created the row of another job since the jobs were locked.
        check_jobs_ahead(items, deferrals, {job_id: row.lanes for job_id, row in jobs.rows.items() if job_id in locked})
        effect = apply(connection, Work(items, prepared.groups, deferrals, view, ahead=True), jobs, writer)
        faults.reach("before_commit")
        ledger.conclude(connection, effect.conclusion, commits=True)
    return Applied(effect.counts, effect.rows_s, time.perf_counter() - begun_s, tasks=effect.tasks)


def _begin_ahead(
    connection: Connection, topic: str, prepared: PreparedChunk, *before: str
) -> tuple[Deferrals, DeferralView, ledger.JobsFound, frozenset[uuid.UUID]]:
    """Lock the jobs of the express path, and return what is known of them then, and which are locked.

    The order matters: what is read once no other transaction is at these jobs shows all that was done to them; and what
    the main path has passed, by its offset, is parked in the view if it is parked.
    """
    chunk = prepared.chunk
    jobs = ledger.jobs_values(jobs_of(chunk.items))
    locked, offsets, view, found = _send(
        connection,
        (ledger.LOCK_JOBS_ALONE, jobs),
        (ledger.READ_OFFSETS, ledger.offsets_values(topic, chunk.spans)),
        (parked.VIEW, parked.view_values(topic, chunk.items, main_path=True)),
        (ledger.LOCK_JOBS, jobs),
        before=before,
    )
    viewed = parked.view_of_rows(view)
    positions = ledger.positions(offsets, chunk.spans)
    deferrals = defer_ahead(chunk.items, viewed, prepared.undecoded, positions)
    return deferrals, viewed, ledger.jobs_of_rows(found), frozenset(job_id for (job_id,) in locked)


def _begin(connection: Connection, topic: str, chunk: DecodableChunk) -> tuple[DeferralView, ledger.JobsFound]:
    """Begin a chunk's transaction: lock its partitions and jobs, and read what is known of them. Raises NotNext.

    Cost: one round trip. Each statement sees what was committed before it began: the view is read under the lock on the
    offsets, because a drain may have emptied a queue while this transaction waited for them.
    """
    items, spans = chunk.chunk.items, chunk.chunk.spans
    with meanwhile(connection, lambda: chunk.prepared):
        offsets, view, jobs = _send(
            connection,
            (ledger.LOCK_OFFSETS, ledger.offsets_values(topic, spans)),
            (parked.VIEW, parked.view_values(topic, items, main_path=True)),
            (ledger.LOCK_JOBS, ledger.jobs_values(jobs_of(items))),
            before=begin_statements(connection),
        )
    ledger.check_spans(offsets, spans)
    return parked.view_of_rows(view), ledger.jobs_of_rows(jobs)


def _send(
    connection: Connection, *statements: tuple[bytes, Mapping[str, Any]], before: Sequence[str] = ()
) -> Sequence[Sequence[ledger.Row]]:
    """Execute statements in one message; return the rows of each. before: statements whose rows nothing reads.

    One message and not a pipeline: after a pipeline, PostgreSQL 18 does not count how long a transaction is idle, and a
    worker that is frozen would keep its locks for as long as a transaction may take.
    """
    binding = psycopg.ClientCursor(connection)
    message = "; ".join([*before, *(binding.mogrify(statement, values) for statement, values in statements)])
    # A cursor's: the message begins its transaction itself.
    cursor = connection.cursor().execute(message.encode(connection.info.encoding), prepare=False)
    for _ in before:
        cursor.nextset()
    found = [cursor.fetchall()]
    while cursor.nextset():
        found.append(cursor.fetchall())
    return found


class SliceAborted(Exception):
    """A slice of parked messages was not applied; nothing of it was. `__cause__` says why.

    dataset: whose rows failed; empty if the failure is not of the rows.
    """

    def __init__(self, items: Sequence[Received], dataset: str = "") -> None:
        super().__init__(dataset)
        self.items = items
        self.dataset = dataset


@dataclass(frozen=True, slots=True)
class Drain:
    """How a queue is drained. codec_of: as for `decode.prepare`. trial: although its dataset is blocked.

    merges: if the slice is all of the queue, keep the main path away meanwhile, so that it finds the queue empty.
    """

    topic: str
    queue: QueueKey
    messages_max: int
    codec_of: Callable[[str, int], BatchCodec]
    read: MessageReader
    trial: bool = False
    merges: bool = False

    def select(self, connection: Connection) -> Sequence[Received]:
        """Return the next slice of the queue."""
        return parked.select(connection, self.topic, self.queue, self.messages_max, self.read)


def drain_slice(connection: Connection, drain: Drain, writer: TableWriter) -> int:
    """Apply the first parked messages of a queue that may be applied, delete them and commit; return how many.

    A trial that succeeds lifts the block of the dataset in the same transaction. 0: there are none, or another worker
    drains the queue. Raises SliceAborted, NewerFormat.
    """
    items: Sequence[Received] = ()
    try:
        items = drain.select(connection)
        if not items:
            return 0
        prepared = _prepare(items, drain)
        # If nothing else is parked in the queue, the main path is kept away, so that the queue is empty afterwards: for
        # progress, not for safety.
        last = drain.merges and not parked.has_others(connection, drain.topic, drain.queue, items)
        while True:
            try:
                with connection.transaction():
                    if last and parked.lock_offset(connection, drain.topic, drain.queue.partition):
                        selected = drain.select(connection)
                        if [item.offset for item in selected] != [item.offset for item in items]:
                            # These are what a failure is about from here on.
                            items = selected
                            prepared = _prepare(items, drain)
                    return _drain(connection, drain, prepared, writer)
            except multi_lane_jobs.PlanOutdated:
                continue
            except NotDecoded as error:
                if classify(error.failure) is not Consequence.BLOCK_JOB:
                    raise RowsFailed(error.failure.dataset) from Undecodable(error.failure)
                if error.index == 0:
                    raise SliceAborted(items[:1]) from Undecodable(error.failure)
                # What is before the message that cannot be read need not wait for it.
                items, last = items[: error.index], False
                prepared = _prepare(items, drain)
    except RowsFailed as error:
        raise SliceAborted(items, error.dataset) from error.__cause__
    except psycopg.Error as error:
        raise SliceAborted(items) from error


def _drain(connection: Connection, drain: Drain, prepared: PreparedChunk, writer: TableWriter) -> int:
    """Apply a slice in the caller's transaction."""
    items = prepared.chunk.items
    if not items or not parked.lock_queue(connection, drain.topic, drain.queue):
        return 0
    view = parked.view(connection, drain.topic, items, main_path=False)
    discards = bool(view.discarding_datasets)
    if drain.trial:
        if discards:
            # A trial has to write.
            return 0
        view = view.on_trial(drain.queue.dataset)
    # Messages may have been applied, or blocked, since they were selected.
    if not all(eligible(items, view)) or not parked.lock_slice(connection, drain.topic, drain.queue, items):
        return 0
    groups = () if discards else prepared.groups
    jobs = ledger.lock_jobs(connection, jobs_of(items))
    work = Work(items, groups, (None,) * len(items), view, prepared.undecoded)
    effect = apply(connection, work, jobs, writer)
    ledger.conclude(connection, effect.conclusion)
    parked.delete(connection, drain.topic, items)
    if discards:
        lost = [job.job_id for job, counts in effect.counts.items() if counts.expired]
        parked.explain_discard(connection, lost, view.discard_reason)
        parked.end_discards(connection, drain.topic)
    if view.discarded_jobs:
        parked.end_job_discards(connection, view.discarded_jobs)
    if drain.trial:
        parked.unblock_dataset(connection, drain.queue.dataset)
    return len(items)


def _prepare(items: Sequence[Received], drain: Drain) -> PreparedChunk:
    return prepare(Chunk((), tuple(items), sum(item.message.records for item in items)), drain.codec_of)
