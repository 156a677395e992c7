from __future__ import annotations

import pytest

from bulkgrpc.consume.ownership import OwnedPartitions
from bulkgrpc.positions import Outcome, Ownership


def _owning(*ownerships: Ownership) -> OwnedPartitions:
    partitions = OwnedPartitions()
    partitions.wait([owned.partition for owned in ownerships], 0)
    partitions.confirm({owned.partition: owned for owned in ownerships})
    return partitions


def test_only_the_next_message_of_an_owned_partition_may_be_written() -> None:
    partitions = _owning(Ownership(1, 5, 2))
    assert partitions.outcome(1, 4) is Outcome.REPLAY
    assert partitions.outcome(1, 6) is Outcome.GAP
    assert partitions.outcome(1, 5) is Outcome.NEXT
    partitions.advance(1)
    assert partitions.outcome(1, 5) is Outcome.REPLAY
    assert partitions.outcome(1, 6) is Outcome.NEXT
    assert partitions.owned[1] == Ownership(1, 6, 2)
    assert partitions.outcome(2, 0) is Outcome.FENCED


def test_a_partition_that_waits_or_is_unconfirmed_is_not_written() -> None:
    partitions = _owning(Ownership(1, 5, 2), Ownership(2, 0, 1))
    partitions.wait([1], 0)
    assert partitions.outcome(1, 5) is Outcome.FENCED
    assert partitions.unconfirm() == [2]
    assert partitions.outcome(2, 0) is Outcome.FENCED
    partitions.confirm({2: Ownership(2, 7, 1)})
    assert partitions.outcome(2, 7) is Outcome.NEXT
    assert partitions.owned[2] == Ownership(2, 7, 1)


def test_a_partition_waits_until_its_time() -> None:
    partitions = OwnedPartitions()
    partitions.wait([1], 10.0)
    partitions.wait([2], 5.0)
    assert partitions.due(4.9) == []
    assert partitions.due(5.0) == [2]
    assert partitions.due(10.0) == [1, 2]


def test_a_partition_that_was_revoked_meanwhile_is_not_owned() -> None:
    partitions = OwnedPartitions()
    partitions.wait([1, 2], 0)
    partitions.release([1])
    partitions.confirm({1: Ownership(1, 0, 1), 2: Ownership(2, 0, 1)})
    assert set(partitions.owned) == {2}


def test_a_partition_continues_after_offsets_without_a_message() -> None:
    partitions = _owning(Ownership(1, 5, 2))
    partitions.pass_over(1, 8)
    assert partitions.outcome(1, 7) is Outcome.REPLAY
    assert partitions.outcome(1, 8) is Outcome.NEXT
    assert partitions.owned[1] == Ownership(1, 8, 2)


def test_a_held_partition_is_owned_but_neither_written_nor_fetched() -> None:
    partitions = _owning(Ownership(1, 5, 2), Ownership(2, 7, 1))
    partitions.hold(1, 9)
    assert partitions.held == {1: 9}
    assert partitions.outcome(1, 5) is Outcome.FENCED
    assert partitions.outcome(2, 7) is Outcome.NEXT
    assert set(partitions.owned) == {1, 2}
    assert set(partitions.fetched) == {2}


@pytest.mark.parametrize("how", ["wait", "unconfirm", "release", "release_all"])
def test_a_partition_that_is_no_longer_owned_is_not_held(how: str) -> None:
    partitions = _owning(Ownership(1, 5, 2))
    partitions.hold(1, 9)
    {
        "wait": lambda: partitions.wait([1], 0),
        "unconfirm": partitions.unconfirm,
        "release": lambda: partitions.release([1]),
        "release_all": partitions.release_all,
    }[how]()
    assert partitions.held == {}


def test_after_leaving_the_group_no_partition_is_owned_waiting_or_unconfirmed() -> None:
    partitions = _owning(Ownership(1, 5, 2))
    partitions.wait([2], 0)
    partitions.release_all()
    assert (partitions.owned, partitions.unconfirmed, partitions.due(1.0)) == ({}, {}, [])
