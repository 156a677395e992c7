"""Live jobs and leases against a real Redis."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime

import pytest
import uvloop
from redis.asyncio import Redis

from bulkgrpc.ingest.live_job import LiveJob
from bulkgrpc.ingest.ports import Acquired, LeaseHolder, RedisUnavailable, Renewed
from bulkgrpc.limits import LEASE_TTL_S, RECENT_DIGESTS_MAX
from bulkgrpc.model import JobKey, JobSpec, JobState, digest_of
from bulkgrpc.redis.job_fields import DIGEST_CHARS
from bulkgrpc.redis.live_jobs import AVOID_S, DEADLINE_S, RedisLiveJobs
from bulkgrpc.stack import Addresses


@pytest.fixture
async def live(addresses: Addresses) -> AsyncIterator[RedisLiveJobs]:
    async with RedisLiveJobs(addresses.redis) as jobs:
        yield jobs


def a_job(next_sequence: int = 0, accepted: int = 0) -> LiveJob:
    spec = JobSpec(JobKey.derive("acme", uuid.uuid4().hex), "key", "weather", 1, {"ä": "\n"})
    return LiveJob(spec, (3, 0), next_sequence, accepted, JobState.OPEN, datetime.now(UTC))


async def test_what_is_remembered_is_read_back(live: RedisLiveJobs) -> None:
    jobs = [a_job(number, number * 10) for number in range(3)]
    await live.save(*jobs)
    assert [await live.get(job.spec.key) for job in jobs] == jobs
    await live.delete(jobs[0].spec.key)
    assert await live.get(jobs[0].spec.key) is None


async def test_a_job_never_goes_backward(live: RedisLiveJobs) -> None:
    job = a_job(5, 50)
    sealed = replace(job, next_sequence=6, accepted=60, state=JobState.SEALED, seal_time=datetime.now(UTC))
    await live.save(job, sealed, replace(job, next_sequence=2, accepted=99), job)
    assert await live.get(job.spec.key) == sealed


async def test_what_a_job_is_never_changes(live: RedisLiveJobs) -> None:
    job = a_job()
    await live.save(job)
    await live.save(replace(job, partitions=(1,), spec=replace(job.spec, dataset="other")))
    assert await live.get(job.spec.key) == job


async def test_the_lanes_are_those_of_the_stream_that_came_farthest(live: RedisLiveJobs) -> None:
    job = a_job(5)
    farther = replace(job, next_sequence=6, partitions=(3,))
    await live.save(job, farther, replace(job, next_sequence=6), job)
    assert await live.get(job.spec.key) == farther


async def test_many_jobs_are_read_in_one_go_and_unknown_ones_are_left_out(live: RedisLiveJobs) -> None:
    jobs = [a_job(number) for number in range(3)]
    await live.save(*jobs[:2])
    found = await live.get_many([job.spec.key for job in jobs])
    assert found == {job.spec.key: job for job in jobs[:2]}
    assert await live.get_many([]) == {}


def with_digests(job: LiveJob, from_sequence: int, next_sequence: int, salt: bytes = b"") -> LiveJob:
    digests = tuple(digest_of(salt + b"%d" % sequence) for sequence in range(from_sequence, next_sequence))
    return replace(job, next_sequence=next_sequence, recent_digests=digests)


def expected(from_sequence: int, next_sequence: int) -> dict[int, bytes]:
    return {sequence: digest_of(b"%d" % sequence) for sequence in range(from_sequence, next_sequence)}


async def test_the_digests_of_the_last_batches_are_kept_and_no_more(live: RedisLiveJobs, addresses: Addresses) -> None:
    job = a_job()
    key = job.spec.key
    last = 3 * RECENT_DIGESTS_MAX + 7
    for start in range(0, last, 500):
        await live.save(with_digests(job, start, min(last, start + 500)))
    assert await live.digests(key) == expected(last - RECENT_DIGESTS_MAX, last)
    async with Redis.from_url(addresses.redis) as redis:
        assert await redis.strlen(f"bulk:digests:{key.job_id}") == RECENT_DIGESTS_MAX * DIGEST_CHARS
        assert 0 < await redis.ttl(f"bulk:digests:{key.job_id}") <= 24 * 3600
    await live.delete(key)
    assert await live.digests(key) == {}


async def test_digests_after_a_hole_are_never_mixed_up_with_those_before_it(live: RedisLiveJobs) -> None:
    job = a_job()
    await live.save(with_digests(job, 0, RECENT_DIGESTS_MAX))
    # Redis did not take some of them, or another stream continued without a trace.
    await live.save(with_digests(job, RECENT_DIGESTS_MAX + 5, RECENT_DIGESTS_MAX + 8))
    assert await live.digests(job.spec.key) == expected(RECENT_DIGESTS_MAX + 5, RECENT_DIGESTS_MAX + 8)
    await live.save(replace(job, next_sequence=RECENT_DIGESTS_MAX + 20))
    assert await live.digests(job.spec.key) == {}


async def test_the_first_digest_of_a_batch_stands(live: RedisLiveJobs) -> None:
    job = a_job()
    await live.save(with_digests(job, 0, 4))
    await live.save(with_digests(job, 2, 4, b"other"), with_digests(job, 2, 6))
    assert await live.digests(job.spec.key) == expected(0, 6)


async def test_another_tenants_job_is_not_there(live: RedisLiveJobs) -> None:
    job = a_job()
    await live.save(job)
    assert await live.get(JobKey("other", job.spec.key.job_id)) is None


async def test_a_hash_that_is_not_whole_is_not_there(live: RedisLiveJobs, addresses: Addresses) -> None:
    job = a_job()
    async with Redis.from_url(addresses.redis) as redis:
        await redis.hset(f"bulk:job:{job.spec.key.job_id}", "next_sequence", "5")
    assert await live.get(job.spec.key) is None


async def test_a_job_and_a_lease_run_out_by_themselves(live: RedisLiveJobs, addresses: Addresses) -> None:
    job = a_job()
    await live.save(job)
    await live.acquire_lease(job.spec.key, LeaseHolder("one", "1"))
    async with Redis.from_url(addresses.redis) as redis:
        assert 0 < await redis.ttl(f"bulk:job:{job.spec.key.job_id}") <= 24 * 3600
        assert 0 < await redis.pttl(f"bulk:lease:{job.spec.key.job_id}") <= LEASE_TTL_S * 1000


async def test_one_session_holds_a_job_and_its_later_stream_pushes_the_earlier_out(live: RedisLiveJobs) -> None:
    key = a_job().spec.key
    old, new, other = LeaseHolder("one", "1"), LeaseHolder("one", "2"), LeaseHolder("on", "1")
    assert await live.acquire_lease(key, old)
    assert not await live.acquire_lease(key, other)
    assert await live.acquire_lease(key, new)
    assert not await live.renew_lease(key, old)
    await live.release_lease(key, old)
    assert not await live.acquire_lease(key, other)
    assert await live.renew_lease(key, new)
    await live.release_lease(key, new)
    assert await live.acquire_lease(key, other)


async def test_a_lease_that_was_lost_with_redis_is_taken_again_by_its_renewal(live: RedisLiveJobs) -> None:
    key = a_job().spec.key
    assert await live.renew_lease(key, LeaseHolder("one", "1"))
    assert not await live.acquire_lease(key, LeaseHolder("two", "1"))


async def test_a_dead_redis_is_one_exception_and_costs_nobody_a_second_wait() -> None:
    async with RedisLiveJobs("redis://127.0.0.1:1/0") as live:
        with pytest.raises(RedisUnavailable):
            await live.get(a_job().spec.key)
        begun_s = time.monotonic()
        for _ in range(100):
            with pytest.raises(RedisUnavailable):
                await live.save(a_job())
        assert time.monotonic() - begun_s < DEADLINE_S


async def test_a_redis_that_is_silent_costs_one_deadline() -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.read(1024):
            pass
        writer.close()
        closed.set()

    closed = asyncio.Event()
    server = await asyncio.start_server(silent, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    begun_s = time.monotonic()
    async with RedisLiveJobs(f"redis://127.0.0.1:{port}/0") as live:
        with pytest.raises(RedisUnavailable):
            await live.get(a_job().spec.key)
        assert time.monotonic() - begun_s < 2 * DEADLINE_S
    await closed.wait()
    server.close()


async def test_redis_is_asked_again_after_a_while(addresses: Addresses) -> None:
    now_s = 0.0
    async with RedisLiveJobs(addresses.redis, clock=lambda: now_s) as live:
        live._avoid_until_s = AVOID_S
        with pytest.raises(RedisUnavailable):
            await live.get(a_job().spec.key)
        now_s = AVOID_S
        assert await live.get(a_job().spec.key) is None


async def test_the_eviction_policy_is_told(live: RedisLiveJobs) -> None:
    assert await live.eviction_policy() != ""


def test_a_connection_that_died_unnoticed_is_an_absence_like_any_other_and_the_next_one_is_good(
    addresses: Addresses,
) -> None:
    """The servers run on uvloop, whose transports say it in their own way."""
    now_s = [0.0]

    async def ask() -> None:
        async with RedisLiveJobs(addresses.redis, lambda: now_s[0]) as live:
            job = a_job()
            await live.save(job)
            for connection in live._redis.connection_pool._available_connections:
                connection._writer.transport.abort()
            with pytest.raises(RedisUnavailable):
                await live.get(job.spec.key)
            now_s[0] += 2 * AVOID_S
            assert await live.get(job.spec.key) == job

    uvloop.run(ask())


async def test_an_expired_lease_is_renewed_unless_another_stream_has_had_it_since(
    live: RedisLiveJobs, addresses: Addresses
) -> None:
    job, old, new = a_job(), LeaseHolder("one", "1"), LeaseHolder("two", "1")
    key = job.spec.key
    async with Redis.from_url(addresses.redis) as redis:
        assert await live.acquire_lease(key, old) is Acquired.FIRST
        await redis.delete(f"bulk:lease:{key.job_id}")  # as if it had expired
        assert await live.renew_lease(key, old) is Renewed.KEPT
        await redis.delete(f"bulk:lease:{key.job_id}")
        await live.save(job)
        assert await live.acquire_lease(key, new) is Acquired.AFTER_ANOTHER
        await live.release_lease(key, new)
        assert await live.renew_lease(key, old) is Renewed.TAKEN
        assert await live.acquire_lease(key, LeaseHolder("two", "2")) is Acquired.SAME_SESSION
        await redis.delete(f"bulk:lease:{key.job_id}", f"bulk:job:{key.job_id}")
        assert await live.renew_lease(key, old) is Renewed.REGAINED


async def test_the_last_stream_that_ended_is_known_by_its_epoch_while_its_job_is(live: RedisLiveJobs) -> None:
    job, holder = a_job(), LeaseHolder("one", "1")
    await live.acquire_lease(job.spec.key, holder)
    await live.release_lease(job.spec.key, holder, 7)
    assert await live.get(job.spec.key) is None
    await live.save(job)
    for epoch in (3, 5, 4, 0):
        await live.release_lease(job.spec.key, holder, epoch)
    found = await live.get(job.spec.key)
    assert found is not None
    assert found.released_epoch == 5
    await live.delete(job.spec.key)
    await live.release_lease(job.spec.key, holder, 9)
    assert await live.get(job.spec.key) is None


async def test_what_is_known_of_an_earlier_attempt_is_forgotten_and_not_saved_again(live: RedisLiveJobs) -> None:
    job = a_job()
    holder = LeaseHolder("session", "stream")
    await live.acquire_lease(job.spec.key, holder)
    first = replace(with_digests(job, 0, 6), accepted=60, state=JobState.SEALED, seal_time=datetime.now(UTC))
    await live.save(first)
    again = replace(job, partitions=(3,), next_sequence=2, accepted=20, attempt=1)
    await live.save(again)
    assert await live.get(job.spec.key) == again
    assert await live.digests(job.spec.key) == {}
    await live.save(replace(first, next_sequence=9), replace(first, state=JobState.CANCELLED))
    assert await live.get(job.spec.key) == again
    sealed = replace(again, next_sequence=6, accepted=60, state=JobState.SEALED, seal_time=datetime.now(UTC))
    await live.save(sealed)
    assert await live.get(job.spec.key) == sealed
    # The stream that has the lease is still known.
    assert await live.renew_lease(job.spec.key, holder) is Renewed.KEPT
    await live.release_lease(job.spec.key, holder)
