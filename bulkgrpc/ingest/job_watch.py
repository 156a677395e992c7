"""Watches jobs for watchers, which need every change, and for open streams, which need an early end.

One task reads all watched jobs together, so that 1,000 watchers cost PostgreSQL one query per round.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final, NoReturn

from bulkgrpc.errors import Reason, TooMuch
from bulkgrpc.ingest.job_view import JobViews, merge
from bulkgrpc.ingest.lease import superseded
from bulkgrpc.ingest.ports import JobStore, LiveJobs, PostgresUnavailable
from bulkgrpc.ingest.refusals import job_ended
from bulkgrpc.model import Job, JobKey

INTERVAL_S: Final = 0.25
STREAMS_INTERVAL_S: Final = 1.0
"""Interval at which the rows of open streams' jobs are read."""
WATCHERS_MAX: Final = 1000


class WatchedJob:
    """A job with one waiter. Keeps the newest view only, so a slow waiter misses intermediate changes, not the end."""

    def __init__(self, key: JobKey, job: Job | None = None) -> None:
        self.key = key
        self._job = job
        self._gone = False
        self._changed = asyncio.Event()

    def update(self, job: Job | None) -> None:
        """Set the job's view; None: the job no longer exists."""
        if job is None:
            self._gone = True
        elif job == self._job:
            return
        else:
            self._job = job
        self._changed.set()

    async def next_change(self) -> Job | None:
        """Wait for a change; return the view after it, or None if the job no longer exists."""
        await self._changed.wait()
        self._changed.clear()
        return None if self._gone else self._job


class JobWatch:
    """Distributes the views of jobs to waiters. One task of the process calls `run`.

    While PostgreSQL is unavailable no waiter gets an update; all keep waiting.
    """

    def __init__(self, store: JobStore, live_jobs: LiveJobs, clock: Callable[[], float] = time.monotonic) -> None:
        self._store = store
        self._views = JobViews(store, live_jobs)
        self._clock = clock
        self._watchers: set[WatchedJob] = set()
        self._streams: set[WatchedJob] = set()
        self._streams_due_s = 0.0
        self._wanted = asyncio.Event()

    @contextmanager
    def watching(self, job: Job) -> Iterator[WatchedJob]:
        """Watch every change after `job`. Raises TooMuch (TOO_MANY_STREAMS) above WATCHERS_MAX."""
        if len(self._watchers) >= WATCHERS_MAX:
            raise TooMuch(
                Reason.TOO_MANY_STREAMS,
                f"{WATCHERS_MAX} jobs are watched, the limit of this server: poll the job with GetJob instead",
                retry_after_s=1.0,
                limit_streams=str(WATCHERS_MAX),
            )
        with self._waiting(WatchedJob(job.spec.key, job), self._watchers) as watched:
            yield watched

    async def until_ended(self, key: JobKey, lease_epoch: int = 0) -> NoReturn:
        """Wait until the job of an open stream has ended; its row is read every STREAMS_INTERVAL_S.

        lease_epoch: the stream's, 0 if it is not known. Raises NotNow (JOB_ENDED) then, saying how; Busy (JOB_BUSY) if
        a later stream has opened the job.
        """
        with self._waiting(WatchedJob(key), self._streams) as watched:
            while True:
                job = await watched.next_change()
                if job is not None and job.state.ended:
                    raise job_ended(job)
                if job is not None and 0 < lease_epoch < job.lease_epoch:
                    raise superseded(key)

    def publish(self, job: Job) -> None:
        """Pass on at once what this process itself did to a job."""
        for watched in (*self._watchers, *self._streams):
            if watched.key == job.spec.key:
                watched.update(job)

    async def run(self) -> NoReturn:
        """Read the watched jobs until cancelled."""
        while True:
            await self._wanted.wait()
            await self._read()
            await asyncio.sleep(INTERVAL_S)

    @contextmanager
    def _waiting(self, watched: WatchedJob, where: set[WatchedJob]) -> Iterator[WatchedJob]:
        where.add(watched)
        self._wanted.set()
        try:
            yield watched
        finally:
            where.discard(watched)
            if not self._watchers and not self._streams:
                self._wanted.clear()

    async def _read(self) -> None:
        # A waiter that joins during the query knows more than its answer: only those of before are updated.
        watchers, streams = list(self._watchers), self._due_streams()
        job_ids = {watched.key.job_id for watched in (*watchers, *streams)}
        if not job_ids:
            return
        try:
            rows = {row.spec.key: row for row in await self._store.get_jobs(list(job_ids))}
        except PostgresUnavailable:
            return
        for watched in streams:
            if watched.key in rows:
                watched.update(rows[watched.key])
        if not watchers:
            return
        progress = await self._views.progress_of({watched.key for watched in watchers})
        for watched in watchers:
            job = merge(rows.get(watched.key), None if progress is None else progress.get(watched.key))
            # Without Redis a job that has no row may exist: its view is unknown.
            if job is not None or progress is not None:
                watched.update(job)

    def _due_streams(self) -> list[WatchedJob]:
        if self._clock() < self._streams_due_s:
            return []
        self._streams_due_s = self._clock() + STREAMS_INTERVAL_S
        return list(self._streams)
