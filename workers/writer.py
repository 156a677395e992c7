"""The writing thread: owns the connection to PostgreSQL; takes prepared chunks, writes each until the ledger has it."""

from __future__ import annotations

import contextlib
import queue
import threading
from dataclasses import dataclass

import psycopg
import structlog

from bulkgrpc.backoff import Backoff
from bulkgrpc.consume.decode import PreparedChunk
from bulkgrpc.consume.ports import Applied, NotNext
from bulkgrpc.model import Outcome
from bulkgrpc.postgres import ledger
from bulkgrpc.postgres.connection import connect
from bulkgrpc.postgres.transaction import write_chunk
from bulkgrpc.postgres.writers.table import TableWriter
from bulkgrpc.settings import WorkerSettings

log = structlog.get_logger()

CHUNKS_WAITING_MAX = 1
"""Prepared chunks that wait while one is written: enough to keep PostgreSQL busy, and a bound on memory."""

TIMEOUTS = (psycopg.errors.QueryCanceled, psycopg.errors.TransactionTimeout)
TIMEOUTS_MAX = 2
"""After so many a chunk is taken to be too large for the time that a transaction has."""


@dataclass(frozen=True, slots=True)
class Result:
    """What became of a chunk. applied: None if it was not written, as `refusal` says, or as it takes too long."""

    prepared: PreparedChunk
    applied: Applied | None
    refusal: NotNext | None = None


class ChunkWriter:
    """Writes chunks in the order in which they are submitted; results come in the same order. Start once, stop once."""

    def __init__(self, settings: WorkerSettings, stopping: threading.Event) -> None:
        self._settings = settings
        self._stopping = stopping
        self._chunks: queue.Queue[PreparedChunk | None] = queue.Queue(CHUNKS_WAITING_MAX)
        self._results: queue.SimpleQueue[Result | BaseException] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="chunk-writer", daemon=True)
        self._connection: ledger.Connection | None = None
        self._writer = TableWriter()
        self.outstanding = 0

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def submit(self, prepared: PreparedChunk) -> None:
        """Hand a chunk over. At most CHUNKS_WAITING_MAX + 1 may be outstanding."""
        self._chunks.put_nowait(prepared)
        self.outstanding += 1

    @property
    def has_room(self) -> bool:
        """Whether `submit` would take a chunk."""
        return self.outstanding <= CHUNKS_WAITING_MAX and not self._chunks.full()

    def result(self, timeout_s: float) -> Result | None:
        """Return the next result, or None if there is none within `timeout_s`.

        Raises what ended the thread.
        """
        try:
            result = self._results.get(timeout=timeout_s) if timeout_s > 0 else self._results.get_nowait()
        except queue.Empty:
            return None
        if isinstance(result, BaseException):
            raise result
        self.outstanding -= 1
        return result

    def stop(self, timeout_s: float) -> None:
        """End the thread once what it has is written, or `timeout_s` is over."""
        with contextlib.suppress(queue.Full):
            self._chunks.put(None, timeout=timeout_s)
        self._thread.join(timeout_s)

    def _run(self) -> None:
        try:
            while (prepared := self._chunks.get()) is not None:
                self._results.put(self._write(prepared))
        except BaseException as error:  # noqa: BLE001 — the thread's root: the poller raises it
            self._results.put(error)
        finally:
            self._disconnect()

    def _write(self, prepared: PreparedChunk) -> Result:
        """Write a chunk, however often PostgreSQL fails in between; one that it ended for its time is given back."""
        backoff = Backoff()
        tried, timeouts = False, 0
        while True:
            try:
                connection = self._connected()
                return Result(prepared, write_chunk(connection, self._settings.topic, prepared, self._writer))
            except NotNext as refusal:
                if tried and _committed(prepared, refusal):
                    # The connection broke during the commit, and the commit had gone through.
                    return Result(prepared, Applied({}))
                return Result(prepared, None, refusal)
            except (psycopg.OperationalError, psycopg.InternalError, psycopg.InterfaceError) as error:
                tried = True
                timeouts += isinstance(error, TIMEOUTS)
                log.warning("postgres_unavailable", error=str(error).strip(), retry_in_s=round(backoff.next_s, 2))
                self._disconnect()
                if timeouts == TIMEOUTS_MAX:
                    return Result(prepared, None)
                if self._stopping.wait(backoff.take()):
                    return Result(prepared, None, NotNext({}, {}))

    def _connected(self) -> ledger.Connection:
        if self._connection is None or self._connection.closed:
            self._connection = connect(self._settings.postgres, "bulkgrpc-worker")
            # The same few statements a chunk: to plan each anew, over all days, takes longer than to run it.
            self._connection.execute("SET plan_cache_mode = force_generic_plan")
        return self._connection

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def _committed(prepared: PreparedChunk, refusal: NotNext) -> bool:
    """Tell whether the ledger stands at the chunk's ends under the chunk's owner: it was applied before."""
    return all(
        refusal.outcomes.get(span.partition) is Outcome.REPLAY
        and refusal.ledger[span.partition].next_offset == span.to_offset
        for span in prepared.chunk.spans
    )
