"""Who waits for news of jobs: watchers, who want every change, and open streams, who want to know of an early end.

One task asks for all of them together, so that a thousand watchers cost PostgreSQL one query a round.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Final, NoReturn

from bulkgrpc.errors import Reason, TooMuch
from bulkgrpc.model import Job, JobKey
from bulkgrpc.redis.job import LiveJob, overlay
from bulkgrpc.redis.live import LiveJobs, RedisUnavailable
from bulkgrpc.server.messages import ended_already
from bulkgrpc.server.storage import PostgresUnavailable, Storage

EVERY_S: Final = 0.25
STREAMS_EVERY_S: Final = 1.0
"""How often the rows of open streams' jobs are looked at."""
WATCHERS_MAX: Final = 1000


class Watched:
    """A job that somebody waits for. Holds the newest news only, so a slow watcher misses steps, never the end."""

    def __init__(self, key: JobKey, job: Job | None = None) -> None:
        self.key = key
        self._job = job
        self._gone = False
        self._changed = asyncio.Event()

    def tell(self, job: Job | None) -> None:
        """Say how the job is now; None: there is no such job any more."""
        if job is None:
            self._gone = True
        elif job == self._job:
            return
        else:
            self._job = job
        self._changed.set()

    async def news(self) -> Job | None:
        """Wait for a change; return the job after it, or None if there is no such job any more."""
        await self._changed.wait()
        self._changed.clear()
        return None if self._gone else self._job


class JobWatch:
    """Tells those who wait how their jobs are. `keep` is run by one task of the process.

    While PostgreSQL is away nobody is told anything; they wait on.
    """

    def __init__(self, storage: Storage, live: LiveJobs, clock: Callable[[], float] = time.monotonic) -> None:
        self._storage = storage
        self._live = live
        self._clock = clock
        self._watchers: set[Watched] = set()
        self._streams: set[Watched] = set()
        self._streams_due_s = 0.0
        self._wanted = asyncio.Event()

    @contextmanager
    def watching(self, job: Job) -> Iterator[Watched]:
        """Be told each change after `job`. Raises TooMuch (TOO_MANY_STREAMS) above WATCHERS_MAX."""
        if len(self._watchers) >= WATCHERS_MAX:
            raise TooMuch(
                Reason.TOO_MANY_STREAMS,
                f"{WATCHERS_MAX} jobs are watched, the most this server takes: ask for the job now and then instead",
                retry_after_s=1.0,
                limit_streams=str(WATCHERS_MAX),
            )
        with self._waiting(Watched(job.spec.key, job), self._watchers) as watched:
            yield watched

    async def until_ended(self, key: JobKey) -> NoReturn:
        """Wait until the job of an open stream has ended: it is looked at every STREAMS_EVERY_S.

        Raises NotNow (JOB_ENDED) then, saying how.
        """
        with self._waiting(Watched(key), self._streams) as watched:
            while True:
                job = await watched.news()
                if job is not None and job.state.ended:
                    raise ended_already(job)

    def tell(self, job: Job) -> None:
        """Tell at once what this process did itself to a job."""
        for watched in (*self._watchers, *self._streams):
            if watched.key == job.spec.key:
                watched.tell(job)

    async def keep(self) -> NoReturn:
        """Look after the jobs that anybody waits for, until cancelled."""
        while True:
            await self._wanted.wait()
            await self._look()
            await asyncio.sleep(EVERY_S)

    @contextmanager
    def _waiting(self, watched: Watched, where: set[Watched]) -> Iterator[Watched]:
        where.add(watched)
        self._wanted.set()
        try:
            yield watched
        finally:
            where.discard(watched)
            if not self._watchers and not self._streams:
                self._wanted.clear()

    async def _look(self) -> None:
        # Who comes while PostgreSQL is asked knows more than the answer: only those of before are told.
        watchers, streams = list(self._watchers), self._streams_of_this_round()
        asked = {watched.key.job_id for watched in (*watchers, *streams)}
        if not asked:
            return
        try:
            rows = {job.spec.key.job_id: job for job in await self._storage.get_jobs(list(asked))}
        except PostgresUnavailable:
            return
        for watched in streams:
            row = _of(rows, watched.key)
            if row is not None:
                watched.tell(row)
        lives = await self._lives({watched.key for watched in watchers})
        for watched in watchers:
            job = _picture(_of(rows, watched.key), None if lives is None else lives.get(watched.key))
            if job is not None or lives is not None:
                watched.tell(job)

    def _streams_of_this_round(self) -> list[Watched]:
        if self._clock() < self._streams_due_s:
            return []
        self._streams_due_s = self._clock() + STREAMS_EVERY_S
        return list(self._streams)

    async def _lives(self, keys: set[JobKey]) -> Mapping[JobKey, LiveJob] | None:
        try:
            return await self._live.get_many(list(keys))
        except RedisUnavailable:
            return None


def _of(rows: Mapping[uuid.UUID, Job], key: JobKey) -> Job | None:
    row = rows.get(key.job_id)
    return row if row is not None and row.spec.key == key else None


def _picture(row: Job | None, live: LiveJob | None) -> Job | None:
    if row is not None:
        return overlay(row, live)
    return None if live is None else live.as_job()
