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
    ],
)
def test_the_state_that_a_job_ends_in(
    state: JobState, before: JobCounts, delta: JobDelta, expected: JobState | None
) -> None:
    assert delta.end_state(state, before) is expected
