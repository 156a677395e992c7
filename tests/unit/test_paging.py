"""Page sizes and page tokens."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bulkgrpc.errors import Invalid
from bulkgrpc.ingest.paging import (
    dataset_page_start,
    job_page_start,
    page_size,
    rejection_page_start,
    token_after_dataset,
    token_after_job,
    token_after_rejection,
)
from bulkgrpc.ingest.ports import RejectionPosition
from bulkgrpc.model import from_us, to_us
from tests.support.jobs import a_job

TIMES = st.datetimes(datetime(1970, 1, 2), datetime(9000, 1, 1), timezones=st.just(UTC))


@given(TIMES)
def test_a_time_survives_as_microseconds(time: datetime) -> None:
    assert from_us(to_us(time)) == time


@given(TIMES)
def test_a_page_token_leads_to_the_job_it_was_made_of(time: datetime) -> None:
    job = a_job(create_time=time)
    start = job_page_start(token_after_job(job))
    assert start is not None
    assert (start.create_time, start.job_id) == (time, job.spec.key.job_id)


@given(st.integers(0, 2**53), st.integers(0, 50_000), st.integers(0, 2**53))
def test_a_page_token_leads_to_the_rejection_it_was_made_of(sequence: int, record_index: int, number: int) -> None:
    position = RejectionPosition(sequence, record_index, number)
    assert rejection_page_start(token_after_rejection(position)) == position


def test_a_dataset_page_token_leads_to_its_dataset() -> None:
    assert dataset_page_start(token_after_dataset("weather")) == "weather"


@given(st.text(min_size=1))
def test_an_invalid_page_token_is_refused_and_nothing_else_happens(text: str) -> None:
    for read in (job_page_start, dataset_page_start, rejection_page_start):
        try:
            read(text)
        except Invalid as refused:
            assert refused.field == "page_token"  # noqa: PT017 — many texts, some of them tokens


def test_a_page_has_50_entries_by_default_and_1000_at_most() -> None:
    assert (page_size(0), page_size(1000)) == (50, 1000)
    for size in (-1, 1001):
        with pytest.raises(Invalid, match="1000"):
            page_size(size)
