"""The writing thread: writes each chunk, with retries, until the failure table decides otherwise."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import structlog

from bulkgrpc.backoff import Backoff
from bulkgrpc.consume.decode import PreparedChunk
from bulkgrpc.consume.failures import Action, action_for, action_for_not_next
from bulkgrpc.consume.ports import Applied, ChunkWriter, NotNext, WriteFailed
from bulkgrpc.model import Outcome

log = structlog.get_logger()

CHUNKS_QUEUED_MAX = 1
"""Prepared chunks that wait while another is written: enough to keep PostgreSQL busy, and a bound on memory."""


@dataclass(frozen=True, slots=True)
class NotApplied:
    """A chunk was not applied, and what to do about it. outcomes: what the ledger reported, if it did."""

    action: Action
    outcomes: Mapping[int, Outcome] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Result:
    """What became of a chunk."""

    prepared: PreparedChunk
    outcome: Applied | NotApplied


class ChunkQueue(Protocol):
    """What the poll loop needs of the writing thread. outstanding: chunks submitted whose results were not taken."""

    @property
    def outstanding(self) -> int: ...  # noqa: D102
    @property
    def has_room(self) -> bool: ...  # noqa: D102
    def start(self) -> None: ...  # noqa: D102
    def submit(self, prepared: PreparedChunk) -> None: ...  # noqa: D102
    def result(self, timeout_s: float) -> Result | None: ...  # noqa: D102
    def stop(self, timeout_s: float) -> None: ...  # noqa: D102


class WriterThread:
    """Writes chunks in the order of `submit`; results come in the same order. Implements `ChunkQueue`.

    Start once, stop once.
    """

    def __init__(self, writer: ChunkWriter, stopping: threading.Event) -> None:
        self._writer = writer
        self._stopping = stopping
        self._chunks: queue.Queue[PreparedChunk | None] = queue.Queue(CHUNKS_QUEUED_MAX)
        self._results: queue.SimpleQueue[Result | BaseException] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="chunk-writer", daemon=True)
        self.outstanding = 0

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def submit(self, prepared: PreparedChunk) -> None:
        """Queue a chunk. At most CHUNKS_QUEUED_MAX + 1 may be outstanding."""
        self._chunks.put_nowait(prepared)
        self.outstanding += 1

    @property
    def has_room(self) -> bool:
        """Whether `submit` would accept a chunk."""
        return self.outstanding <= CHUNKS_QUEUED_MAX and not self._chunks.full()

    def result(self, timeout_s: float) -> Result | None:
        """Return the next result, or None if there is none within `timeout_s`.

        Raises the exception that ended the thread.
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
        """Stop the thread after the queued chunks, or after `timeout_s`."""
        with contextlib.suppress(queue.Full):
            self._chunks.put(None, timeout=timeout_s)
        self._thread.join(timeout_s)

    def _run(self) -> None:
        try:
            while (prepared := self._chunks.get()) is not None:
                self._results.put(Result(prepared, self._write(prepared)))
        except BaseException as error:  # noqa: BLE001 — the thread's root: `result` raises it in the poll loop
            self._results.put(error)
        finally:
            self._writer.close()

    def _write(self, prepared: PreparedChunk) -> Applied | NotApplied:
        """Write a chunk, as often as the connection fails. Raises WriteFailed if the process must stop."""
        backoff = Backoff()
        attempts = timeouts = 0
        while True:
            attempts += 1
            try:
                return self._writer.write(prepared)
            except NotNext as error:
                spans = prepared.chunk.spans
                action = action_for_not_next(spans, error.outcomes, error.ledger, retried=attempts > 1)
                return Applied({}) if action is Action.COUNT_AS_APPLIED else NotApplied(action, error.outcomes)
            except WriteFailed as error:
                timeouts += error.failure.timeout
                action = action_for(error.failure, timeouts)
                if action is Action.STOP_PROCESS:
                    raise
                wait_s = backoff.advance()
                log.warning("postgres_unavailable", error=error.failure.message, retry_in_s=round(wait_s, 2))
                if action is not Action.RETRY_CONNECTION:
                    return NotApplied(action)
                if self._stopping.wait(wait_s):
                    return NotApplied(Action.REREAD_LEDGER)
