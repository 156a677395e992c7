"""A stream's hold of its job in Redis: taken, kept, checked before the seal, let go."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Final, NoReturn

from bulkgrpc.errors import Busy, Reason, Unavailable
from bulkgrpc.model import JobKey
from bulkgrpc.redis.live import LEASE_TTL_S, Holder, LiveJobs, RedisUnavailable

RENEW_S: Final = LEASE_TTL_S / 3


class Lease:
    """A hold that was taken, or, while Redis is away and streams are accepted all the same, hoped for."""

    def __init__(self, live: LiveJobs, key: JobKey, holder: Holder) -> None:
        self._live = live
        self._key = key
        self._holder = holder

    async def confirm(self) -> None:
        """Check that no other stream took the job over. Raises Busy (JOB_BUSY) if one did."""
        try:
            ours = await self._live.renew_lease(self._key, self._holder)
        except RedisUnavailable:
            return
        if not ours:
            raise busy(self._key)

    async def keep(self) -> NoReturn:
        """Renew the hold until cancelled. Raises Busy (JOB_BUSY) if another stream took the job over."""
        while True:
            await asyncio.sleep(RENEW_S)
            await self.confirm()


@asynccontextmanager
async def held(live: LiveJobs, key: JobKey, holder: Holder, *, required: bool) -> AsyncIterator[Lease]:
    """Hold a job for as long as the context lasts.

    required: what to do while Redis is away; True refuses. Raises Busy (JOB_BUSY) if another session holds the job.
    """
    try:
        if not await live.take_lease(key, holder):
            raise busy(key)
    except RedisUnavailable as error:
        if required:
            raise Unavailable(
                Reason.POSTGRES_UNAVAILABLE,
                "Redis does not answer, and nothing is begun here without it: try again in a moment",
            ) from error
    try:
        yield Lease(live, key, holder)
    finally:
        # Without Redis it runs out by itself.
        with suppress(RedisUnavailable):
            await live.release_lease(key, holder)


def busy(key: JobKey) -> Busy:
    """Return the refusal of a stream whose job another one holds."""
    return Busy(
        Reason.JOB_BUSY,
        f"another stream holds {key.name}: wait until it ends, at most {LEASE_TTL_S} s after its last sign of life, or "
        "send the session_id it was opened with",
    )
