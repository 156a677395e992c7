from __future__ import annotations

from bulkgrpc.consume.ownership import Holdings
from bulkgrpc.model import Ownership


def _held(*ownerships: Ownership) -> Holdings:
    holdings = Holdings()
    holdings.wait([owned.partition for owned in ownerships], 0)
    holdings.hold({owned.partition: owned for owned in ownerships})
    return holdings


def test_only_the_next_message_of_a_held_partition_may_be_written() -> None:
    holdings = _held(Ownership(1, 5, 2))
    assert holdings.take(1, 4) is None
    assert holdings.take(1, 5) == Ownership(1, 5, 2)
    assert holdings.take(1, 5) is None
    assert holdings.take(1, 6) == Ownership(1, 6, 2)
    assert holdings.take(2, 0) is None


def test_a_partition_that_waits_or_is_in_doubt_is_not_written() -> None:
    holdings = _held(Ownership(1, 5, 2), Ownership(2, 0, 1))
    holdings.wait([1], 0)
    assert holdings.take(1, 5) is None
    assert holdings.doubt() == [2]
    assert holdings.take(2, 0) is None
    holdings.hold({2: Ownership(2, 7, 1)})
    assert holdings.take(2, 7) == Ownership(2, 7, 1)


def test_a_partition_waits_until_its_time() -> None:
    holdings = Holdings()
    holdings.wait([1], 10.0)
    holdings.wait([2], 5.0)
    assert holdings.waiting(4.9) == []
    assert holdings.waiting(5.0) == [2]
    assert holdings.waiting(10.0) == [1, 2]


def test_what_went_away_meanwhile_is_not_held() -> None:
    holdings = Holdings()
    holdings.wait([1, 2], 0)
    holdings.drop([1])
    holdings.hold({1: Ownership(1, 0, 1), 2: Ownership(2, 0, 1)})
    assert set(holdings.held) == {2}
