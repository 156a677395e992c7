"""A stream's lease of its job: acquired, renewed, confirmed before the seal, released."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Final, NoReturn

from bulkgrpc.errors import Busy, Reason
from bulkgrpc.ingest.ports import LeaseHolder, LiveJobs, RedisUnavailable
from bulkgrpc.ingest.refusals import redis_unavailable
from bulkgrpc.limits import LEASE_TTL_S
from bulkgrpc.model import JobKey

RENEW_S: Final = LEASE_TTL_S / 3


class Lease:
    """A lease that was acquired, or assumed while Redis is unavailable and streams are accepted anyway."""

    def __init__(self, live_jobs: LiveJobs, key: JobKey, holder: LeaseHolder) -> None:
        self._live_jobs = live_jobs
        self._key = key
        self._holder = holder

    async def confirm(self) -> None:
        """Check that no other stream has taken the job over. Raises Busy (JOB_BUSY) if one has."""
        try:
            ours = await self._live_jobs.renew_lease(self._key, self._holder)
        except RedisUnavailable:
            return
        if not ours:
            raise busy(self._key)

    async def keep_renewed(self) -> NoReturn:
        """Renew the lease until cancelled. Raises Busy (JOB_BUSY) if another stream has taken the job over."""
        while True:
            await asyncio.sleep(RENEW_S)
            await self.confirm()


@asynccontextmanager
async def leased(live_jobs: LiveJobs, key: JobKey, holder: LeaseHolder, *, required: bool) -> AsyncIterator[Lease]:
    """Lease a job while the context lasts.

    required: whether to refuse with Unavailable (REDIS_UNAVAILABLE) while Redis is unavailable. Raises Busy (JOB_BUSY)
    if another session holds the lease.
    """
    try:
        if not await live_jobs.acquire_lease(key, holder):
            raise busy(key)
    except RedisUnavailable as error:
        if required:
            raise redis_unavailable(error) from error
    try:
        yield Lease(live_jobs, key, holder)
    finally:
        # Without Redis the lease expires by itself.
        with suppress(RedisUnavailable):
            await live_jobs.release_lease(key, holder)


def busy(key: JobKey) -> Busy:
    """Return the refusal of a stream whose job is leased by another one."""
    return Busy(
        Reason.JOB_BUSY,
        f"another stream holds {key.name}: wait until it ends, at most {LEASE_TTL_S} s after its last renewal, or "
        "send the session_id that the job was opened with",
    )
