"""Who may acknowledge: the lease of a stream on stores in memory, with a clock of the test's own."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import pytest

from bulkgrpc.errors import Busy, Refusal, Unavailable
from bulkgrpc.ingest.lease import RENEW_S, RIGHT_S, Lease, LeaseStores, Standing, clock_s, standing
from bulkgrpc.ingest.ports import Acquired, LeaseHolder, Renewed
from bulkgrpc.limits import LEASE_TTL_S
from bulkgrpc.model import JobKey, JobSpec
from tests.support.ingest_ports import MemoryJobs, MemoryLiveJobs
from tests.support.jobs import NOW

KEY = JobKey.derive("acme", "key")
SPEC = JobSpec(KEY, "key", "readings", 1)


@dataclass
class Stores:
    """Both stores, and the time."""

    rows: MemoryJobs = field(default_factory=MemoryJobs)
    redis: MemoryLiveJobs = field(default_factory=MemoryLiveJobs)
    now_s: float = 1000.0

    async def open(self, session: str) -> Lease:
        """Acquire and open as a stream does."""
        holder, asked_s = LeaseHolder(session, f"{session}{self.now_s}"), self.now_s
        acquired = None if self.redis.unavailable else await self.redis.acquire_lease(KEY, holder)
        lease = Lease(LeaseStores(self.redis, self.rows), KEY, holder, acquired, lambda: self.now_s)
        if acquired:
            lease.held_since(asked_s)
        if self.rows.unavailable:
            lease.opened_without_row()
        else:
            lease.opened(await self.rows.open_stream(SPEC, (0,), NOW, session, 0), asked_s)
        return lease

    async def end(self, lease: Lease) -> None:
        await self.redis.release_lease(KEY, lease.holder, lease.epoch)


async def refusal(lease: Lease) -> type[Refusal] | None:
    """How an acknowledgement is refused; None: it is not."""
    try:
        await lease.hold()
    except Refusal as refused:
        return type(refused)
    return None


@pytest.mark.parametrize(
    ("own_epoch", "row_epoch", "expected"),
    [
        (4, 4, Standing.HELD),
        (4, 5, Standing.SUPERSEDED),
        (4, -1, Standing.SUPERSEDED),
        (4, None, Standing.UNCONFIRMED),
        (0, 4, Standing.UNCONFIRMED),
        (0, None, Standing.UNCONFIRMED),
    ],
)
def test_the_row_decides_unless_redis_knows(own_epoch: int, row_epoch: int | None, expected: Standing) -> None:
    assert standing(Renewed.TAKEN, own_epoch, row_epoch) is Standing.SUPERSEDED
    kept = Standing.HELD if expected is Standing.UNCONFIRMED else expected
    assert standing(Renewed.KEPT, own_epoch, row_epoch) is kept
    for renewed in (Renewed.REGAINED, None):
        assert standing(renewed, own_epoch, row_epoch) is expected


def test_the_right_to_acknowledge_ends_before_the_lease_and_outlasts_a_renewal() -> None:
    assert RENEW_S < RIGHT_S < LEASE_TTL_S


@pytest.mark.skipif(not hasattr(time, "CLOCK_BOOTTIME"), reason="only Linux has this clock")
def test_the_clock_of_leases_runs_while_the_machine_is_suspended() -> None:
    before_s = time.clock_gettime(time.CLOCK_BOOTTIME)
    assert before_s <= clock_s() <= time.clock_gettime(time.CLOCK_BOOTTIME)


async def test_a_confirmed_lease_asks_no_store_before_an_acknowledgement() -> None:
    stores = Stores()
    lease = await stores.open("one")
    stores.redis.unavailable = stores.rows.unavailable = True
    stores.now_s += RIGHT_S - 0.1
    assert await refusal(lease) is None


async def test_a_paused_stream_whose_job_was_opened_and_ended_elsewhere_acknowledges_nothing() -> None:
    stores = Stores()
    paused = await stores.open("one")
    stores.now_s += LEASE_TTL_S + 1
    stores.redis.leases.clear()  # expired
    other = await stores.open("two")
    assert await refusal(paused) is Busy
    await stores.end(other)
    assert await refusal(paused) is Busy
    assert not paused.held


async def test_a_paused_stream_whose_job_no_other_opened_resumes() -> None:
    stores = Stores()
    paused = await stores.open("one")
    stores.now_s += LEASE_TTL_S + 1
    stores.redis.leases.clear()
    stores.rows.unavailable = True  # Redis alone knows it
    assert await refusal(paused) is None


async def test_a_paused_stream_whose_job_was_opened_while_redis_was_unavailable_acknowledges_nothing() -> None:
    stores = Stores()
    paused = await stores.open("one")
    stores.now_s += LEASE_TTL_S + 1
    stores.redis.unavailable = True
    await stores.open("two")
    stores.redis.unavailable = False
    assert await refusal(paused) is Busy


@pytest.mark.parametrize("lost", ["flushed", "unavailable"])
async def test_without_the_lease_in_redis_the_row_decides(lost: str) -> None:
    stores = Stores()
    first = await stores.open("one")
    stores.now_s += LEASE_TTL_S
    stores.redis.lose()
    stores.redis.unavailable = lost == "unavailable"
    assert await refusal(first) is None
    stores.redis.lose()
    second = await stores.open("two")
    stores.redis.lose()
    stores.now_s += RIGHT_S
    assert await refusal(first) is Busy
    if not stores.redis.unavailable:
        await stores.end(first)
    assert await refusal(second) is None


async def test_a_restored_row_that_gives_an_epoch_again_confirms_it_to_the_later_session_only() -> None:
    stores = Stores()
    first = await stores.open("one")
    stores.rows.rows.clear()  # restored to a time before the job was opened
    stores.redis.lose()
    second = await stores.open("two")
    assert second.epoch == first.epoch
    stores.redis.lose()
    stores.now_s += RIGHT_S
    assert await refusal(first) is Busy
    stores.redis.lose()
    assert await refusal(second) is None


async def test_without_both_stores_nothing_is_acknowledged_and_the_stream_is_told_to_retry() -> None:
    stores = Stores()
    lease = await stores.open("one")
    stores.redis.unavailable = stores.rows.unavailable = True
    await lease.confirm()  # the right is not over yet
    stores.now_s += RIGHT_S
    assert await refusal(lease) is Unavailable
    stores.rows.unavailable = False
    assert await refusal(lease) is None


async def test_a_lease_that_redis_had_lost_counts_only_once_the_row_confirms_it() -> None:
    stores = Stores()
    first = await stores.open("one")
    second = await stores.open("one")
    stores.now_s += RIGHT_S
    stores.redis.lose()
    stores.rows.unavailable = True
    assert await refusal(first) is Unavailable
    assert await refusal(first) is Unavailable  # although Redis has it now
    stores.rows.unavailable = False
    assert await refusal(first) is Busy
    stores.redis.leases.clear()
    stores.redis.last.clear()
    assert await refusal(second) is None


async def test_a_stream_that_was_opened_without_its_row_depends_on_redis() -> None:
    stores = Stores()
    stores.rows.unavailable = True
    lease = await stores.open("one")
    stores.now_s += RIGHT_S
    assert await refusal(lease) is None
    stores.now_s += RIGHT_S
    stores.rows.unavailable = False
    stores.redis.lose()
    assert await refusal(lease) is Unavailable


async def test_a_stream_waits_with_its_seal_while_an_earlier_one_may_acknowledge() -> None:
    stores = Stores()
    stores.rows.seal_wait_s = 7.0
    first = await stores.open("one")
    assert first.seal_wait_s == 0
    again = await stores.open("one")
    assert again.seal_wait_s == 0  # its client reads no more of the first
    stores.redis.lose()
    other = await stores.open("two")
    assert other.seal_wait_s == 7.0
    stores.now_s += 7.0
    assert other.seal_wait_s == 0
    stores.rows.unavailable = True
    await stores.end(other)
    assert (await stores.open("two")).seal_wait_s == 0
    stores.redis.leases.clear()
    later = await stores.open("three")
    assert later.acquired is Acquired.AFTER_ANOTHER
    assert later.seal_wait_s == LEASE_TTL_S
