"""A stream's lease of its job, and with it the right to acknowledge: acquired, renewed, confirmed, released.

A stream may acknowledge what is stored while its lease was confirmed less than RIGHT_S ago by its own clock. So a
process that was paused confirms again before it acknowledges anything. Why no late batch is acknowledged:
docs/decisions/leases.md.
"""

from __future__ import annotations

import asyncio
import enum
import math
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Final, NoReturn

from bulkgrpc.errors import Busy, Reason, Unavailable
from bulkgrpc.ingest.ports import (
    Acquired,
    JobStore,
    LeaseHolder,
    LiveJobs,
    Opening,
    PostgresUnavailable,
    RedisUnavailable,
    Renewed,
)
from bulkgrpc.ingest.refusals import redis_unavailable
from bulkgrpc.limits import LEASE_MARGIN_S, LEASE_TTL_S
from bulkgrpc.model import JobKey

RENEW_S: Final = LEASE_TTL_S / 3
RIGHT_S: Final = LEASE_TTL_S - LEASE_MARGIN_S
# CLOCK_MONOTONIC stands still while a machine is suspended, and its leases expire meanwhile.
_CLOCK: Final = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


def clock_s() -> float:
    """Return the time of the clock of leases, in seconds; it runs while the machine is suspended."""
    return time.clock_gettime(_CLOCK)


class Standing(enum.Enum):
    """What the stores say of a stream's lease."""

    HELD = "held"
    SUPERSEDED = "superseded"
    UNCONFIRMED = "unconfirmed"


def standing(renewed: Renewed | None, own_epoch: int, row_epoch: int | None) -> Standing:
    """Return what the stores say of a lease.

    renewed: None if Redis is unavailable. own_epoch: 0 if the stream was opened without PostgreSQL. row_epoch: the
    job's now; None if PostgreSQL is unavailable or was not asked, -1 if the job has no row, or another session's.

    | Redis                  | own epoch | the row's  | standing    |
    |------------------------|-----------|------------|-------------|
    | TAKEN                  | any       | any        | SUPERSEDED  |
    | any other              | known     | the same   | HELD        |
    | any other              | known     | another    | SUPERSEDED  |
    | KEPT                   | known     | not known  | HELD        |
    | REGAINED, unavailable  | known     | not known  | UNCONFIRMED |
    | KEPT                   | 0         | any        | HELD        |
    | REGAINED, unavailable  | 0         | any        | UNCONFIRMED |
    """
    if renewed is Renewed.TAKEN:
        return Standing.SUPERSEDED
    if own_epoch and row_epoch is not None:
        return Standing.HELD if row_epoch == own_epoch else Standing.SUPERSEDED
    return Standing.HELD if renewed is Renewed.KEPT else Standing.UNCONFIRMED


@dataclass(frozen=True, slots=True)
class LeaseStores:
    """The stores that confirm leases."""

    live_jobs: LiveJobs
    jobs: JobStore


class Lease:
    """The lease of one stream.

    acquired: how Redis gave it; None if Redis was unavailable, so that it depends on `opened`.
    """

    def __init__(
        self,
        stores: LeaseStores,
        key: JobKey,
        holder: LeaseHolder,
        acquired: Acquired | None,
        clock: Callable[[], float] = clock_s,
    ) -> None:
        self.epoch = 0
        self.acquired = acquired
        self.holder = holder
        self._stores = stores
        self._key = key
        self._clock = clock
        self._held_until_s = -math.inf
        self._seal_from_s = -math.inf
        # Redis lost the lease, and PostgreSQL has not said since then that no other stream had it.
        self._lost = False

    @property
    def held(self) -> bool:
        """Whether the stream may acknowledge what is stored now."""
        return self._clock() < self._held_until_s

    @property
    def seal_wait_s(self) -> float:
        """How long an earlier stream of the job may still acknowledge what it stores."""
        return max(0.0, self._seal_from_s - self._clock())

    def held_since(self, asked_s: float) -> None:
        """Note that a store confirmed the lease, which was asked at `asked_s`."""
        self._held_until_s = max(self._held_until_s, asked_s + RIGHT_S)

    def opened(self, opening: Opening, asked_s: float) -> None:
        """Note that the job's row has this stream's epoch, if it is open; it was asked for at `asked_s`."""
        if opening.lease_epoch:
            self.epoch = opening.lease_epoch
            self.held_since(asked_s)
        self._seal_from_s = self._clock() + opening.seal_wait_s

    def opened_without_row(self) -> None:
        """Note that PostgreSQL was unavailable when the job was opened; Redis has the lease."""
        earlier = self.acquired is Acquired.AFTER_ANOTHER
        self._seal_from_s = self._clock() + (LEASE_TTL_S if earlier else 0)

    async def hold(self) -> None:
        """Return if the stream may acknowledge what was stored before this call.

        Costs nothing while the lease was confirmed in time. Raises what `confirm` raises.
        """
        if not self.held:
            await self.confirm()

    async def confirm(self) -> None:
        """Check that no other stream has opened the job since; prolongs the right to acknowledge.

        Raises Busy (JOB_BUSY) if one has; Unavailable (POSTGRES_UNAVAILABLE) if no store can say and the right is over.
        """
        asked_s, in_time = self._clock(), self.held
        renewed = await self._renew()
        # In time, the server's watch of the rows is enough (`JobWatch.until_ended`). After a pause the row is asked
        # too: a stream may have opened the job in it while Redis was unavailable.
        asks = renewed is not Renewed.TAKEN and not (in_time and renewed is Renewed.KEPT)
        found = standing(renewed, self.epoch, await self._row_epoch() if asks and self.epoch else None)
        if found is Standing.HELD:
            self._lost = False
            self.held_since(asked_s)
        elif found is Standing.SUPERSEDED:
            self._held_until_s = -math.inf
            raise superseded(self._key)
        elif not self.held:
            raise _unconfirmed(self._key)

    async def keep_renewed(self) -> NoReturn:
        """Confirm the lease repeatedly until cancelled. Raises what `confirm` raises."""
        while True:
            await asyncio.sleep(RENEW_S)
            await self.confirm()

    async def until_may_seal(self) -> None:
        """Wait until no earlier stream of the job may acknowledge any more: what it stores later follows the seal."""
        await asyncio.sleep(self.seal_wait_s)

    async def _renew(self) -> Renewed | None:
        try:
            renewed = await self._stores.live_jobs.renew_lease(self._key, self.holder)
        except RedisUnavailable:
            return None
        self._lost = self._lost or renewed is Renewed.REGAINED
        return Renewed.REGAINED if renewed is Renewed.KEPT and self._lost else renewed

    async def _row_epoch(self) -> int | None:
        try:
            row = await self._stores.jobs.get_job(self._key)
        except PostgresUnavailable:
            return None
        # A restored row may give an epoch to a stream of another session again.
        return row.lease_epoch if row is not None and row.lease_session == self.holder.session_id else -1


@asynccontextmanager
async def leased(stores: LeaseStores, key: JobKey, holder: LeaseHolder, *, required: bool) -> AsyncIterator[Lease]:
    """Lease a job while the context lasts.

    required: whether to refuse with Unavailable (REDIS_UNAVAILABLE) while Redis is unavailable. Raises Busy (JOB_BUSY)
    if another session holds the lease.
    """
    asked_s = clock_s()
    acquired: Acquired | None = None
    try:
        acquired = await stores.live_jobs.acquire_lease(key, holder)
    except RedisUnavailable as error:
        if required:
            raise redis_unavailable(error) from error
    if acquired is Acquired.REFUSED:
        raise busy(key)
    lease = Lease(stores, key, holder, acquired)
    if acquired is not None:
        lease.held_since(asked_s)
    try:
        yield lease
    finally:
        # Without Redis the lease expires by itself.
        with suppress(RedisUnavailable):
            await stores.live_jobs.release_lease(key, holder, lease.epoch)


def busy(key: JobKey) -> Busy:
    """Return the refusal of a stream whose job is leased by another one."""
    return Busy(
        Reason.JOB_BUSY,
        f"another stream holds {key.name}: wait until it ends, at most {LEASE_TTL_S} s after its last renewal, or "
        "send the session_id that the job was opened with",
    )


def superseded(key: JobKey) -> Busy:
    """Return the refusal of a stream whose job was opened by a later one."""
    return Busy(
        Reason.JOB_BUSY,
        f"another stream has opened {key.name} since: what this one acknowledged is stored; to send the rest, open "
        "the job again once the other stream has ended",
    )


def _unconfirmed(key: JobKey) -> Unavailable:
    return Unavailable(
        Reason.POSTGRES_UNAVAILABLE,
        f"neither Redis nor PostgreSQL confirms the lease of {key.name}, so nothing more is acknowledged: open the job "
        "again with its idempotency key and continue at the first batch that was not acknowledged",
    )
