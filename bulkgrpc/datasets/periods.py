"""The periods of the partitions of a table: calendar days, weeks or months in UTC. Pure."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from datetime import date, timedelta


class PartitionPeriod(enum.Enum):
    """The period of one partition. ahead: how many partitions are created before their time."""

    DAY = "day", 7
    WEEK = "week", 4
    MONTH = "month", 3

    @property
    def label(self) -> str:
        """Its name in texts: `day`, `week` or `month`."""
        return self.value[0]

    @property
    def ahead(self) -> int:
        """How many partitions are created before their time."""
        return self.value[1]


@dataclass(frozen=True, slots=True)
class Period:
    """The days [first, until)."""

    first: date
    until: date


def period_of(day: date, length: PartitionPeriod) -> Period:
    """Return the period that a day is in; a week begins on Monday. Raises OverflowError if it ends after 9999."""
    match length:
        case PartitionPeriod.DAY:
            return Period(day, day + timedelta(days=1))
        case PartitionPeriod.WEEK:
            monday = day - timedelta(days=day.weekday())
            return Period(monday, monday + timedelta(days=7))
        case PartitionPeriod.MONTH:
            first = day.replace(day=1)
            return Period(first, (first + timedelta(days=31)).replace(day=1))


def periods_around(today: date, length: PartitionPeriod) -> tuple[Period, ...]:
    """Return the period before the present one, the present one, and those that are created in advance."""
    present = period_of(today, length)
    found = [period_of(present.first - timedelta(days=1), length), present]
    for _ in range(length.ahead):
        found.append(period_of(found[-1].until, length))
    return tuple(found)
