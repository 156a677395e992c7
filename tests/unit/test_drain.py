"""The drain's threads: who drains which queue, at which pace, and what a failure of a slice leads to."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import pytest

from bulkgrpc.consume.deferral import QueueKey
from bulkgrpc.consume.failures import BlockCause, Failure, Where
from bulkgrpc.consume.ports import Pace, ParkedQueue, SliceFailed
from tests.support.waiting import wait_for
from workers.drain import FORGOTTEN_AFTER_S, SLICE_MESSAGES, Drain, LongestDrain, QuickDrain, SlowDrain, SlowQueues

WITHIN_S = 20.0
SICK = QueueKey(0, "acme", "sick")
WELL = QueueKey(0, "acme", "well")
TIMED_OUT = Failure(Where.ROWS, "57014", "QueryCanceled", "statement timeout", dataset="sick")
NO_TABLE = Failure(Where.ROWS, "42P01", "UndefinedTable", "relation does not exist", dataset="sick")


@dataclass
class FakeParked:
    """A `ParkedMessages`. waiting: messages of each queue. on_drain: called before a slice is applied."""

    waiting: dict[QueueKey, int]
    isolating: set[str] = field(default_factory=set)
    on_drain: Callable[[QueueKey, int, Pace], None] = lambda *_: None
    drained: list[tuple[QueueKey, int, Pace, bool]] = field(default_factory=list)
    blocked: list[tuple[str, BlockCause]] = field(default_factory=list)
    prolonged: list[str] = field(default_factory=list)
    blocked_jobs: list[uuid.UUID] = field(default_factory=list)

    def queues(self) -> Sequence[ParkedQueue]:
        return [ParkedQueue(queue, queue.dataset in self.isolating) for queue, left in self.waiting.items() if left]

    def drain(self, queue: QueueKey, messages_max: int, *, pace: Pace, merges: bool) -> int:
        messages = min(messages_max, self.waiting[queue])
        self.drained.append((queue, messages_max, pace, merges))
        self.on_drain(queue, messages, pace)
        self.waiting[queue] -= messages
        return messages

    def claim_trial(self) -> str | None:
        return None

    def try_dataset(self, dataset: str) -> bool:
        raise AssertionError(f"no trial of {dataset} is due")

    def end_isolation(self) -> Sequence[str]:
        return []

    def end_discards(self) -> None:
        pass

    def block(self, dataset: str, cause: BlockCause, failure: Failure) -> None:
        self.blocked.append((dataset, cause))
        self.isolating.add(dataset)

    def prolong_isolation(self, dataset: str) -> None:
        self.prolonged.append(dataset)

    def block_job(self, job_id: uuid.UUID, failure: Failure) -> None:
        self.blocked_jobs.append(job_id)
        self.waiting[SICK] = 0

    def close(self) -> None:
        pass


def fails(failure: Failure) -> Callable[[QueueKey, int, Pace], None]:
    """Return what fails every slice of SICK."""

    def on_drain(queue: QueueKey, messages: int, pace: Pace) -> None:
        if queue == SICK:
            raise SliceFailed(failure, [uuid.UUID(int=number) for number in range(messages)])

    return on_drain


def both(parked: FakeParked) -> tuple[QuickDrain, SlowDrain, SlowQueues]:
    slow: SlowQueues = {}
    stopping = threading.Event()
    return QuickDrain(parked, slow, stopping, lambda: None), SlowDrain(parked, slow, stopping, lambda: None), slow


def test_a_queue_whose_slice_takes_too_long_is_left_to_slower_threads_and_cut_down_to_the_job_at_fault() -> None:
    parked = FakeParked({SICK: 64, WELL: 10}, on_drain=fails(TIMED_OUT))
    quick, slow, queues = both(parked)
    longest = LongestDrain(parked, queues, threading.Event())
    quick.round()
    assert parked.waiting == {SICK: 64, WELL: 0}
    assert parked.blocked == [("sick", BlockCause.ISOLATING)]
    parked.drained.clear()
    quick.round()
    assert parked.drained == []
    longest.round()
    assert parked.drained == []
    while not queues[SICK].longest:
        slow.round()
    slow.round()
    assert [(messages, pace) for _, messages, pace, _ in parked.drained] == [(8, Pace.LONG), (1, Pace.LONG)]
    assert not parked.blocked_jobs
    longest.round()
    assert parked.drained[2:] == [(SICK, 1, Pace.LONGEST, False)]
    assert parked.blocked_jobs == [uuid.UUID(int=0)]
    assert not queues[SICK].longest


@pytest.mark.parametrize(("limit_s", "longest_again"), [(0.0, True), (60.0, False)], ids=["slowly", "in time"])
def test_a_queue_whose_message_was_applied_by_the_longest_thread_is_slow_again_if_that_was_in_time(
    monkeypatch: pytest.MonkeyPatch, limit_s: float, longest_again: bool
) -> None:
    monkeypatch.setattr("bulkgrpc.limits.DRAIN_ROWS_TIMEOUT_S", limit_s)
    parked = FakeParked({SICK: 8}, on_drain=fails(TIMED_OUT))
    quick, slow, queues = both(parked)
    quick.round()
    slow.round()
    parked.on_drain = lambda *_: None
    LongestDrain(parked, queues, threading.Event()).round()
    assert parked.waiting[SICK] == 7
    assert queues[SICK].longest is longest_again


def test_a_table_that_cannot_be_written_is_blocked_and_its_queue_is_not_slow() -> None:
    parked = FakeParked({SICK: 64}, on_drain=fails(NO_TABLE))
    quick, _, slow_queues = both(parked)
    quick.round()
    assert parked.blocked == [("sick", BlockCause.TABLE)]
    assert slow_queues == {}


def test_a_queue_whose_slices_are_quick_again_goes_back_to_the_quick_thread() -> None:
    parked = FakeParked({SICK: 8}, on_drain=fails(TIMED_OUT))
    quick, slow, slow_queues = both(parked)
    quick.round()
    parked.on_drain = lambda *_: None
    parked.waiting[SICK] = 2 * SLICE_MESSAGES
    while slow_queues:
        slow.round()
    left = parked.waiting[SICK]
    assert 0 < left < 2 * SLICE_MESSAGES
    parked.drained.clear()
    quick.round()
    assert parked.drained == [(SICK, SLICE_MESSAGES, Pace.USUAL, False)]


def test_a_slice_that_is_applied_too_slowly_for_the_main_path_prolongs_the_isolation(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("bulkgrpc.limits.ROWS_TIMEOUT_S", 0.0)
    parked = FakeParked({SICK: 8}, on_drain=fails(TIMED_OUT))
    quick, slow, slow_queues = both(parked)
    quick.round()
    parked.on_drain = lambda *_: None
    slow.round()
    assert parked.waiting[SICK] == 7
    assert parked.prolonged == ["sick"]
    assert slow_queues[SICK].messages == 1


def test_the_main_path_is_kept_away_from_the_last_slice_only_if_it_could_use_the_empty_queue() -> None:
    parked = FakeParked({SICK: 5, WELL: 5}, isolating={"sick"})
    both(parked)[0].round()
    assert parked.drained == [(SICK, SLICE_MESSAGES, Pace.USUAL, False), (WELL, SLICE_MESSAGES, Pace.USUAL, True)]


def test_a_slow_queue_without_messages_is_remembered_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    parked = FakeParked({SICK: 8}, on_drain=fails(TIMED_OUT))
    quick, slow, slow_queues = both(parked)
    quick.round()
    parked.waiting[SICK] = 0
    slow.round()
    assert SICK in slow_queues
    slow_queues[SICK].seen_at_s -= FORGOTTEN_AFTER_S
    slow.round()
    assert slow_queues == {}


@pytest.mark.parametrize("pace", [Pace.LONG, Pace.LONGEST])
def test_while_a_slice_of_a_slower_thread_takes_its_time_other_queues_are_drained(pace: Pace) -> None:
    released, began, stopping = threading.Event(), threading.Event(), threading.Event()

    def wait(queue: QueueKey, messages: int, used: Pace) -> None:
        if used is pace:
            began.set()
            assert released.wait(WITHIN_S)
        if queue == SICK:
            raise SliceFailed(TIMED_OUT, [uuid.UUID(int=0)])

    waiting = {SICK: 8, WELL: 0}
    drain = Drain(lambda: FakeParked(waiting, on_drain=wait), stopping)
    drain.start()
    try:
        assert began.wait(WITHIN_S)
        waiting[WELL] = 5
        drain.wake()
        assert wait_for(lambda: not waiting[WELL], WITHIN_S)
        assert waiting[SICK] == 8
    finally:
        stopping.set()
        released.set()
        drain.wake()
