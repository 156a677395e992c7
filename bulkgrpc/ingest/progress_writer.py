"""The progress of jobs, written to Redis for all streams of the process together."""

from __future__ import annotations

import asyncio
import uuid
from contextlib import suppress
from typing import Final, NoReturn

from bulkgrpc.ingest.live_job import LiveJob
from bulkgrpc.ingest.ports import LiveJobs, RedisUnavailable

INTERVAL_S: Final = 0.1


class ProgressWriter:
    """Collects the newest progress of each job and saves all of it every INTERVAL_S, in one round trip.

    Keeps one entry per job with at most RECENT_DIGESTS_MAX digests, so its size is bounded by the open streams. What
    Redis does not take is dropped: the next entry is newer, and correctness does not depend on it.
    """

    def __init__(self, live_jobs: LiveJobs) -> None:
        self._live_jobs = live_jobs
        self._newest: dict[uuid.UUID, LiveJob] = {}
        self._recorded = asyncio.Event()
        self._writing = asyncio.Lock()

    def record(self, live: LiveJob) -> None:
        """Have a job's progress saved at the next interval."""
        earlier = self._newest.get(live.spec.key.job_id)
        self._newest[live.spec.key.job_id] = live if earlier is None else live.after(earlier)
        self._recorded.set()

    async def flush(self) -> None:
        """Save what was recorded; when this returns, Redis has it, or is unavailable."""
        async with self._writing:
            newest, self._newest = self._newest, {}
            self._recorded.clear()
            with suppress(RedisUnavailable):
                await self._live_jobs.save(*newest.values())

    async def run(self) -> NoReturn:
        """Save what is recorded until cancelled."""
        while True:
            await self._recorded.wait()
            await self.flush()
            await asyncio.sleep(INTERVAL_S)
