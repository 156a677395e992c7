from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bulkgrpc.consume.fairness import ChunkLoad, FairnessSettings, PartitionShares, drain_share, next_shares

SETTINGS = FairnessSettings()
LATE_S, IN_TIME_S = 1.0, 0.001
NONE = PartitionShares()
NOISY = {"noisy": 900, "quiet": 100}


def after(loads: list[ChunkLoad], shares: PartitionShares = NONE, **weights: float) -> PartitionShares:
    for load in loads:
        shares = next_shares(shares, load, weights, SETTINGS)
    return shares


def load(records: dict[str, int], **waiting_s: float) -> ChunkLoad:
    return ChunkLoad(records, waiting_s)


def test_a_tenant_above_its_share_is_hot_once_another_waits() -> None:
    assert after([load(NOISY, quiet=IN_TIME_S, noisy=LATE_S)]).hot == frozenset()
    assert after([load(NOISY, quiet=LATE_S, noisy=LATE_S)]).hot == {"noisy"}


def test_a_tenant_alone_is_never_hot() -> None:
    assert after([load({"noisy": 900}, noisy=LATE_S)] * 50).hot == frozenset()


def test_a_weight_allows_a_larger_share() -> None:
    assert after([load(NOISY, quiet=LATE_S)], noisy=9.0).hot == frozenset()


def test_a_hot_tenant_stays_hot_while_it_waits_itself() -> None:
    """The others are served in time because it is deferred: that alone must not end its deferral."""
    hot = after([load(NOISY, quiet=LATE_S)])
    assert after([load(NOISY, quiet=IN_TIME_S, noisy=LATE_S)] * 100, hot).hot == {"noisy"}


@pytest.mark.parametrize(
    "calm", [load({"noisy": 1, "quiet": 500}, quiet=LATE_S, noisy=LATE_S), load(NOISY, quiet=IN_TIME_S)]
)
def test_a_hot_tenant_cools_down_after_enough_calm_chunks_in_succession(calm: ChunkLoad) -> None:
    # The first chunks only change the mean of the recent work.
    assert "noisy" not in after([calm] * 30, after([load(NOISY, quiet=LATE_S)])).hot
    busy = load(NOISY, quiet=LATE_S, noisy=LATE_S)
    hot = after([busy])
    few = [load(NOISY, quiet=IN_TIME_S)] * (SETTINGS.calm_chunks - 1)
    assert after([*few, busy, *few], hot).hot == {"noisy"}
    assert after([*few, few[0]], hot).hot == frozenset()


def test_a_tenant_that_left_is_forgotten() -> None:
    shares = after([load({"quiet": 1000})] * 100, after([load(NOISY, quiet=LATE_S)]))
    assert shares.work.keys() == {"quiet"}
    assert shares.hot == frozenset()


tenants = st.sampled_from(["a", "b", "c"])
loads = st.builds(
    ChunkLoad, st.dictionaries(tenants, st.integers(0, 10**6)), st.dictionaries(tenants, st.floats(0, 100))
)


@given(st.lists(loads, max_size=40), st.dictionaries(tenants, st.floats(0.1, 10)))
def test_somebody_is_always_served_directly_and_the_deferred_always_advance(
    history: list[ChunkLoad], weights: dict[str, float]
) -> None:
    shares = NONE
    for found in history:
        shares = next_shares(shares, found, weights, SETTINGS)
    assert shares.hot <= shares.work.keys()
    assert not shares.work or shares.hot < shares.work.keys()
    share = drain_share(shares, weights, SETTINGS)
    assert SETTINGS.drain_share_min <= share <= 1.0
    assert (share == 1.0) or shares.hot


@pytest.mark.parametrize(
    "wrong", [{"exit_ratio": 2.0}, {"exit_ratio": 1.0}, {"waiting_s_calm": 0.2}, {"decay": 1.0}, {"calm_chunks": 0}]
)
def test_thresholds_without_a_gap_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="required"):
        FairnessSettings(**wrong)  # type: ignore[arg-type]
