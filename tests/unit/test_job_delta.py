from __future__ import annotations

from datetime import UTC, datetime

import pytest

from bulkgrpc.consume.job_delta import JobDelta
from bulkgrpc.model import JobCounts, JobState

NOW = datetime.now(UTC)


@pytest.mark.parametrize(
    ("state", "before", "delta", "expected"),
    [
        (JobState.OPEN, JobCounts(), JobDelta(accepted=1, written=1), None),
        (JobState.SEALED, JobCounts(), JobDelta(accepted=1, written=1), None),
        (JobState.OPEN, JobCounts(), JobDelta(sealed_at=NOW), JobState.SUCCEEDED),
        (JobState.SEALED, JobCounts(1, 0, 0, 1), JobDelta(1, 1, sealed_at=NOW), JobState.PARTIALLY_SUCCEEDED),
        (JobState.SEALED, JobCounts(1, 0, 0, 1), JobDelta(1, 0, 0, 1, sealed_at=NOW), JobState.FAILED),
        (JobState.OPEN, JobCounts(), JobDelta(sealed_at=NOW, unsealed=True), None),
        (JobState.OPEN, JobCounts(), JobDelta(failure_reason="too many", sealed_at=NOW), JobState.FAILED),
        (JobState.OPEN, JobCounts(), JobDelta(failure_reason="too many"), JobState.FAILED),
        (JobState.SUCCEEDED, JobCounts(1, 1), JobDelta(1, 0, 0, 1), None),
        (JobState.SUCCEEDED, JobCounts(1, 1), JobDelta(1, 0, 0, 0, 1), None),
        (JobState.FAILED, JobCounts(1, 0, 0, 1), JobDelta(1, 0, 0, 1), None),
        (JobState.CANCELLED, JobCounts(), JobDelta(1, 0, 0, 1, sealed_at=NOW), None),
        (JobState.OPEN, JobCounts(), JobDelta(sealed_at=NOW, task_rows=1), JobState.SEALED),
        (JobState.SEALED, JobCounts(1), JobDelta(sealed_at=NOW, task_rows=1), JobState.SEALED),
    ],
)
def test_the_state_that_a_job_has_next(
    state: JobState, before: JobCounts, delta: JobDelta, expected: JobState | None
) -> None:
    assert delta.next_state(state, before) is expected


def test_the_last_seal_of_an_atomic_job_leaves_its_staged_rows_to_a_task() -> None:
    delta = JobDelta(accepted=5, sealed_at=NOW)
    delta.leave_staged(10)
    assert (delta.task_rows, delta.expired) == (15, 0)
    delta = JobDelta(accepted=5, sealed_at=NOW, unsealed=True)
    delta.leave_staged(10)
    assert (delta.task_rows, delta.expired) == (0, 0)


def test_an_atomic_job_that_fails_leaves_nothing_to_a_task() -> None:
    delta = JobDelta(accepted=5, rejected=1, sealed_at=NOW, failure_reason="one of them is rejected")
    delta.leave_staged(10)
    assert (delta.task_rows, delta.expired) == (0, 14)
