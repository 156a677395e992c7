from __future__ import annotations

import itertools
import random

from hypothesis import given
from hypothesis import strategies as st

from bulkgrpc.consume.tuning import DEAD_BAND, ChunkTuner, Cost

FIXED = st.floats(0.0001, 2)
ROW = st.floats(1e-7, 1e-3)


def write(tuner: ChunkTuner, cost: Cost, chunks: int, noise: random.Random | None = None) -> list[int]:
    """Write full chunks into a simulated table; return the bound after each."""
    bounds = []
    for _ in range(chunks):
        for_rows, for_fixed = (noise.uniform(0.7, 1.4) if noise else 1.0 for _ in range(2))
        rows_s = tuner.rows * cost.row_s * for_rows
        tuner.measured(tuner.rows, rows_s, rows_s + cost.fixed_s * for_fixed)
        bounds.append(tuner.rows)
    return bounds


@given(st.lists(st.tuples(st.integers(1, 10**6), st.floats(0, 1e4), st.floats(0, 1e4)), max_size=60), st.data())
def test_the_bound_is_always_within_its_own_bounds(chunks: list[tuple[int, float, float]], data: st.DataObject) -> None:
    low, high = data.draw(st.integers(1, 10**6)), data.draw(st.integers(1, 10**6))
    tuner = ChunkTuner(low, high, data.draw(st.floats(0.001, 10)))
    for rows, rows_s, more_s in chunks:
        assert min(low, high) <= tuner.rows <= high
        tuner.measured(rows, rows_s, rows_s + more_s)
    assert min(low, high) <= tuner.rows <= high


@given(FIXED, ROW, st.floats(0.02, 5))
def test_it_settles_near_what_is_worth_it_and_stays(fixed_s: float, row_s: float, commit_s: float) -> None:
    cost, tuner = Cost(fixed_s, row_s), ChunkTuner(500, 200_000, commit_s)
    last = write(tuner, cost, 40)[20:]
    aim = min(max(cost.rows_worth(commit_s), 500), 200_000)
    assert len(set(last)) == 1
    assert aim / DEAD_BAND - 1 <= last[0] <= aim * DEAD_BAND + 1


@given(FIXED, ROW)
def test_a_settled_chunk_is_quick_unless_its_commit_is_slow(fixed_s: float, row_s: float) -> None:
    cost, tuner = Cost(fixed_s, row_s), ChunkTuner(1, 10**9, 0.25)
    rows = write(tuner, cost, 80)[-1]
    assert cost.chunk_s(rows) <= max(0.25, 2 * fixed_s) * DEAD_BAND + row_s
    assert cost.chunk_s(rows) / rows <= row_s * 2 * DEAD_BAND


@given(st.integers(0, 1000))
def test_noise_does_not_make_it_swing(seed: int) -> None:
    bounds = write(ChunkTuner(2_000, 50_000, 0.25), Cost(0.004, 2e-6), 200, random.Random(seed))[20:]
    changes = sum(before != after for before, after in itertools.pairwise(bounds))
    assert changes <= 20
    assert max(bounds) <= 2.5 * min(bounds)


@given(FIXED, ROW, st.floats(3, 100))
def test_it_recovers_after_a_slow_spell(fixed_s: float, row_s: float, slower: float) -> None:
    cost, tuner = Cost(fixed_s, row_s), ChunkTuner(500, 50_000, 0.25)
    before = write(tuner, cost, 30)[-1]
    write(tuner, Cost(fixed_s, row_s * slower), 30)
    after = write(tuner, cost, 30)[-1]
    assert before / DEAD_BAND**2 - 1 <= after <= before * DEAD_BAND**2 + 1


def test_one_chunk_that_is_held_up_changes_nothing() -> None:
    tuner = ChunkTuner(500, 50_000, 0.25)
    settled = write(tuner, Cost(0.004, 2e-6), 30)[-1]
    tuner.measured(settled, 5.0, 5.1)
    assert write(tuner, Cost(0.004, 2e-6), 10) == [settled] * 10


def test_small_chunks_say_nothing_of_the_bound() -> None:
    tuner = ChunkTuner(500, 50_000, 0.25)
    for _ in range(50):
        tuner.measured(100, 0.002, 0.005)
    assert tuner.rows == 20_000


def test_slow_commits_make_chunks_larger_not_smaller() -> None:
    assert write(ChunkTuner(500, 1_000_000, 0.25), Cost(0.5, 2e-6), 40)[-1] >= 200_000


def test_after_a_chunk_that_took_too_long_the_next_is_half_of_it_and_never_more() -> None:
    tuner = ChunkTuner(500, 50_000, 0.2)
    tuner.too_slow(12_000)
    assert tuner.rows == 6_000
    tuner.too_slow(20_000)
    assert tuner.rows == 6_000
    for _ in range(10):
        tuner.too_slow(tuner.rows)
    assert tuner.rows == 500
