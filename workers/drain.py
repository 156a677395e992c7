"""The drain: two threads apply parked messages, try blocked datasets again, and isolate what cannot be written.

A queue whose rows are written in time is the quick thread's. One that failed is the slow thread's, until its slices are
quick again: the slow thread cuts them down to the message at fault, and no other queue waits for it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import structlog

from bulkgrpc import limits, metrics
from bulkgrpc.consume.deferral import QueueKey
from bulkgrpc.consume.failures import BlockCause, Consequence, Where, classify
from bulkgrpc.consume.ports import Pace, ParkedMessages, ParkedQueue, SliceFailed, StoreError, StoreUnavailable

log = structlog.get_logger()

IDLE_S = 1.0
"""How long to wait at most after a round that applied nothing: blocked datasets whose trial is due are tried then."""
BUSY_S = 0.02
"""How long to wait after the first such round: another worker may be at the queues."""
SLICE_MESSAGES = 256
CUT = 8
"""A slice that failed is cut to such a part."""
FAILED_WAIT_S = 1.0
FORGOTTEN_AFTER_S = 300.0
"""A queue that failed and has had no parked message for so long is taken for a new one."""


@dataclass(slots=True)
class _Slow:
    """A queue with a slice that failed. messages: at once. seen_at_s: when it last had any."""

    messages: int
    seen_at_s: float


SlowQueues = dict[QueueKey, _Slow]
"""Shared by both threads: the quick one adds queues, the slow one changes and removes them."""


class Drain:
    """Both threads. Start once; they end when `stopping` is set. quick, slow: what each uses, with its connection."""

    def __init__(self, quick: ParkedMessages, slow: ParkedMessages, stopping: threading.Event) -> None:
        queues: SlowQueues = {}
        slow_drain = SlowDrain(slow, queues, stopping)
        self._slow = _Thread("drain-slow", slow, slow_drain.round, stopping)
        quick_drain = QuickDrain(quick, queues, stopping, self._slow.wake)
        self._quick = _Thread("drain", quick, quick_drain.round, stopping)

    def start(self) -> None:
        """Start the threads."""
        self._quick.start()
        self._slow.start()

    def wake(self) -> None:
        """Look for parked messages now."""
        self._quick.wake()


class _Thread:
    """Runs rounds until `stopping` is set. round_: does what there is to do; returns how long to wait, seconds."""

    def __init__(
        self, name: str, parked: ParkedMessages, round_: Callable[[], float], stopping: threading.Event
    ) -> None:
        self._parked, self._round, self._stopping = parked, round_, stopping
        self._wake = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def wake(self) -> None:
        """Begin the next round now."""
        self._wake.set()

    def _run(self) -> None:
        wait_s = 0.0
        while not self._stopping.is_set():
            self._wake.wait(wait_s)
            self._wake.clear()
            if self._stopping.is_set():
                break
            try:
                wait_s = self._round()
            except StoreError as error:
                log.warning("drain_failed", error=str(error))
                self._parked.close()
                wait_s = FAILED_WAIT_S
            except Exception:
                # Any exception: if the thread ended, parked messages would wait for another worker.
                log.exception("drain_failed")
                self._parked.close()
                wait_s = FAILED_WAIT_S
        self._parked.close()


class _Rounds:
    """What both threads share: each round begins at another queue, and one that fails keeps no other waiting."""

    def __init__(self, parked: ParkedMessages, slow: SlowQueues, stopping: threading.Event) -> None:
        self._parked, self._slow, self._stopping = parked, slow, stopping
        self._wait_s = BUSY_S
        self._rounds = 0

    def _drain_each(self, drain: Callable[[ParkedQueue], int], *, slow: bool) -> int:
        """Drain the queues that are slow, or those that are not, by a slice each; return how much was done."""
        done = 0
        for queue in self._in_turn():
            if self._stopping.is_set():
                break
            if (queue.key in self._slow) is not slow:
                continue
            try:
                done += drain(queue)
            except StoreUnavailable:
                raise
            except Exception:
                # Any exception: the queues behind this one must not wait for it.
                log.exception("drain_failed", **queue.key._asdict())
                self._parked.close()
        return done

    def _in_turn(self) -> Iterator[ParkedQueue]:
        queues = self._parked.queues()
        first = self._rounds % len(queues) if queues else 0
        self._rounds += 1
        yield from queues[first:]
        yield from queues[:first]

    def _wait_after(self, done: int) -> float:
        self._wait_s = BUSY_S if done else min(self._wait_s * 2, IDLE_S)
        return 0.0 if done else self._wait_s

    def _cut(self, queue: QueueKey, error: SliceFailed) -> None:
        """Leave the queue to the slow thread, with smaller slices; meanwhile the main path keeps off its dataset."""
        self._slow[queue] = _Slow(max(len(error.job_ids) // CUT, 1), time.monotonic())
        self._parked.block(queue.dataset, BlockCause.ISOLATING, error.failure)

    def _block(self, dataset: str, error: SliceFailed) -> None:
        isolating = classify(error.failure) in (Consequence.DEFER_JOB, Consequence.STOP_PARTITION)
        self._parked.block(dataset, BlockCause.ISOLATING if isolating else BlockCause.TABLE, error.failure)
        log.warning("dataset_still_blocked", dataset=dataset, sqlstate=error.failure.sqlstate, reason=str(error))


def _about_rows(error: SliceFailed) -> bool:
    """Return whether some messages of a slice may be at fault. Raises StoreError if PostgreSQL is."""
    consequence = classify(error.failure)
    if consequence is Consequence.RETRY and error.failure.where is not Where.ROWS:
        raise StoreError(str(error))
    return consequence is not Consequence.BLOCK_DATASET


class QuickDrain(_Rounds):
    """Tries blocked datasets again, and drains the queues whose rows are written as soon as on the main path.

    on_slow: called when a queue was left to the slow thread.
    """

    def __init__(
        self, parked: ParkedMessages, slow: SlowQueues, stopping: threading.Event, on_slow: Callable[[], None]
    ) -> None:
        super().__init__(parked, slow, stopping)
        self._on_slow = on_slow

    def round(self) -> float:
        """Try a dataset whose trial is due, and drain each queue by a slice. Returns how long to wait, seconds."""
        self._try_dataset()
        done = self._drain_each(self._drain, slow=False)
        self._parked.end_discards()
        for dataset in self._parked.end_isolation():
            log.info("dataset_unblocked", dataset=dataset)
        return self._wait_after(done)

    def _drain(self, queue: ParkedQueue) -> int:
        try:
            # While the main path keeps off the dataset, an empty queue would not bring it back.
            applied = self._parked.drain(queue.key, SLICE_MESSAGES, pace=Pace.USUAL, merges=not queue.isolating)
        except SliceFailed as error:
            if not _about_rows(error):
                self._block(queue.key.dataset, error)
                return 0
            self._cut(queue.key, error)
            self._on_slow()
            return 1
        metrics.messages_drained.add(applied)
        return applied

    def _try_dataset(self) -> None:
        dataset = self._parked.claim_trial()
        if dataset is None:
            return
        try:
            if self._parked.try_dataset(dataset):
                log.info("dataset_unblocked", dataset=dataset)
        except SliceFailed as error:
            if classify(error.failure) is Consequence.RETRY:
                raise StoreError(str(error)) from error
            self._block(dataset, error)


class SlowDrain(_Rounds):
    """Drains the queues that failed, in smaller slices with more time; blocks the job of a message that fails alone."""

    def round(self) -> float:
        """Drain each queue by a slice. Returns how long to wait, seconds."""
        forgotten_s = time.monotonic() - FORGOTTEN_AFTER_S
        # A copy: the quick thread adds queues meanwhile.
        for queue, slow in list(self._slow.items()):
            if slow.seen_at_s < forgotten_s:
                del self._slow[queue]
        return self._wait_after(self._drain_each(self._drain, slow=True) if self._slow else 0)

    def _drain(self, queue: ParkedQueue) -> int:
        slow = self._slow[queue.key]
        slow.seen_at_s = begun_s = time.monotonic()
        pace = Pace.LONGEST if slow.messages == 1 else Pace.LONG
        try:
            applied = self._parked.drain(queue.key, slow.messages, pace=pace, merges=False)
        except SliceFailed as error:
            return self._on_failed(queue.key, slow, error)
        metrics.messages_drained.add(applied)
        if time.monotonic() - begun_s > limits.ROWS_TIMEOUT_S:
            self._parked.prolong_isolation(queue.key.dataset)
        elif applied:
            slow.messages *= 2
            if slow.messages >= SLICE_MESSAGES:
                del self._slow[queue.key]
        return applied

    def _on_failed(self, queue: QueueKey, slow: _Slow, error: SliceFailed) -> int:
        """Cut the slice down to the message at fault; then block its job. Returns how much can be done at once."""
        if not _about_rows(error):
            self._block(queue.dataset, error)
            return 0
        if slow.messages > 1:
            # One message alone gets the longest time for its rows, also if it was alone by chance.
            self._cut(queue, error)
            return 1
        for job_id in error.job_ids:
            self._parked.block_job(job_id, error.failure)
            metrics.jobs_blocked.add(1)
            log.error("job_blocked", job_id=str(job_id), sqlstate=error.failure.sqlstate, reason=str(error))
        return 0
