"""Batches and jobs that are resent: compared, not stored twice; found also when Redis has forgotten them."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Callable
from typing import Any

import grpc
import psycopg
import pytest
from google.protobuf.duration_pb2 import Duration
from redis.asyncio import Redis

from bulkgrpc.errors import Reason
from bulkgrpc.model import JobOptions, JobState, digest_of
from bulkgrpc.settings import ServerSettings
from bulkgrpc.v1 import jobs_pb2
from tests.integration.server_peer import (
    Peer,
    Request,
    ServeWith,
    a_key,
    batch,
    eventually,
    finish,
    header,
    next_answer,
    proxy_to,
    read_topic,
    refusal,
    rest,
    seal,
    through,
)

pytest_plugins = ["tests.integration.server_parts"]


async def break_off(client: Peer, key: str, batches: int) -> str:
    """Open a job, have batches acknowledged, break off and wait until the job is free; return its name."""
    call = client.stream()
    await call.write(header(idempotency_key=key, session_id=key))
    name = (await next_answer(call)).opened.job.name
    for sequence in range(batches):
        await call.write(batch(sequence))
    while batches and (await next_answer(call)).acknowledged.next_sequence < batches:
        pass
    call.cancel()
    return name


async def redis_forgets(settings: ServerSettings, name: str, *, only_digests: bool = False) -> None:
    job_id = name.rpartition("/")[2]
    async with Redis.from_url(settings.redis) as redis:

        async def known() -> bool:
            return bool(await redis.exists(f"bulk:job:{job_id}")) and not await redis.exists(f"bulk:lease:{job_id}")

        await eventually(known)
        await redis.delete(*([] if only_digests else [f"bulk:job:{job_id}"]), f"bulk:digests:{job_id}")


def applied(settings: ServerSettings, name: str, batches: list[Request]) -> None:
    """Write what the worker writes when it applies batches."""
    job_id = uuid.UUID(name.rpartition("/")[2])
    with psycopg.connect(settings.postgres) as connection:
        (day,) = connection.execute("SELECT create_day FROM bulk.jobs WHERE job_id = %s", [job_id]).fetchone() or (0,)
        connection.execute("INSERT INTO bulk.lanes VALUES (%s, %s, 0, %s)", [day, job_id, len(batches)])
        for request in batches:
            digest = digest_of(request.batch.SerializeToString())
            place = [day, job_id, request.batch.sequence, digest]
            connection.execute("INSERT INTO bulk.batches VALUES (%s, %s, %s, %s)", place)


def ended(settings: ServerSettings, name: str, state: JobState, failure: str = "", records: int = 0) -> None:
    """Write what ends a job."""
    with psycopg.connect(settings.postgres) as connection:
        connection.execute(
            "UPDATE bulk.jobs SET state = %s, failure_reason = %s, end_time = now(), accepted = %s, written = %s "
            "WHERE job_id = %s",
            [state, failure, records, records, uuid.UUID(name.rpartition("/")[2])],
        )


async def sequences(settings: ServerSettings) -> list[int]:
    found = await asyncio.to_thread(read_topic, settings.kafka, settings.topic)
    return [message.sequence for message, payload in found if payload]


async def test_options_and_expiry_and_digest_travel_with_every_batch(
    client: Peer, server_settings: ServerSettings
) -> None:
    options = jobs_pb2.JobOptions(atomic=True, rejections_max=7, time_to_live=Duration(seconds=90, nanos=500_000_000))
    answers = await client.whole(header(options=options), batch(0), batch(1))
    assert answers[0].opened.job.options == options
    assert (await client.job(answers[0].opened.job.name)).options == options
    found = await asyncio.to_thread(read_topic, server_settings.kafka, server_settings.topic)
    for message, payload in found[:2]:
        assert message.spec.options == JobOptions(atomic=True, rejections_max=7, time_to_live_s=90.5)
        assert message.digest == digest_of(payload)
        assert message.expires_at is not None
        assert (message.expires_at - message.sent_at).total_seconds() == 90.5
    assert found[2][0].spec.options.atomic


async def test_a_batch_sent_again_is_acknowledged_at_once_and_not_stored_again(
    client: Peer, server_settings: ServerSettings
) -> None:
    key = a_key()
    await break_off(client, key, 3)
    call = client.stream()
    await call.write(header(idempotency_key=key, session_id=key))
    assert (await next_answer(call)).opened.next_sequence == 3
    await call.write(batch(0))
    assert (await next_answer(call)).acknowledged.next_sequence == 3
    for sequence in (1, 2, 3):
        await call.write(batch(sequence))
    await finish(call, 4)
    assert (await rest(call))[-1].sealed.job.counts.accepted == 8
    assert await sequences(server_settings) == [0, 1, 2, 3]


@pytest.mark.parametrize("where", ["redis", "postgresql"])
async def test_a_batch_sent_again_with_other_bytes_is_a_conflict(
    client: Peer, server_settings: ServerSettings, where: str
) -> None:
    key = a_key()
    name = await break_off(client, key, 3)
    if where == "postgresql":
        await redis_forgets(server_settings, name)
        applied(server_settings, name, [batch(sequence) for sequence in range(3)])
    resent = [batch(0), batch(1, records=3), batch(2)]
    code, refused = await refusal(client.whole(header(idempotency_key=key, session_id=key), *resent))
    assert (code, refused.reason, refused.field) == (
        grpc.StatusCode.ALREADY_EXISTS,
        Reason.BATCH_CONFLICT,
        "batch",
    )
    assert "batch 1" in refused.message
    assert refused.retry_after_s == 0
    answers = await client.whole(header(idempotency_key=key, session_id=key), *map(batch, range(4)))
    assert answers[-1].sealed.job.next_sequence == 4
    assert await sequences(server_settings) == [0, 1, 2, 3]


async def test_a_batch_that_nobody_remembers_waits_for_the_worker(
    client: Peer, server_settings: ServerSettings
) -> None:
    key = a_key()
    name = await break_off(client, key, 3)
    await redis_forgets(server_settings, name, only_digests=True)
    again = (header(idempotency_key=key, session_id=key), *map(batch, range(4)))
    code, refused = await refusal(client.whole(*again))
    assert (code, refused.reason) == (grpc.StatusCode.UNAVAILABLE, Reason.RESUME_NOT_READY)
    assert refused.retry_after_s > 0
    applied(server_settings, name, [batch(sequence) for sequence in range(3)])
    assert (await client.whole(*again))[-1].sealed.job.next_sequence == 4
    assert await sequences(server_settings) == [0, 1, 2, 3]


async def test_without_postgresql_batches_sent_again_are_compared_with_what_redis_knows(
    serve_with: ServeWith, server_settings: ServerSettings
) -> None:
    proxy = proxy_to(server_settings.postgres)
    async with proxy, serve_with(postgres=lambda: through(server_settings.postgres, proxy)) as (_, client):
        key = a_key()
        name = await break_off(client, key, 2)
        await proxy.cut()
        code, refused = await refusal(client.whole(header(idempotency_key=key, session_id=key), batch(0, records=9)))
        assert (code, refused.reason) == (grpc.StatusCode.ALREADY_EXISTS, Reason.BATCH_CONFLICT)
        await redis_forgets(server_settings, name, only_digests=True)
        code, refused = await refusal(client.whole(header(idempotency_key=key, session_id=key), batch(0)))
        assert (code, refused.reason) == (grpc.StatusCode.UNAVAILABLE, Reason.RESUME_NOT_READY)
        proxy.repair()


async def test_a_finished_job_sent_again_comes_back_at_once_also_with_redis_empty(
    client: Peer, server_settings: ServerSettings
) -> None:
    key = a_key()
    large = [batch(sequence, records=1000) for sequence in range(100)]
    name = (await client.whole(header(idempotency_key=key), *large))[-1].sealed.job.name
    ended(server_settings, name, JobState.SUCCEEDED, records=100_000)
    await redis_forgets(server_settings, name)
    begun_s = time.monotonic()
    answers = await client.whole(header(idempotency_key=key))
    assert time.monotonic() - begun_s < 0.5
    assert answers[0].opened.replayed
    assert answers[0].opened.job.name == name
    assert answers[-1].sealed.replayed
    assert answers[-1].sealed.job.counts.written == 100_000


ENDS: list[tuple[JobState, str, str]] = [
    (JobState.CANCELLED, "", "was cancelled"),
    (JobState.EXPIRED, "", "expired"),
    (JobState.FAILED, "3 records were rejected, more than 2", "failed: 3 records were rejected"),
]


@pytest.mark.parametrize(("state", "failure", "says"), ENDS, ids=str)
async def test_a_job_that_ended_early_is_answered_as_it_is_and_takes_no_batches(
    client: Peer, server_settings: ServerSettings, state: JobState, failure: str, says: str
) -> None:
    key = a_key()
    name = await break_off(client, key, 1)
    ended(server_settings, name, state, failure)
    opening = header(idempotency_key=key, session_id=key)
    answers = await client.whole(opening)
    assert answers[0].opened.replayed
    job = answers[-1].sealed.job
    assert (int(job.state), job.failure_reason) == (int(state), failure)
    code, refused = await refusal(client.whole(opening, batch(0)))
    assert (code, refused.reason) == (grpc.StatusCode.FAILED_PRECONDITION, Reason.JOB_ENDED)
    assert says in refused.message
    assert "another idempotency key" in refused.message


async def test_a_seal_that_is_not_stored_in_time_is_told_and_the_same_key_finds_the_job(
    client: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = a_key()

    async def never(*_: Any) -> None:
        await asyncio.sleep(60)

    with monkeypatch.context() as patch:
        patch.setattr("bulkgrpc.limits.SEAL_TIMEOUT_S", 0.3)
        patch.setattr("bulkgrpc.ingest.batch_appender.BatchAppender.seal", never)
        calls: list[Callable[..., Any]] = [client.whole, client.submit]
        for call in calls:
            begun_s = time.monotonic()
            code, refused = await refusal(call(header(idempotency_key=key, session_id=key), batch(0)))
            assert time.monotonic() - begun_s < 5
            assert (code, refused.reason) == (grpc.StatusCode.DEADLINE_EXCEEDED, Reason.SEAL_TIMEOUT)
            assert refused.retry_after_s > 0
            assert "same idempotency key" in refused.message
    answers = await client.whole(header(idempotency_key=key, session_id=key), seal(1))
    assert (answers[0].opened.replayed, answers[0].opened.next_sequence) == (False, 1)
    assert answers[-1].sealed.job.counts.accepted == 2
