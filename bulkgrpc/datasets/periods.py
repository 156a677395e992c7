"""The times that the partitions of a table are of: days, weeks or months of the calendar, in UTC. Pure."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from datetime import date, timedelta


class Every(enum.Enum):
    """How long a time a partition is of. ahead: how many are made before their time."""

    DAY = "day", 7
    WEEK = "week", 4
    MONTH = "month", 3

    @property
    def ahead(self) -> int:
        """How many partitions are there before their time."""
        return self.value[1]


@dataclass(frozen=True, slots=True)
class Period:
    """The days [first, until)."""

    first: date
    until: date


def period_of(day: date, every: Every) -> Period:
    """Return the period that a day is in; a week begins on Monday. Raises OverflowError if it ends after 9999."""
    match every:
        case Every.DAY:
            return Period(day, day + timedelta(days=1))
        case Every.WEEK:
            monday = day - timedelta(days=day.weekday())
            return Period(monday, monday + timedelta(days=7))
        case Every.MONTH:
            first = day.replace(day=1)
            return Period(first, (first + timedelta(days=31)).replace(day=1))


def periods_around(today: date, every: Every) -> tuple[Period, ...]:
    """Return the period before the present one, the present one, and those that are made ahead."""
    present = period_of(today, every)
    found = [period_of(present.first - timedelta(days=1), every), present]
    for _ in range(every.ahead):
        found.append(period_of(found[-1].until, every))
    return tuple(found)
