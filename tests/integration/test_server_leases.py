"""Who may acknowledge and seal: the epoch in the job's row, and two servers that have the same job."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import grpc
import psycopg
import pytest
from psycopg_pool import AsyncConnectionPool
from redis.asyncio import Redis

from bulkgrpc.errors import Reason
from bulkgrpc.limits import LEASE_MARGIN_S, LEASE_TTL_S
from bulkgrpc.model import JobKey, JobSpec
from bulkgrpc.postgres.jobs import JobStore
from bulkgrpc.settings import ServerSettings
from tests.integration.server_peer import (
    Peer,
    ServeWith,
    a_key,
    batch,
    finish,
    header,
    next_answer,
    refusal,
    rest,
)

pytest_plugins = ["tests.integration.server_parts"]

NOW = datetime(2026, 1, 1, tzinfo=UTC)
SEEN_WITHIN_S = 3.0
"""Within which a server reads that a job of its open streams was opened again."""
UNREACHABLE = "redis://127.0.0.1:1/0"


@pytest.fixture
async def store(database: str) -> AsyncIterator[JobStore]:
    async with AsyncConnectionPool(database, min_size=1, open=False, kwargs={"autocommit": True}) as pool:
        yield JobStore(pool)


def a_spec(key: str = "k") -> JobSpec:
    return JobSpec(JobKey.derive("acme", key), key, "readings", 1, {"a": "b"})


async def test_each_stream_raises_the_epoch_and_knows_how_long_an_earlier_one_may_acknowledge(store: JobStore) -> None:
    async def opened(session: str, released_epoch: int = 0) -> tuple[int, float]:
        opening = await store.open_stream(a_spec(), (0,), NOW, session, released_epoch)
        assert opening.job.lease_epoch == opening.lease_epoch
        row = await store.get_job(a_spec().key)
        assert row is not None
        assert row.lease_epoch == opening.lease_epoch
        return opening.lease_epoch, opening.seal_wait_s

    assert await opened("one") == (1, 0)
    assert await opened("one") == (2, 0)  # its client reads no more of the first
    assert await opened("two", released_epoch=2) == (3, 0)  # the second has ended
    epoch, wait_s = await opened("three", released_epoch=2)
    assert epoch == 4
    assert LEASE_TTL_S - 1 < wait_s <= LEASE_TTL_S
    epoch, inherited_s = await opened("three")
    assert epoch == 5
    assert 0 < inherited_s < wait_s


async def test_a_request_that_differs_and_a_sealed_job_leave_the_epoch(store: JobStore) -> None:
    await store.open_stream(a_spec(), (0,), NOW, "one", 0)
    other = replace(a_spec(), labels={"a": "c"})
    assert (await store.open_stream(other, (0,), NOW, "two", 0)).lease_epoch == 0
    row = await store.get_job(a_spec().key)
    assert row is not None
    assert row.lease_epoch == 1
    await store.seal_job(a_spec().key, NOW)
    opening = await store.open_stream(a_spec(), (0,), NOW, "two", 0)
    assert (opening.lease_epoch, opening.seal_wait_s, opening.job.lease_epoch) == (0, 0, 1)


async def test_of_streams_that_create_a_job_at_once_each_has_an_epoch_of_its_own(store: JobStore) -> None:
    openings = await asyncio.gather(*(store.open_stream(a_spec(), (0,), NOW, f"s{n}", 0) for n in range(5)))
    assert sorted(opening.lease_epoch for opening in openings) == [1, 2, 3, 4, 5]
    assert [opening.seal_wait_s > 0 for opening in sorted(openings, key=lambda o: o.lease_epoch)] == [False] + [
        True
    ] * 4


async def test_opening_for_a_stream_costs_as_many_statements_as_opening(
    store: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    statements = 0
    execute = psycopg.AsyncCursor.execute

    async def counted(self: psycopg.AsyncCursor[Any], *arguments: Any, **options: Any) -> Any:
        nonlocal statements
        statements += 1
        return await execute(self, *arguments, **options)

    monkeypatch.setattr(psycopg.AsyncCursor, "execute", counted)
    counts = []
    for key in ("new", "new"):
        statements = 0
        await store.open_job(a_spec(f"plain {key}".replace(" ", "-")), (0,), NOW, of_deleted=False)
        plain, statements = statements, 0
        await store.open_stream(a_spec(key), (0,), NOW, "one", 0)
        counts.append((plain, statements))
    assert counts == [(4, 4), (1, 1)]


async def begin(client: Peer, key: str, session: str) -> Any:
    """Open a job and return its stream."""
    call = client.stream()
    await call.write(header(idempotency_key=key, session_id=session))
    await next_answer(call)
    return call


async def ended_with(call: Any) -> Reason:
    code, refused = await refusal(asyncio.wait_for(rest(call), SEEN_WITHIN_S))
    assert code is grpc.StatusCode.ABORTED
    return refused.reason


async def forget(settings: ServerSettings, key: str) -> None:
    """Lose in Redis all that it has of a job."""
    job_id = JobKey.derive("default", key).job_id
    async with Redis.from_url(settings.redis) as redis:
        await redis.delete(f"bulk:lease:{job_id}", f"bulk:job:{job_id}", f"bulk:digests:{job_id}")


async def test_if_redis_lost_the_lease_the_later_stream_supersedes_and_seals_once_the_earlier_may_not_acknowledge(
    serve_with: ServeWith, server_settings: ServerSettings
) -> None:
    key = a_key()
    async with serve_with() as (_, one), serve_with() as (_, two):
        earlier = await begin(one, key, "one")
        await forget(server_settings, key)
        begun_s = time.monotonic()
        later = await begin(two, key, "two")
        assert await ended_with(earlier) is Reason.JOB_BUSY
        await later.write(batch(0))
        assert (await next_answer(later)).acknowledged.next_sequence == 1
        assert time.monotonic() - begun_s < LEASE_TTL_S - LEASE_MARGIN_S
        await finish(later, 1)
        assert (await rest(later))[-1].HasField("sealed")
        assert time.monotonic() - begun_s >= LEASE_TTL_S - LEASE_MARGIN_S


async def test_without_redis_the_last_stream_that_opened_a_job_has_it(serve_with: ServeWith) -> None:
    key = a_key()
    async with serve_with(redis=UNREACHABLE) as (_, one), serve_with(redis=UNREACHABLE) as (_, two):
        earlier = await begin(one, key, "same")
        await earlier.write(batch(0))
        await next_answer(earlier)
        later = await begin(two, key, "same")
        assert await ended_with(earlier) is Reason.JOB_BUSY
        await later.write(batch(0))
        await finish(later, 1)
        begun_s = time.monotonic()
        assert (await rest(later))[-1].HasField("sealed")
        assert time.monotonic() - begun_s < SEEN_WITHIN_S


async def test_a_stream_that_ended_delays_no_later_ones_seal(serve_with: ServeWith) -> None:
    key = a_key()
    async with serve_with() as (_, one), serve_with() as (_, two):
        earlier = await begin(one, key, "one")
        await earlier.done_writing()
        await refusal(rest(earlier))  # no seal
        begun_s = time.monotonic()
        later = await begin(two, key, "two")
        await finish(later, 0)
        assert (await rest(later))[-1].HasField("sealed")
        assert time.monotonic() - begun_s < SEEN_WITHIN_S
