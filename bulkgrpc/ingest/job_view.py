"""The one view of a job: its PostgreSQL row and its progress in Redis, merged.

A row is written by workers and lags behind what servers accepted; progress is written by servers and knows nothing of
what was applied. Where both are known, each value has one source:

| value                                       | from                                                              |
|---------------------------------------------|-------------------------------------------------------------------|
| every value, once the row has ended         | the row: only a row says that a job has ended                     |
| every value, if progress says that it ended | the row: progress is then older than the row, or about to expire  |
| every value, if progress is of another attempt | the row: progress is of before a loss, or the row is             |
| request, options, labels, version, creation | the row                                                           |
| partitions of the lanes                     | the progress: the next batch must follow those that were sent     |
| state                                       | the later one: OPEN, then SEALED                                  |
| next_sequence                               | the larger one                                                    |
| accepted                                    | the one with the larger next_sequence; the row's if they are equal |
| written, duplicate, rejected, expired, skipped | the row                                                           |
| seal_time                                   | the row; if it has none, the progress                             |
| end_time, failure_reason                    | the row                                                           |
| block, discard_reason, apply_progress       | the row                                                           |

Without a row (PostgreSQL was unavailable when the job was opened, or is unavailable now) every value is from the
progress, an end included, with nothing applied. Without progress (Redis is unavailable or lost it) every value is from
the row.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import overload

from bulkgrpc.ingest.live_job import LiveJob
from bulkgrpc.ingest.ports import JobStore, LiveJobs, PostgresUnavailable, RedisUnavailable
from bulkgrpc.model import Job, JobKey


@overload
def merge(row: Job, live: LiveJob | None) -> Job: ...
@overload
def merge(row: Job | None, live: LiveJob) -> Job: ...
@overload
def merge(row: Job | None, live: LiveJob | None) -> Job | None: ...
def merge(row: Job | None, live: LiveJob | None) -> Job | None:
    """Return the view of a job by the rules of this module's table; None if neither store knows the job."""
    if row is None:
        return None if live is None else live.as_job()
    if live is None or row.state.ended or live.state.ended or live.attempt != row.attempt:
        return row
    ahead = live.next_sequence > row.next_sequence
    return replace(
        row,
        partitions=live.partitions,
        state=max(row.state, live.state),
        counts=replace(row.counts, accepted=live.accepted) if ahead else row.counts,
        next_sequence=max(row.next_sequence, live.next_sequence),
        seal_time=row.seal_time or live.seal_time,
    )


class JobViews:
    """Reads jobs from both stores."""

    def __init__(self, store: JobStore, live_jobs: LiveJobs) -> None:
        self._store = store
        self._live_jobs = live_jobs

    async def get(self, key: JobKey) -> Job | None:
        """Return a job; None if neither store knows it.

        Raises PostgresUnavailable if PostgreSQL does not answer and Redis does not know the job.
        """
        live = await self.progress(key)
        try:
            row = await self._store.get_job(key)
        except PostgresUnavailable:
            if live is None:
                raise
            row = None
        return merge(row, live)

    async def merge_rows(self, rows: Sequence[Job]) -> list[Job]:
        """Return the views of jobs that have rows, in the same order; progress costs one round trip."""
        progress = await self.progress_of([row.spec.key for row in rows if not row.state.ended])
        return [merge(row, None if progress is None else progress.get(row.spec.key)) for row in rows]

    async def progress(self, key: JobKey) -> LiveJob | None:
        """Return a job's progress; None if Redis does not know it or is unavailable."""
        try:
            return await self._live_jobs.get(key)
        except RedisUnavailable:
            return None

    async def progress_of(self, keys: Collection[JobKey]) -> Mapping[JobKey, LiveJob] | None:
        """Return the progress of those jobs that Redis knows; None if it is unavailable."""
        try:
            return await self._live_jobs.get_many(list(keys))
        except RedisUnavailable:
            return None
