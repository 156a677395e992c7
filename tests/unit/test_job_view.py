"""The table of `bulkgrpc.ingest.job_view`, row by row, and the progress of jobs."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bulkgrpc.ingest.job_view import JobViews, merge
from bulkgrpc.ingest.live_job import LiveJob
from bulkgrpc.ingest.ports import PostgresUnavailable, RedisUnavailable
from bulkgrpc.limits import RECENT_DIGESTS_MAX
from bulkgrpc.model import Job, JobCounts, JobKey, JobSpec, JobState, to_us
from bulkgrpc.redis.job_fields import from_fields, to_fields
from tests.support.jobs import NOW, a_job, live_of

LATER = NOW + timedelta(seconds=1)
OTHER = JobSpec(JobKey.derive("acme", "other"), "other", "other", 9)
ROW = a_job(partitions=(1, 2), next_sequence=5, counts=JobCounts(50, 40, 6, 3, 1), failure_reason="none yet")
AHEAD = LiveJob(OTHER, (3,), 7, 70, JobState.OPEN, LATER)
LEVEL = replace(AHEAD, next_sequence=5)
MOVED = replace(ROW, partitions=(3,))


@pytest.mark.parametrize("row_state", [state for state in JobState if state.ended])
def test_every_value_is_from_the_row_once_it_has_ended(row_state: JobState) -> None:
    ended = replace(ROW, state=row_state, end_time=LATER)
    assert merge(ended, replace(AHEAD, state=JobState.SEALED, seal_time=NOW)) == ended


def test_every_value_is_from_the_row_if_only_the_progress_has_ended() -> None:
    assert merge(ROW, replace(AHEAD, state=JobState.CANCELLED)) == ROW


@pytest.mark.parametrize(
    ("row", "live", "expected"),
    [
        # Request, options and creation; partitions; next_sequence and accepted.
        (ROW, AHEAD, replace(MOVED, next_sequence=7, counts=replace(ROW.counts, accepted=70))),
        (ROW, LEVEL, MOVED),
        (ROW, replace(AHEAD, next_sequence=3), MOVED),
        # State.
        (ROW, replace(LEVEL, state=JobState.SEALED), replace(MOVED, state=JobState.SEALED)),
        (replace(ROW, state=JobState.SEALED), LEVEL, replace(MOVED, state=JobState.SEALED)),
        # Seal time.
        (ROW, replace(LEVEL, seal_time=LATER), replace(MOVED, seal_time=LATER)),
        (replace(ROW, seal_time=NOW), replace(LEVEL, seal_time=LATER), replace(MOVED, seal_time=NOW)),
    ],
)
def test_each_value_of_an_open_job_has_one_source(row: Job, live: LiveJob, expected: Job) -> None:
    assert merge(row, live) == expected


@pytest.mark.parametrize(("row_attempt", "live_attempt"), [(1, 0), (0, 1), (2, 1)])
def test_every_value_is_from_the_row_if_the_progress_is_of_another_attempt(row_attempt: int, live_attempt: int) -> None:
    row, sealed = replace(ROW, attempt=row_attempt), replace(AHEAD, state=JobState.SEALED, attempt=live_attempt)
    assert merge(row, sealed) == row
    assert merge(None, sealed).attempt == live_attempt


def test_without_a_row_every_value_is_from_the_progress_an_end_included() -> None:
    cancelled = replace(AHEAD, state=JobState.CANCELLED, seal_time=NOW)
    expected = Job(OTHER, (3,), JobState.CANCELLED, JobCounts(accepted=70), 7, LATER, NOW)
    assert merge(None, cancelled) == expected
    assert merge(None, None) is None


class Stores:
    """A job store and live jobs in one that answer as the test says."""

    def __init__(self, row: Job | Exception | None, live: LiveJob | Exception | None) -> None:
        self._row = row
        self._live = live

    async def get_job(self, key: JobKey) -> Job | None:
        if isinstance(self._row, Exception):
            raise self._row
        return self._row

    async def get(self, key: JobKey) -> LiveJob | None:
        if isinstance(self._live, Exception):
            raise self._live
        return self._live

    async def get_many(self, keys: list[JobKey]) -> dict[JobKey, LiveJob]:
        found = await self.get(keys[0])
        return {} if found is None else {keys[0]: found}


async def test_a_view_needs_one_of_the_stores() -> None:
    async def view(row: Job | Exception | None, live: LiveJob | Exception | None) -> Job | None:
        stores: Any = Stores(row, live)
        return await JobViews(stores, stores).get(ROW.spec.key)

    assert await view(ROW, AHEAD) == merge(ROW, AHEAD)
    assert await view(ROW, RedisUnavailable()) == ROW
    assert await view(PostgresUnavailable(), AHEAD) == AHEAD.as_job()
    assert await view(None, RedisUnavailable()) is None
    for live in (None, RedisUnavailable()):
        with pytest.raises(PostgresUnavailable):
            await view(PostgresUnavailable(), live)


async def test_rows_are_merged_in_their_order_and_ended_ones_are_not_looked_up() -> None:
    ended = replace(a_job(), state=JobState.SUCCEEDED)
    stores: Any = Stores(None, AHEAD)
    assert await JobViews(stores, stores).merge_rows([ended, ROW]) == [ended, merge(ROW, AHEAD)]
    stores = Stores(None, RedisUnavailable())
    assert await JobViews(stores, stores).merge_rows([ended, ROW]) == [ended, ROW]


def test_only_the_row_says_that_a_job_has_ended() -> None:
    job = a_job()
    assert merge(job, live_of(job, 9, 90, JobState.CANCELLED)) == job


def test_a_job_continues_on_the_lanes_of_the_stream_whose_progress_redis_has() -> None:
    job = a_job(partitions=(3, 4, 5), next_sequence=2)
    assert merge(job, replace(live_of(job, 9, 90), partitions=(3,))).partitions == (3,)
    assert merge(job, None).partitions == (3, 4, 5)


@given(st.lists(st.integers(1, 400), min_size=1, max_size=12))
def test_contiguous_progress_of_a_job_keeps_all_digests_up_to_the_limit(steps: list[int]) -> None:
    job, sequence = a_job(), 0
    saved = live_of(job, 0, 0)
    for step in steps:
        recent = tuple(b"%d" % number for number in range(sequence, sequence + step))
        sequence += step
        saved = replace(live_of(job, sequence, sequence), recent_digests=recent).after(saved)
    assert saved.recent_digests == tuple(b"%d" % number for number in range(sequence))[-RECENT_DIGESTS_MAX:]
    hole = replace(live_of(job, sequence + 5, 0), recent_digests=(b"x",))
    assert hole.after(saved) == hole


def test_a_live_job_survives_as_fields() -> None:
    live = live_of(a_job(), 3, 30, JobState.SEALED)
    fields = {**to_fields(live), "partitions": "3", "next_sequence": "3", "accepted": "30", "state": "2"}
    assert from_fields({**fields, "seal_time_us": str(to_us(NOW))}) == live
    for name in fields:
        assert from_fields({key: value for key, value in fields.items() if key != name}) is None


def test_redis_brings_a_row_forward_and_never_back() -> None:
    row = a_job(next_sequence=5, counts=JobCounts(50, 40, 10, 0))
    ahead = merge(row, live_of(row, 7, 70, JobState.SEALED))
    assert (ahead.next_sequence, ahead.counts, ahead.state) == (7, JobCounts(70, 40, 10, 0), JobState.SEALED)
    assert ahead.seal_time == NOW
    assert merge(row, live_of(row, 3, 30)) == row
    assert merge(row, None) == row


def test_an_ended_job_is_what_its_row_says() -> None:
    row = a_job(state=JobState.SUCCEEDED, seal_time=NOW, end_time=NOW + timedelta(seconds=1))
    assert merge(row, live_of(row, 9, 90, JobState.SEALED)) == row
