"""How much is stored and not applied yet: messages, the age of the oldest, and for how long the workers are busy.

The topic and the ledger say it, whether workers run or not. Only the right DESCRIBE on the topic is needed: no message
is read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Protocol

from bulkgrpc.consume.log_identity import LogRange
from bulkgrpc.consume.ports import RecordLogError, TopicLedger

FIRST_AGE = timedelta(seconds=1)
SEARCHES_MAX = 48
"""Rounds of requests for the times of the oldest messages: enough for years."""
PRECISION, EXACT_ENOUGH = 0.02, timedelta(milliseconds=20)
"""Of an age that Kafka does not say exactly, because several messages have one time: a part of it, and at least."""
RATE_HALVES_AFTER_S = 60.0
"""A drain rate that was measured so long ago weighs half."""


class MeasuredLog(Protocol):
    """What the record log says of its partitions. Every method raises RecordLogError."""

    def partitions(self) -> int | None:
        """Return how many partitions the topic has, None if there is no such topic."""

    def ranges(self, partitions: range) -> Mapping[int, LogRange]:
        """Return what the log has of partitions. One for which it does not answer is left out."""

    def first_at(self, times: Mapping[int, datetime]) -> Mapping[int, tuple[int, datetime]]:
        """Return offset and time of each partition's first message that is not older than its time; left out: none."""


@dataclass(frozen=True, slots=True)
class PartitionBacklog:
    """What a partition has that is not applied. oldest: when its first such message was stored, None if there is none.

    next_offset: of the ledger, or where the log starts, if that is behind it.
    """

    next_offset: int
    messages: int
    oldest: datetime | None

    def age_s(self, now: datetime) -> float:
        """Return the age of the oldest message, 0 if there is none."""
        return 0.0 if self.oldest is None else max(0.0, (now - self.oldest).total_seconds())


@dataclass(frozen=True, slots=True)
class Backlog:
    """The backlog of each partition for which Kafka answered, at a time."""

    time: datetime
    partitions: Mapping[int, PartitionBacklog]

    @property
    def messages(self) -> int:
        """Messages of all partitions."""
        return sum(one.messages for one in self.partitions.values())

    @property
    def age_s(self) -> float:
        """The age of the oldest message of all partitions."""
        return max((one.age_s(self.time) for one in self.partitions.values()), default=0.0)


def measure(log: MeasuredLog, ledger: TopicLedger, now: datetime) -> Backlog:
    """Ask Kafka and PostgreSQL. Raises RecordLogError, StoreError."""
    number = log.partitions()
    if number is None:
        raise RecordLogError("Kafka has no such topic")
    # Kafka last: what is applied meanwhile is stored by then.
    _, recorded = ledger.recorded()
    ranges = log.ranges(range(number))
    found = {
        partition: (max(one.start, recorded[partition].next_offset if partition in recorded else 0), one.end)
        for partition, one in ranges.items()
    }
    waiting = {partition: start for partition, (start, end) in found.items() if end > start}
    oldest = stored_at(log, waiting, now)
    return Backlog(
        now,
        {
            partition: PartitionBacklog(start, max(0, end - start), oldest.get(partition))
            for partition, (start, end) in found.items()
        },
    )


def stored_at(log: MeasuredLog, offsets: Mapping[int, int], now: datetime) -> Mapping[int, datetime]:
    """Return when the messages at `offsets` were stored, by asking for offsets of times: messages are not read.

    Left out are partitions for which Kafka does not answer. Raises RecordLogError.
    """
    searches = {partition: _Search(now) for partition in offsets}
    for _ in range(SEARCHES_MAX):
        asked = {partition: search.ask for partition, search in searches.items() if not search.done}
        if not asked:
            break
        answers = log.first_at(asked)
        for partition in asked:
            offset, time = answers.get(partition, (None, None))
            searches[partition].take(offsets[partition], offset, time)
    return {partition: search.since for partition, search in searches.items()}


class _Search:
    """Bisects the time of one message. Times of a partition's messages do not decrease, but for differing clocks."""

    def __init__(self, now: datetime) -> None:
        self._now, self._until = now, now
        self.since = datetime.fromtimestamp(0, UTC)
        self.ask = now - FIRST_AGE
        self.done = False

    def take(self, wanted: int, offset: int | None, time: datetime | None) -> None:
        """Take the first message that is not older than `ask`: None if there is none."""
        if offset == wanted and time is not None:
            self.since, self.done = time, True
            return
        if offset is None or offset > wanted:
            self._until = self.ask
        else:
            self.since = self.ask
        if self.since.timestamp() > 0:
            self.ask = self.since + (self._until - self.since) / 2
            self.done = self._until - self.since <= max(
                timedelta(milliseconds=20), PRECISION * (self._now - self.since)
            )
        else:
            self.ask = max(self.since, self._now - 2 * (self._now - self._until))
            self.done = self.ask == self.since


class DrainRate:
    """How many messages the workers apply in a second, while there is a backlog: measured between two looks."""

    def __init__(self) -> None:
        self._before: Backlog | None = None
        self._applied, self._seconds = 0.0, 0.0

    @property
    def per_s(self) -> float:
        """Messages per second; 0 if it is not known, or nothing is applied."""
        return self._applied / self._seconds if self._seconds > 0 else 0.0

    def take(self, found: Backlog) -> None:
        """Take a look. Only a time at both ends of which there was a backlog shows what the workers can do."""
        before, self._before = self._before, found
        if before is None or not (before.messages and found.messages):
            return
        passed_s = (found.time - before.time).total_seconds()
        both = before.partitions.keys() & found.partitions.keys()
        applied = sum(found.partitions[one].next_offset - before.partitions[one].next_offset for one in both)
        if passed_s <= 0 or applied < 0:
            return
        kept = 0.5 ** (passed_s / RATE_HALVES_AFTER_S)
        self._applied = self._applied * kept + applied
        self._seconds = self._seconds * kept + passed_s

    def work_s(self, found: Backlog) -> float:
        """Return how long the workers need for a backlog; the age of its oldest message while the rate is not known."""
        if not found.messages:
            return 0.0
        return found.messages / self.per_s if self.per_s > 0 else found.age_s
