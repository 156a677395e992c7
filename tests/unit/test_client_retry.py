"""Pauses between tries, and when they end."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bulkgrpc.client.config import ClientConfig
from bulkgrpc.client.retry import RetryState, backoff_s

CONFIG = ClientConfig(retry_base_s=0.1, retry_cap_s=5.0, connect_deadline_s=5.0)
failures = st.integers(1, 10_000)
seconds = st.floats(0, 1000, allow_nan=False)
chances = st.floats(0, 1, exclude_max=True)


@given(failures, seconds, chances)
def test_a_pause_is_never_shorter_than_the_server_asked_for(count: int, asked_s: float, chance: float) -> None:
    assert backoff_s(CONFIG, count, asked_s, chance) >= asked_s


@given(failures, seconds, chances)
def test_a_pause_is_never_longer_than_asked_for_and_the_cap(count: int, asked_s: float, chance: float) -> None:
    assert backoff_s(CONFIG, count, asked_s, chance) <= asked_s + CONFIG.retry_cap_s


@given(failures)
def test_the_longest_pause_never_shrinks_with_more_failures(count: int) -> None:
    assert backoff_s(CONFIG, count, 0.0, 1.0) <= backoff_s(CONFIG, count + 1, 0.0, 1.0)


@given(failures)
def test_clients_that_failed_together_spread_from_nothing_to_the_longest_pause(count: int) -> None:
    assert backoff_s(CONFIG, count, 0.0, 0.0) == 0.0
    assert backoff_s(CONFIG, count, 0.0, 1.0) == min(5.0, 0.1 * 2.0 ** min(count - 1, 60))


@given(st.lists(seconds, min_size=1, max_size=20))
def test_patience_counts_from_the_first_failure_in_a_row(moments: list[float]) -> None:
    state = RetryState(CONFIG)
    for moment in sorted(moments):
        state = state.after_failure(moment, reached=True)
    assert state.failing_s(max(moments)) == max(moments) - min(moments)
    assert state.failures == len(moments)


def test_a_long_quiet_time_before_the_first_failure_does_not_count() -> None:
    state = RetryState(CONFIG).after_progress().after_failure(10_000.0, reached=True)
    assert not state.exhausted(10_001.0, deadline_s=300.0)


def test_progress_forgives_every_failure() -> None:
    state = RetryState(CONFIG).after_failure(0.0, reached=True).after_progress()
    assert state.failures == 0
    assert state.failing_s(1_000.0) == 0.0


@pytest.mark.parametrize(
    ("reached", "failing_s", "exhausted"),
    [(False, 4.9, False), (False, 5.0, True), (True, 299.0, False), (True, 300.0, True)],
)
def test_a_server_never_reached_is_given_up_sooner(reached: bool, failing_s: float, exhausted: bool) -> None:
    state = RetryState(CONFIG).after_failure(100.0, reached=reached)
    assert state.exhausted(100.0 + failing_s, deadline_s=300.0) is exhausted
