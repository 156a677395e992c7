from __future__ import annotations

from bulkgrpc.backoff import Backoff
from bulkgrpc.consume.backpressure import PAUSE_AFTER_S, Backpressure


def test_a_writer_that_returns_nothing_pauses_the_log_once() -> None:
    pressure = Backpressure()
    pressure.writer_progressed(100.0)
    assert not pressure.pause_if_stuck(100.0 + PAUSE_AFTER_S)
    assert pressure.pause_if_stuck(100.1 + PAUSE_AFTER_S)
    assert pressure.paused
    assert not pressure.pause_if_stuck(200.0)
    assert pressure.resume()
    assert not pressure.resume()


def test_a_writer_that_makes_progress_never_pauses_the_log() -> None:
    pressure = Backpressure()
    for second in range(100):
        pressure.writer_progressed(float(second))
        assert not pressure.pause_if_stuck(second + PAUSE_AFTER_S)


def test_partitions_are_acquired_only_while_fetching_and_after_the_back_off() -> None:
    pressure = Backpressure()
    assert pressure.may_acquire(0.0)
    wait_s = pressure.retry_later(10.0)
    assert not pressure.may_acquire(10.0)
    assert pressure.may_acquire(10.0 + wait_s)
    pressure.pause_if_stuck(100.0)
    assert not pressure.may_acquire(100.0)


def test_an_applied_chunk_shortens_the_next_back_off() -> None:
    pressure = Backpressure()
    waits = [pressure.retry_later(0.0) for _ in range(20)]
    assert max(waits[-5:]) > 1.0
    pressure.recovered()
    assert pressure.retry_later(0.0) <= Backoff().first_s


def test_waits_double_up_to_the_longest_and_are_never_shorter_than_half_of_it() -> None:
    backoff = Backoff(first_s=0.1, max_s=5.0)
    for span_s in (0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0):
        assert span_s / 2 <= backoff.advance() <= span_s
