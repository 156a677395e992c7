"""Jobs as values, for unit tests."""

from __future__ import annotations

import uuid
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from bulkgrpc.ingest.live_job import LiveJob
from bulkgrpc.model import Job, JobCounts, JobKey, JobSpec, JobState

NOW = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)


def a_job(**changes: Any) -> Job:
    spec = JobSpec(JobKey.derive("acme", uuid.uuid4().hex), "key", "weather", 1, {"a": "b"})
    return replace(Job(spec, (3,), JobState.OPEN, JobCounts(), 0, NOW), **changes)


def live_of(job: Job, next_sequence: int, accepted: int, state: JobState = JobState.OPEN) -> LiveJob:
    seal_time = NOW if state is JobState.SEALED else None
    return LiveJob(job.spec, job.partitions, next_sequence, accepted, state, job.create_time, seal_time)
