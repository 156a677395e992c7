"""The writer: decodes each chunk on one thread and writes it on another, until the failure table decides otherwise.

The poll loop does neither: it must return to Kafka soon, however large a chunk is, and however long it takes to load a
dataset.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Mapping, Set
from dataclasses import dataclass, field
from typing import Protocol

import structlog

from bulkgrpc import metrics
from bulkgrpc.backoff import Backoff
from bulkgrpc.consume.assembly import Chunk, Fetched
from bulkgrpc.consume.dead_letters import load_datasets, without_dead_letters
from bulkgrpc.consume.decode import LoadedChunk
from bulkgrpc.consume.failures import (
    ROWS_ATTEMPTS_MAX,
    BlockCause,
    Failure,
    Step,
    Where,
    refused_behind_rows,
    step_after,
    was_applied,
)
from bulkgrpc.consume.ports import (
    Applied,
    ChunkWriter,
    DatasetRegistry,
    DeadLetterQueue,
    NotNext,
    RecordLogError,
    StoreUnavailable,
    WriteFailed,
)
from bulkgrpc.positions import Outcome

log = structlog.get_logger()

ISOLATED_LATELY_S = 300.0
CONFLICT_CLASS = "40"
"""SQLSTATE class of deadlocks and serialization failures: with a trigger, or with sessions of others."""
DECODED_LATE_ROWS = 2_000
"""A chunk of so many rows, at most, that finds the writer idle is decoded by it, while PostgreSQL locks its jobs."""
CHUNKS_QUEUED_MAX = 1
"""Chunks that are decoded or wait while another is written: enough to keep PostgreSQL busy, and a bound on memory."""


@dataclass(frozen=True, slots=True)
class NotApplied:
    """A chunk was not applied: continue at the ledger's positions. outcomes: what the ledger reported, if it did."""

    outcomes: Mapping[int, Outcome] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Result:
    """What became of a chunk. too_slow: whether rows of it took too long, and were parked."""

    chunk: Chunk
    outcome: Applied | NotApplied
    too_slow: bool = False


class ChunkQueue(Protocol):
    """What the poll loop needs of the writer. outstanding: chunks submitted whose results were not taken."""

    @property
    def outstanding(self) -> int: ...  # noqa: D102
    @property
    def has_room(self) -> bool: ...  # noqa: D102
    def start(self) -> None: ...  # noqa: D102
    def submit(self, chunk: Chunk) -> None: ...  # noqa: D102
    def result(self, timeout_s: float) -> Result | None: ...  # noqa: D102
    def stop(self, timeout_s: float) -> None: ...  # noqa: D102


class WriterThread:
    """Writes chunks in the order of `submit`; results come in the same order. Implements `ChunkQueue`.

    A message that belongs to no job is stored as a dead letter before its chunk is written. Start once, stop once.
    """

    def __init__(
        self,
        writer: ChunkWriter,
        registry: DatasetRegistry,
        dead_letters: DeadLetterQueue,
        stopping: threading.Event,
    ) -> None:
        self._writer = writer
        self._registry = registry
        self._dead_letters = dead_letters
        self._stopping = stopping
        self._chunks: queue.Queue[Chunk | None] = queue.Queue(CHUNKS_QUEUED_MAX)
        self._loaded: queue.Queue[LoadedChunk | Chunk | Result | None] = queue.Queue(CHUNKS_QUEUED_MAX)
        self._results: queue.SimpleQueue[Result | BaseException] = queue.SimpleQueue()
        self._decoding = threading.Thread(target=self._decode, name="chunk-decoder", daemon=True)
        self._writing = threading.Thread(target=self._run, name="chunk-writer", daemon=True)
        self._isolated_at_s: dict[str, float] = {}
        self.outstanding = 0

    def start(self) -> None:
        """Start the threads."""
        self._decoding.start()
        self._writing.start()

    def submit(self, chunk: Chunk) -> None:
        """Queue a chunk. At most CHUNKS_QUEUED_MAX + 1 may be outstanding."""
        if not self.outstanding and chunk.rows <= DECODED_LATE_ROWS and chunk.is_intact:
            # Both threads wait for it: it is next for the writer as well. Only the decoder's thread has dead letters.
            self._loaded.put_nowait(chunk)
        else:
            self._chunks.put_nowait(chunk)
        self.outstanding += 1

    @property
    def has_room(self) -> bool:
        """Whether `submit` would accept a chunk."""
        return self.outstanding <= CHUNKS_QUEUED_MAX and not self._chunks.full()

    def result(self, timeout_s: float) -> Result | None:
        """Return the next result, or None if there is none within `timeout_s`.

        Raises the exception that ended a thread.
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
        """Stop the threads after the queued chunks, or after `timeout_s`."""
        with contextlib.suppress(queue.Full):
            self._chunks.put(None, timeout=timeout_s)
        self._writing.join(timeout_s)

    def _decode(self) -> None:
        try:
            while (chunk := self._chunks.get()) is not None:
                loaded = self._load(chunk)
                if isinstance(loaded, LoadedChunk):
                    # The writer needs it later: decode it while another one is written.
                    _ = loaded.prepared
                self._loaded.put(loaded)
        except BaseException as error:  # noqa: BLE001 — the thread's root: `result` raises it in the poll loop
            self._results.put(error)
        finally:
            self._loaded.put(None)

    def _load_late(self, chunk: Chunk) -> LoadedChunk | Result:
        """Load a chunk that the decoder's thread did not have. It is decoded in its transaction."""
        loaded = self._load(chunk)
        if isinstance(loaded, LoadedChunk) and loaded.waits:
            # Not there: whoever waits for its locks would wait for the other thread as well.
            _ = loaded.prepared
        return loaded

    def _load(self, chunk: Chunk) -> LoadedChunk | Result:
        """Load the datasets of a chunk, and store its dead letters."""
        backoff = Backoff()
        while True:
            try:
                codec_of = load_datasets(chunk, self._registry)
                # Last: once this has returned, only `dead` has the messages that the chunk no longer has.
                chunk, dead = without_dead_letters(chunk, self._registry)
                break
            except StoreUnavailable as error:
                wait_s = backoff.advance()
                log.warning("postgres_unavailable", error=str(error), retry_in_s=round(wait_s, 2))
                if self._stopping.wait(wait_s):
                    return Result(chunk, NotApplied())
        for message, reason in dead:
            if not self._add_dead_letter(message, reason):
                return Result(chunk, NotApplied())
        return LoadedChunk(chunk, codec_of)

    def _add_dead_letter(self, message: Fetched, reason: str) -> bool:
        """Store a dead letter, as often as it takes; return whether it is stored: not if the worker stops."""
        backoff = Backoff()
        while True:
            try:
                self._dead_letters.add(message, reason)
            except RecordLogError as error:
                wait_s = backoff.advance()
                log.warning("dead_letter_failed", error=str(error), retry_in_s=round(wait_s, 2))
                if self._stopping.wait(wait_s):
                    return False
            else:
                metrics.messages_dead.add(1)
                log.warning("dead_letter", partition=message.partition, offset=message.offset, reason=reason)
                return True

    def _run(self) -> None:
        try:
            while (found := self._loaded.get()) is not None:
                loaded = self._load_late(found) if isinstance(found, Chunk) else found
                self._results.put(loaded if isinstance(loaded, Result) else self._write(loaded))
        except BaseException as error:  # noqa: BLE001 — the thread's root: `result` raises it in the poll loop
            self._results.put(error)
        finally:
            self._writer.close()

    def _write(self, loaded: LoadedChunk) -> Result:
        """Write a chunk until it is applied or the ledger does not accept it. Raises WriteFailed for a broken build.

        A dataset that cannot be written is blocked, and the chunk written again without it: see `step_after`.
        """
        backoff = Backoff()
        attempts = rows_failed = refused = 0
        blocked = set[str]()
        too_slow = False
        while True:
            try:
                return Result(loaded.chunk, self._writer.write(loaded, blocked), too_slow)
            except NotNext as error:
                applied = attempts > 0 and was_applied(loaded.chunk.spans, error.outcomes, error.ledger)
                return Result(loaded.chunk, Applied({}) if applied else NotApplied(error.outcomes))
            except WriteFailed as error:
                attempts += 1
                rows_failed = self._rows_failed(error.failure, rows_failed)
                refused += refused_behind_rows(error.failure)
                step = step_after(error.failure, rows_failed, refused)
                if step is Step.STOP_PROCESS:
                    raise
                datasets = {error.failure.dataset} if error.failure.dataset else loaded.chunk.datasets
                # Blocked already: parking its messages did not help, the failure is of the service's own tables.
                if step is not Step.RETRY and datasets - blocked and self._block(datasets, error.failure, step):
                    # From here on whatever the store says: the chunk makes progress although a trial lifts the block.
                    blocked |= datasets
                    attempts = rows_failed = refused = 0
                    too_slow = too_slow or step is Step.ISOLATE
                    continue
                wait_s = backoff.advance()
                if step is Step.RETRY:
                    log.warning("postgres_unavailable", **_of(error.failure), retry_in_s=round(wait_s, 2))
                else:
                    log.error("chunk_refused", **_of(error.failure), retry_in_s=round(wait_s, 2))
                if self._stopping.wait(wait_s):
                    return Result(loaded.chunk, NotApplied())

    def _rows_failed(self, failure: Failure, before: int) -> int:
        """Return how many attempts in a row failed while rows were written, as `step_after` counts them.

        A dataset that was isolated lately gets no more attempts without a connection: each costs all others theirs.
        """
        if failure.where is not Where.ROWS:
            return 0
        isolated = time.monotonic() - self._isolated_at_s.get(failure.dataset, -ISOLATED_LATELY_S) < ISOLATED_LATELY_S
        return ROWS_ATTEMPTS_MAX if isolated and failure.sqlstate[:2] != CONFLICT_CLASS else before + 1

    def _block(self, datasets: Set[str], failure: Failure, step: Step) -> bool:
        """Block datasets; return False if PostgreSQL does not store that now."""
        cause = BlockCause.TABLE if step is Step.BLOCK else BlockCause.ISOLATING
        try:
            for dataset in sorted(datasets):
                self._writer.block(dataset, cause, failure)
                log.error("dataset_blocked", dataset=dataset, cause=cause.value, **_of(failure))
        except WriteFailed:
            return False
        metrics.datasets_blocked.add(len(datasets))
        if cause is BlockCause.ISOLATING:
            self._isolated_at_s |= dict.fromkeys(datasets, time.monotonic())
        return True


def _of(failure: Failure) -> dict[str, str]:
    return {"where": failure.where.value, "sqlstate": failure.sqlstate, "reason": failure.message}
