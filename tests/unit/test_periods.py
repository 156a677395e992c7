from __future__ import annotations

import itertools
from datetime import date, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bulkgrpc.datasets.periods import PartitionPeriod, Period, period_of, periods_around

DAYS = st.dates(date(1, 1, 1), date(9999, 11, 30))
LENGTHS = st.sampled_from(list(PartitionPeriod))


@given(DAYS, LENGTHS)
def test_every_day_is_in_one_period_and_the_next_one_begins_where_it_ends(day: date, length: PartitionPeriod) -> None:
    period = period_of(day, length)
    assert period.first <= day < period.until
    assert period_of(period.first, length) == period_of(period.until - timedelta(days=1), length) == period
    assert period_of(period.until, length).first == period.until


@pytest.mark.parametrize(
    ("length", "period"),
    [
        (PartitionPeriod.DAY, Period(date(2024, 2, 29), date(2024, 3, 1))),
        (PartitionPeriod.WEEK, Period(date(2024, 2, 26), date(2024, 3, 4))),
        (PartitionPeriod.MONTH, Period(date(2024, 2, 1), date(2024, 3, 1))),
    ],
)
def test_periods_are_those_of_the_calendar(length: PartitionPeriod, period: Period) -> None:
    assert period_of(date(2024, 2, 29), length) == period


@given(st.dates(date(1970, 1, 1), date(2999, 1, 1)), LENGTHS)
def test_the_periods_around_a_day_follow_each_other_from_the_one_before_it(
    today: date, length: PartitionPeriod
) -> None:
    periods = periods_around(today, length)
    assert periods[1] == period_of(today, length)
    assert len(periods) == 2 + length.ahead
    assert all(one.until == other.first for one, other in itertools.pairwise(periods))
