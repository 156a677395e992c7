"""The backlog: what is not applied, since when, and how long the workers need for it."""

from __future__ import annotations

import uuid
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bulkgrpc.consume.backlog import PRECISION, Backlog, DrainRate, PartitionBacklog, measure, stored_at
from bulkgrpc.consume.log_identity import LogRange, Recorded, Stop
from bulkgrpc.consume.ports import RecordLogError

NOW = datetime(2026, 11, 30, 12, 0, tzinfo=UTC)


class Topic:
    """A record log of messages with times in order. first: the offset of each partition's first message."""

    def __init__(self, partitions: Sequence[Sequence[datetime]], first: int = 0) -> None:
        self._partitions, self._first = partitions, first
        self.requests = 0

    def partitions(self) -> int | None:
        return len(self._partitions) or None

    def ranges(self, partitions: range) -> Mapping[int, LogRange]:
        return {one: LogRange(self._first, self._first + len(self._partitions[one])) for one in partitions}

    def first_at(self, times: Mapping[int, datetime]) -> Mapping[int, tuple[int, datetime]]:
        self.requests += 1
        found = {one: bisect_left(self._partitions[one], time) for one, time in times.items()}
        return {
            one: (self._first + place, self._partitions[one][place])
            for one, place in found.items()
            if place < len(self._partitions[one])
        }


class Ledger:
    """What the ledger has of each partition."""

    def __init__(self, offsets: Mapping[int, int]) -> None:
        self._offsets = offsets

    def recorded(self) -> tuple[uuid.UUID | None, Mapping[int, Recorded]]:
        return None, {one: Recorded(offset, None, None) for one, offset in self._offsets.items()}

    def record(self, found: uuid.UUID) -> uuid.UUID:
        raise NotImplementedError

    def save(self, stops: Mapping[int, Stop | None], logs: Mapping[int, LogRange | None]) -> None:
        raise NotImplementedError


def before(*seconds: float) -> list[datetime]:
    return [NOW - timedelta(seconds=one) for one in seconds]


ages = st.lists(st.floats(0, 3e7), min_size=1, max_size=40).map(lambda found: sorted(found, reverse=True))


@given(ages, st.data())
def test_the_time_of_any_message_is_found_without_reading_it(found: list[float], data: st.DataObject) -> None:
    place = data.draw(st.integers(0, len(found) - 1))
    topic = Topic([before(*found)])
    told = stored_at(topic, {0: place}, NOW)[0]
    wanted = before(found[place])[0]
    age_s = (NOW - wanted).total_seconds()
    assert abs((told - wanted).total_seconds()) <= max(0.1, 2 * PRECISION * age_s)
    assert topic.requests <= 48


def test_a_message_whose_time_is_its_own_is_told_exactly() -> None:
    topic = Topic([before(5000, 400, 30, 29), before(70)])
    assert stored_at(topic, {0: 1, 1: 0}, NOW) == {0: before(400)[0], 1: before(70)[0]}


def test_the_backlog_of_partitions_that_are_empty_new_applied_and_waiting() -> None:
    topic = Topic([[], before(90, 60, 30), before(90, 60, 30), before(90, 60, 30)], first=10)
    found = measure(topic, Ledger({2: 13, 3: 11}), NOW)
    assert {one: (it.messages, it.age_s(NOW)) for one, it in found.partitions.items()} == {
        0: (0, 0.0),
        1: (3, 90.0),
        2: (0, 0.0),
        3: (2, 60.0),
    }
    assert (found.messages, found.age_s) == (5, 90.0)


def test_what_retention_deleted_is_not_in_the_backlog() -> None:
    found = measure(Topic([before(20, 10)], first=100), Ledger({0: 4}), NOW)
    assert found.partitions[0].messages == 2
    assert found.age_s == 20.0


def test_a_ledger_ahead_of_the_topic_is_no_negative_backlog() -> None:
    assert measure(Topic([before(20)]), Ledger({0: 7}), NOW).messages == 0


def test_a_missing_topic_has_no_backlog_to_tell() -> None:
    with pytest.raises(RecordLogError, match="no such topic"):
        measure(Topic([]), Ledger({}), NOW)


def look(seconds: float, next_offset: int, messages: int) -> Backlog:
    time = NOW + timedelta(seconds=seconds)
    oldest = time - timedelta(seconds=7) if messages else None
    return Backlog(time, {0: PartitionBacklog(next_offset, messages, oldest)})


def test_seconds_of_work_are_the_age_until_a_rate_is_measured_and_the_quotient_from_then_on() -> None:
    rate = DrainRate()
    rate.take(look(0, 0, 900))
    assert rate.work_s(look(0, 0, 900)) == 7.0
    rate.take(look(10, 300, 600))
    assert rate.per_s == 30.0
    assert rate.work_s(look(10, 300, 600)) == 20.0


def test_idle_time_says_nothing_about_the_rate() -> None:
    rate = DrainRate()
    for found in (look(0, 0, 900), look(10, 300, 600), look(20, 900, 0), look(1000, 900, 0), look(1010, 900, 60)):
        rate.take(found)
    assert rate.per_s == 30.0
    assert rate.work_s(look(1010, 900, 60)) == 2.0
    assert rate.work_s(look(1020, 960, 0)) == 0.0


def test_workers_that_do_nothing_have_more_and_more_seconds_of_work() -> None:
    rate = DrainRate()
    for seconds in range(0, 600, 10):
        rate.take(look(seconds, 300, 600))
    assert rate.per_s == 0.0
    assert rate.work_s(look(600, 300, 600)) == 7.0


def test_a_ledger_that_went_back_is_no_rate() -> None:
    rate = DrainRate()
    rate.take(look(0, 500, 10))
    rate.take(look(10, 100, 410))
    assert rate.per_s == 0.0
