"""The transactions of the worker: a chunk of the main path, and a slice of parked messages.

Rows, rejections, counts, parked messages and offsets are committed together or not at all.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import psycopg

from bulkgrpc import faults
from bulkgrpc.consume.assembly import Chunk, Received
from bulkgrpc.consume.decode import PreparedChunk, prepare
from bulkgrpc.consume.deferral import DeferralReason, defer
from bulkgrpc.consume.ports import Applied
from bulkgrpc.datasets.codec import BatchCodec
from bulkgrpc.postgres import ledger, multi_lane_jobs, parked
from bulkgrpc.postgres.apply import RowsFailed, Work, apply
from bulkgrpc.postgres.connection import Connection
from bulkgrpc.postgres.parked import Selection
from bulkgrpc.postgres.writers.table import TableWriter


def write_chunk(connection: Connection, topic: str, prepared: PreparedChunk, writer: TableWriter) -> Applied:
    """Apply a chunk in one transaction and commit it.

    Raises NotNext if the ledger does not accept the chunk, RowsFailed if the rows of a dataset cannot be written,
    psycopg.Error if PostgreSQL fails. Nothing was applied then, except where the connection broke during the commit:
    only the ledger knows.
    """
    missing = False
    while True:
        try:
            return _write_chunk(connection, topic, prepared, writer)
        except multi_lane_jobs.PlanOutdated:
            # Bounded: another worker ends a job once, and advances a lane once per chunk of its own.
            continue
        except RowsFailed as error:
            # A job with several lanes may have been cancelled, and its dataset deleted, after the chunk was planned.
            if missing or not isinstance(error.__cause__, psycopg.errors.UndefinedTable):
                raise
            missing = True


def _write_chunk(connection: Connection, topic: str, prepared: PreparedChunk, writer: TableWriter) -> Applied:
    items = prepared.chunk.items
    begun_s = time.perf_counter()
    with connection.transaction():
        ledger.lock_spans(connection, topic, prepared.chunk.spans)
        view = parked.view(connection, topic, items)
        deferrals = defer(items, view, prepared.undecoded)
        effect = apply(connection, Work(items, prepared.groups, deferrals, view), writer)
        deferred = [item for item, reason in zip(items, deferrals, strict=True) if reason is not None]
        if deferred:
            parked.park(connection, topic, deferred)
        # Not in a pipeline: after one, PostgreSQL 18 does not begin to count the time that a transaction is idle, and a
        # worker that is frozen before its COMMIT would keep its locks for as long as a transaction may take.
        ledger.advance_offsets(connection, topic, prepared.chunk.spans)
        faults.reach("before_commit")
    return Applied(effect.counts, effect.rows_s, time.perf_counter() - begun_s, len(deferred))


class SliceAborted(Exception):
    """A slice of parked messages was not applied; nothing of it was. `__cause__` says why."""

    def __init__(self, items: Sequence[Received], dataset: str = "") -> None:
        super().__init__(dataset)
        self.items = items
        self.dataset = dataset


@dataclass(frozen=True, slots=True)
class Drain:
    """How parked messages are applied. codec_of: as for `decode.prepare`. selection: which, of which partition."""

    topic: str
    selection: Selection
    codec_of: Callable[[str, int], BatchCodec]


def drain_slice(connection: Connection, drain: Drain, writer: TableWriter) -> int:
    """Apply the first parked messages of a partition that may be applied, delete them and commit; return how many.

    0: there are none, or another worker drains the partition. Raises SliceAborted.
    """
    items: Sequence[Received] = ()
    try:
        while True:
            try:
                with connection.transaction():
                    items = parked.select(connection, drain.topic, drain.selection)
                    if items:
                        _apply_slice(connection, drain, items, writer)
                return len(items)
            except multi_lane_jobs.PlanOutdated:
                continue
    except RowsFailed as error:
        raise SliceAborted(items, error.dataset) from error.__cause__
    except psycopg.Error as error:
        raise SliceAborted(items) from error


def _apply_slice(connection: Connection, drain: Drain, items: Sequence[Received], writer: TableWriter) -> None:
    prepared = prepare(Chunk((), tuple(items), sum(item.message.records for item in items)), drain.codec_of)
    for dataset, failure in prepared.undecodable.items():
        raise RowsFailed(dataset) from parked.Undecodable(failure)
    view = parked.drain_view(connection, items, drain.selection)
    nothing: tuple[DeferralReason | None, ...] = (None,) * len(items)
    apply(connection, Work(items, prepared.groups, nothing, view), writer)
    parked.delete(connection, drain.topic, items)
