"""How far jobs came, written to Redis for all streams of the process at once."""

from __future__ import annotations

import asyncio
import uuid
from contextlib import suppress
from typing import Final, NoReturn

from bulkgrpc.redis.job import LiveJob
from bulkgrpc.redis.live import LiveJobs, RedisUnavailable

EVERY_S: Final = 0.1


class Notes:
    """Collects the newest state of each job and writes them down every EVERY_S, in one round trip.

    Holds one entry a job, with at most DIGESTS_MAX digests, so it is bounded by the streams. What Redis does not take
    is dropped: it is only ever newer next time, and nothing stands on it.
    """

    def __init__(self, live: LiveJobs) -> None:
        self._live = live
        self._newest: dict[uuid.UUID, LiveJob] = {}
        self._noted = asyncio.Event()
        self._writing = asyncio.Lock()

    def note(self, live: LiveJob) -> None:
        """Have a job's state written down soon."""
        earlier = self._newest.get(live.spec.key.job_id)
        self._newest[live.spec.key.job_id] = live if earlier is None else live.after(earlier)
        self._noted.set()

    async def flush(self) -> None:
        """Write down what was noted; when this returns, Redis has it, or is away."""
        async with self._writing:
            newest, self._newest = self._newest, {}
            self._noted.clear()
            with suppress(RedisUnavailable):
                await self._live.remember(*newest.values())

    async def keep(self) -> NoReturn:
        """Write down what is noted until cancelled."""
        while True:
            await self._noted.wait()
            await self.flush()
            await asyncio.sleep(EVERY_S)
