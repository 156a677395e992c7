"""The drain: three threads apply parked messages, try blocked datasets again, and isolate what cannot be written.

A queue whose rows are written in time is the quick thread's. One that failed is the slow thread's, until its slices are
quick again: the slow thread cuts them down to the message at fault. A queue whose first message fails alone is the
longest thread's, until that message is applied or its job is blocked. No queue waits for one that takes longer.
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
from bulkgrpc.consume.ports import (
    NewerFormat,
    Pace,
    ParkedMessages,
    ParkedQueue,
    SliceFailed,
    StoreError,
    StoreUnavailable,
)
from bulkgrpc.consume.upgrade import WaitLog
from workers.rounds import RoundsThread

log = structlog.get_logger()

IDLE_S = 1.0
"""How long to wait at most after a round that applied nothing: blocked datasets whose trial is due are tried then."""
BUSY_S = 0.02
"""How long to wait after the first such round: another worker may be at the queues."""
SLICE_MESSAGES = 256
CUT = 8
"""A slice that failed is cut to such a part."""
FORGOTTEN_AFTER_S = 300.0
"""A queue that failed and has had no parked message for so long is taken for a new one."""


@dataclass(slots=True)
class _Slow:
    """A queue with a slice that failed. messages: at once. seen_at_s: when it last had any.

    longest: whether a message failed alone, so that it gets the longest time.
    """

    messages: int
    seen_at_s: float
    longest: bool = False


SlowQueues = dict[QueueKey, _Slow]
"""Shared by the threads: the quick one adds queues, the slow one removes them, and the owner of each changes it."""


class Drain:
    """The threads. Start once; they end when `stopping` is set. make: makes what each uses, with its connection."""

    def __init__(self, make: Callable[[], ParkedMessages], stopping: threading.Event) -> None:
        queues: SlowQueues = {}
        quick, slow, longest = make(), make(), make()
        longest_drain = LongestDrain(longest, queues, stopping)
        self._longest = _thread("drain-longest", longest, longest_drain.round, stopping)
        slow_drain = SlowDrain(slow, queues, stopping, self._longest.wake)
        self._slow = _thread("drain-slow", slow, slow_drain.round, stopping)
        quick_drain = QuickDrain(quick, queues, stopping, self._slow.wake)
        self._quick = _thread("drain", quick, quick_drain.round, stopping)

    def start(self) -> None:
        """Start the threads."""
        for thread in (self._quick, self._slow, self._longest):
            thread.start()

    def wake(self) -> None:
        """Look for parked messages now."""
        self._quick.wake()


def _thread(name: str, parked: ParkedMessages, round_: Callable[[], float], stopping: threading.Event) -> RoundsThread:
    return RoundsThread(name, round_, _log_failure, parked.close, stopping)


def _log_failure(error: Exception) -> None:
    if isinstance(error, StoreError):
        log.warning("drain_failed", error=str(error))
    else:
        log.exception("drain_failed")


class _Rounds:
    """What the threads share: each round begins at another queue, and one that fails keeps no other waiting."""

    def __init__(self, parked: ParkedMessages, slow: SlowQueues, stopping: threading.Event) -> None:
        self._parked, self._slow, self._stopping = parked, slow, stopping
        self._wait_s = BUSY_S
        self._rounds = 0
        self._waits = WaitLog[QueueKey]()

    def _owns(self, queue: QueueKey) -> bool:
        """Return whether a queue is this thread's."""
        raise NotImplementedError

    def _drain(self, queue: ParkedQueue) -> int:
        """Drain a queue by a slice; return how much was done. Raises SliceFailed."""
        raise NotImplementedError

    def _on_failed(self, queue: QueueKey, error: SliceFailed) -> int:
        """Handle a slice that failed because of some of its messages; return how much can be done at once."""
        raise NotImplementedError

    def _attempt(self, queue: ParkedQueue) -> int:
        try:
            return self._drain(queue)
        except NewerFormat as error:
            if self._waits.due(queue.key, error.format, time.monotonic()):
                log.error("queue_waits_for_upgrade", **queue.key._asdict(), reason=str(error))
            return 0
        except SliceFailed as error:
            consequence = _consequence(error)
            if consequence is Consequence.BLOCK_JOB and len(set(error.job_ids)) == 1:
                self._block_jobs(error)
            elif consequence is Consequence.BLOCK_DATASET:
                self._block(queue.key.dataset, error)
            else:
                return self._on_failed(queue.key, error)
            return 0

    def _drain_each(self) -> int:
        """Drain the thread's queues by a slice each; return how much was done."""
        done = 0
        for queue in self._in_turn():
            if self._stopping.is_set():
                break
            if not self._owns(queue.key):
                continue
            try:
                done += self._attempt(queue)
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

    def _block_jobs(self, error: SliceFailed) -> None:
        """Block the jobs of a slice: what follows them in their queues waits."""
        for job_id in sorted(set(error.job_ids)):
            self._parked.block_job(job_id, error.failure)
            metrics.jobs_blocked.add(1)
            log.error("job_blocked", job_id=str(job_id), sqlstate=error.failure.sqlstate, reason=str(error))


def _consequence(error: SliceFailed) -> Consequence:
    """Return what a slice that failed leads to. Raises StoreError if PostgreSQL is at fault."""
    consequence = classify(error.failure)
    if consequence is Consequence.RETRY and error.failure.where is not Where.ROWS:
        raise StoreError(str(error))
    return consequence


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
        done = self._drain_each()
        self._parked.end_discards()
        for dataset in self._parked.end_isolation():
            log.info("dataset_unblocked", dataset=dataset)
        return self._wait_after(done)

    def _owns(self, queue: QueueKey) -> bool:
        return queue not in self._slow

    def _drain(self, queue: ParkedQueue) -> int:
        # While the main path keeps off the dataset, an empty queue would not bring it back.
        applied = self._parked.drain(queue.key, SLICE_MESSAGES, pace=Pace.USUAL, merges=not queue.isolating)
        metrics.messages_drained.add(applied)
        return applied

    def _on_failed(self, queue: QueueKey, error: SliceFailed) -> int:
        self._cut(queue, error)
        self._on_slow()
        return 1

    def _try_dataset(self) -> None:
        dataset = self._parked.claim_trial()
        if dataset is None:
            return
        try:
            if self._parked.try_dataset(dataset):
                log.info("dataset_unblocked", dataset=dataset)
        except SliceFailed as error:
            consequence = classify(error.failure)
            if consequence is Consequence.RETRY:
                raise StoreError(str(error)) from error
            if consequence is Consequence.BLOCK_JOB:
                # The next trial is of another job.
                self._block_jobs(error)
            else:
                self._block(dataset, error)


class _Isolating(_Rounds):
    """What the threads of slow queues share: more time than on the main path, and longer slices once they are quick."""

    pace: Pace

    def round(self) -> float:
        """Drain each queue by a slice. Returns how long to wait, seconds."""
        # A copy: the other threads add and remove queues meanwhile.
        return self._wait_after(self._drain_each() if any(map(self._owns, list(self._slow))) else 0)

    def _drain(self, queue: ParkedQueue) -> int:
        slow = self._slow.get(queue.key)
        if slow is None:
            return 0
        slow.seen_at_s = begun_s = time.monotonic()
        applied = self._parked.drain(queue.key, slow.messages, pace=self.pace, merges=False)
        metrics.messages_drained.add(applied)
        taken_s = time.monotonic() - begun_s
        if taken_s > limits.ROWS_TIMEOUT_S:
            self._parked.prolong_isolation(queue.key.dataset)
        elif applied:
            slow.messages *= 2
        if applied and taken_s <= limits.DRAIN_ROWS_TIMEOUT_S:
            slow.longest = False
        return applied


class SlowDrain(_Isolating):
    """Drains the queues that failed, in smaller slices; leaves a message that fails alone to the longest thread.

    on_longest: called then.
    """

    pace = Pace.LONG

    def __init__(
        self, parked: ParkedMessages, slow: SlowQueues, stopping: threading.Event, on_longest: Callable[[], None]
    ) -> None:
        super().__init__(parked, slow, stopping)
        self._on_longest = on_longest

    def round(self) -> float:
        """Remove the queues that are quick again or forgotten, and drain each of the others by a slice."""
        forgotten_s = time.monotonic() - FORGOTTEN_AFTER_S
        for queue, slow in list(self._slow.items()):
            if slow.seen_at_s < forgotten_s or slow.messages >= SLICE_MESSAGES:
                del self._slow[queue]
        return super().round()

    def _owns(self, queue: QueueKey) -> bool:
        slow = self._slow.get(queue)
        return slow is not None and not slow.longest

    def _on_failed(self, queue: QueueKey, error: SliceFailed) -> int:
        slow = self._slow[queue]
        if slow.messages > 1:
            # One message alone is tried alone, also if it was alone by chance.
            self._cut(queue, error)
            return 1
        slow.longest = True
        # The main path keeps off the dataset for longer, as after any slice that failed.
        self._parked.block(queue.dataset, BlockCause.ISOLATING, error.failure)
        self._on_longest()
        return 1


class LongestDrain(_Isolating):
    """Drains the queues whose first message failed alone, with the longest time; blocks the job of one that fails."""

    pace = Pace.LONGEST

    def _owns(self, queue: QueueKey) -> bool:
        slow = self._slow.get(queue)
        return slow is not None and slow.longest

    def _on_failed(self, queue: QueueKey, error: SliceFailed) -> int:
        self._slow[queue].longest = False
        self._block_jobs(error)
        return 0
