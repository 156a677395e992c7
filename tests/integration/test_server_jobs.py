"""Jobs watched, cancelled, deleted; their rejections; streams whose job ended under them."""

from __future__ import annotations

import asyncio
import uuid
from typing import Any

import grpc
import psycopg
import pytest
from redis.asyncio import Redis

from bulkgrpc.errors import Reason, Refusal
from bulkgrpc.ingest import job_watch
from bulkgrpc.postgres.jobs import JobStore
from bulkgrpc.settings import ServerSettings
from bulkgrpc.v1 import jobs_pb2
from tests.integration.server_peer import (
    DEADLINE_S,
    Peer,
    ServeWith,
    a_key,
    batch,
    eventually,
    finish,
    header,
    next_answer,
    peer,
    proxy_to,
    refusal,
    rest,
    through,
)

pytest_plugins = ["tests.integration.server_parts"]

PRECONDITION = grpc.StatusCode.FAILED_PRECONDITION


def run(settings: ServerSettings, statement: str, *values: object) -> None:
    with psycopg.connect(settings.postgres) as connection:
        connection.execute(statement.encode(), values)


def job_id(name: str) -> uuid.UUID:
    return uuid.UUID(name.rpartition("/")[2])


def end(settings: ServerSettings, name: str, state: int = 3, failure: str = "") -> None:
    run(
        settings,
        "UPDATE bulk.jobs SET state = %s, failure_reason = %s, end_time = now() WHERE job_id = %s",
        state,
        failure,
        job_id(name),
    )


def watch(client: Peer, name: str) -> Any:
    return client.jobs.WatchJob(jobs_pb2.WatchJobRequest(name=name), metadata=client.metadata, timeout=DEADLINE_S)


async def seen(call: Any) -> jobs_pb2.Job:
    answer = await asyncio.wait_for(call.read(), DEADLINE_S)
    if answer is grpc.aio.EOF:
        await call
        await _raise(call)
    assert isinstance(answer, jobs_pb2.WatchJobResponse)
    return answer.job


async def _raise(call: Any) -> None:
    async for _ in call:
        pass
    raise AssertionError(f"the watch ended: {await call.code()}")


async def cancel(client: Peer, name: str) -> jobs_pb2.Job:
    answer = await client.jobs.CancelJob(jobs_pb2.CancelJobRequest(name=name), metadata=client.metadata)
    found: jobs_pb2.Job = answer.job
    return found


async def delete(client: Peer, name: str) -> None:
    await client.jobs.DeleteJob(jobs_pb2.DeleteJobRequest(name=name), metadata=client.metadata)


async def opened(client: Peer, key: str = "") -> tuple[Any, str]:
    call = client.stream()
    await call.write(header(idempotency_key=key or a_key()))
    return call, (await next_answer(call)).opened.job.name


async def test_a_watch_shows_the_job_at_once_then_each_change_and_ends_with_the_job(
    client: Peer, server_settings: ServerSettings
) -> None:
    stream, name = await opened(client)
    call = watch(client, name)
    assert (await seen(call)).state == jobs_pb2.JOB_STATE_OPEN
    await stream.write(batch(0))
    assert (await seen(call)).counts.accepted == 2
    await finish(stream, 1)
    await rest(stream)
    assert (await seen(call)).state == jobs_pb2.JOB_STATE_SEALED
    end(server_settings, name)
    assert (await seen(call)).state == jobs_pb2.JOB_STATE_SUCCEEDED
    assert await asyncio.wait_for(call.read(), DEADLINE_S) is grpc.aio.EOF
    assert [answer.job.state async for answer in watch(client, name)] == [jobs_pb2.JOB_STATE_SUCCEEDED]


async def test_a_thousand_watchers_cost_one_query_a_round(
    serve_with: ServeWith, server_settings: ServerSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    queried: list[int] = []
    query = JobStore.get_jobs

    async def counted(store: Any, ids: Any) -> Any:
        queried.append(len(ids))
        return await query(store, ids)

    monkeypatch.setattr(JobStore, "get_jobs", counted)
    async with serve_with() as (_, client):
        name = (await client.submit(header(), batch(0))).job.name
        calls = [watch(client, name) for _ in range(100)]
        await asyncio.gather(*map(seen, calls))
        before = len(queried)
        end(server_settings, name)
        states = {(await seen(call)).state for call in calls}
        assert states == {jobs_pb2.JOB_STATE_SUCCEEDED}
        # The query that sees the end may have been sent before it.
        assert set(queried) == {1}
        assert len(queried) - before < 20


async def test_350_watchers_on_one_connection_are_answered_within_5_s(client: Peer) -> None:
    name = (await client.submit(header(), batch(0))).job.name
    calls = [watch(client, name) for _ in range(350)]
    async with asyncio.timeout(5):
        states = [(await seen(call)).state for call in calls]
    assert states == [jobs_pb2.JOB_STATE_SEALED] * 350


async def test_the_watcher_after_the_last_that_may_watch_is_refused(
    client: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job_watch, "WATCHERS_MAX", 2)
    name = (await client.submit(header(), batch(0))).job.name
    calls = [watch(client, name) for _ in range(2)]
    await asyncio.gather(*map(seen, calls))
    code, refused = await refusal(seen(watch(client, name)))
    assert (code, refused.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, Reason.TOO_MANY_STREAMS)
    assert refused.retry_after_s > 0
    calls[0].cancel()

    async def free() -> bool:
        try:
            return bool(await seen(watch(client, name)))
        except grpc.aio.AioRpcError:
            return False

    await eventually(free)


async def test_a_watch_of_no_job_is_refused_as_a_question_would_be(client: Peer) -> None:
    code, refused = await refusal(seen(watch(client, f"tenants/default/jobs/{uuid.uuid4()}")))
    assert (code, refused.reason) == (grpc.StatusCode.NOT_FOUND, Reason.JOB_NOT_FOUND)
    code, refused = await refusal(seen(watch(client, "jobs/1")))
    assert (code, refused.field) == (grpc.StatusCode.INVALID_ARGUMENT, "name")


async def test_a_watcher_is_told_nothing_while_postgresql_is_away_and_the_end_afterwards(
    serve_with: ServeWith, server_settings: ServerSettings
) -> None:
    proxy = proxy_to(server_settings.postgres)
    async with proxy, serve_with(postgres=lambda: through(server_settings.postgres, proxy)) as (_, client):
        name = (await client.submit(header(), batch(0))).job.name
        call = watch(client, name)
        await seen(call)
        await proxy.cut()
        end(server_settings, name)
        reading = asyncio.create_task(seen(call))
        done, _ = await asyncio.wait({reading}, timeout=1.0)
        assert not done
        proxy.repair()
        assert (await reading).state == jobs_pb2.JOB_STATE_SUCCEEDED


async def test_a_cancelled_job_is_cancelled_for_good(client: Peer) -> None:
    key = a_key()
    name = (await client.submit(header(idempotency_key=key), batch(0))).job.name
    job = await cancel(client, name)
    assert job.state == jobs_pb2.JOB_STATE_CANCELLED
    assert job.HasField("end_time")
    assert await cancel(client, name) == job, "cancelling again changes nothing"
    assert (await client.job(name)).state == jobs_pb2.JOB_STATE_CANCELLED
    answers = await client.whole(header(idempotency_key=key))
    assert answers[0].opened.replayed
    assert answers[0].opened.job.state == jobs_pb2.JOB_STATE_CANCELLED


async def test_without_postgresql_a_cancelled_job_takes_no_batches_and_is_not_deleted(
    serve_with: ServeWith, server_settings: ServerSettings
) -> None:
    proxy = proxy_to(server_settings.postgres)
    async with proxy, serve_with(postgres=lambda: through(server_settings.postgres, proxy)) as (_, client):
        key = a_key()
        name = (await client.submit(header(idempotency_key=key), batch(0))).job.name
        await cancel(client, name)
        await proxy.cut()
        answers = await client.whole(header(idempotency_key=key))
        assert answers[0].opened.replayed
        assert answers[0].opened.job.state == jobs_pb2.JOB_STATE_CANCELLED
        code, refused = await refusal(client.whole(header(idempotency_key=key), batch(0)))
        assert (code, refused.reason) == (PRECONDITION, Reason.JOB_ENDED)
        for call in (cancel(client, name), delete(client, name)):
            code, refused = await refusal(call)
            assert (code, refused.reason) == (grpc.StatusCode.UNAVAILABLE, Reason.POSTGRES_UNAVAILABLE)
            assert refused.retry_after_s > 0
        proxy.repair()


async def test_a_job_that_has_ended_otherwise_cannot_be_cancelled(
    client: Peer, server_settings: ServerSettings
) -> None:
    name = (await client.submit(header(), batch(0))).job.name
    end(server_settings, name)
    code, refused = await refusal(cancel(client, name))
    assert (code, refused.reason) == (PRECONDITION, Reason.JOB_ENDED)
    assert "SUCCEEDED" in refused.message
    code, refused = await refusal(cancel(client, f"tenants/default/jobs/{uuid.uuid4()}"))
    assert (code, refused.reason) == (grpc.StatusCode.NOT_FOUND, Reason.JOB_NOT_FOUND)


async def ended_with(call: Any) -> tuple[grpc.StatusCode, Refusal]:
    async with asyncio.timeout(5):
        return await refusal(next_answer(call))


async def test_cancelling_a_job_ends_its_open_stream_saying_so(client: Peer) -> None:
    call, name = await opened(client)
    await call.write(batch(0))
    await next_answer(call)
    await cancel(client, name)
    code, refused = await ended_with(call)
    assert (code, refused.reason) == (PRECONDITION, Reason.JOB_ENDED)
    assert "was cancelled" in refused.message


async def test_jobs_that_end_elsewhere_end_their_open_streams_for_one_query_a_second(
    serve_with: ServeWith, server_settings: ServerSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    ask = JobStore.get_jobs

    async def counted(storage: Any, ids: Any) -> Any:
        asked.append(len(ids))
        return await ask(storage, ids)

    monkeypatch.setattr(JobStore, "get_jobs", counted)
    async with serve_with() as (_, client):
        streams = [await opened(client) for _ in range(20)]
        loop = asyncio.get_running_loop()
        begun_s = loop.time()
        for _, name in streams:
            end(server_settings, name, 5, "9 records were rejected, more than 8")
        for call, _ in streams:
            code, refused = await ended_with(call)
            assert (code, refused.reason) == (PRECONDITION, Reason.JOB_ENDED)
            assert "9 records were rejected" in refused.message
        assert len(asked) <= loop.time() - begun_s + 3


async def test_only_an_ended_job_whose_seal_was_applied_is_deleted_and_its_key_is_free_then(
    client: Peer, server_settings: ServerSettings
) -> None:
    key = a_key()
    name = (await client.submit(header(idempotency_key=key, labels={"a": "1"}), batch(0))).job.name
    code, refused = await refusal(delete(client, name))
    assert (code, refused.reason) == (PRECONDITION, Reason.JOB_NOT_ENDED)
    assert "cancel it first" in refused.message
    await cancel(client, name)
    code, refused = await refusal(delete(client, name))
    assert (code, refused.reason) == (PRECONDITION, Reason.JOB_NOT_ENDED)
    assert "may still come" in refused.message
    seal = "INSERT INTO bulk.lanes SELECT create_day, job_id, 0, 1, true FROM bulk.jobs WHERE job_id = %s"
    run(server_settings, seal, job_id(name))
    await delete(client, name)
    code, refused = await refusal(client.job(name))
    assert (code, refused.reason) == (grpc.StatusCode.NOT_FOUND, Reason.JOB_NOT_FOUND)
    code, refused = await refusal(delete(client, name))
    assert (code, refused.reason) == (grpc.StatusCode.NOT_FOUND, Reason.JOB_NOT_FOUND)
    async with Redis.from_url(server_settings.redis) as redis:
        assert await redis.exists(f"bulk:job:{job_id(name)}", f"bulk:digests:{job_id(name)}") == 0
    answers = await client.whole(header(idempotency_key=key, labels={"b": "2"}), batch(0))
    assert (answers[0].opened.replayed, answers[0].opened.next_sequence) == (False, 0)


async def test_a_job_is_not_deleted_while_a_stream_holds_it_or_redis_is_away(
    serve_with: ServeWith, server_settings: ServerSettings
) -> None:
    proxy = proxy_to(server_settings.redis)
    async with proxy, serve_with(redis=lambda: through(server_settings.redis, proxy)) as (_, client):
        call, name = await opened(client)
        code, refused = await refusal(delete(client, name))
        assert (code, refused.reason) == (grpc.StatusCode.ABORTED, Reason.JOB_BUSY)
        call.cancel()
        await proxy.cut()
        await cancel(client, name)
        code, refused = await refusal(delete(client, name))
        assert (code, refused.reason) == (grpc.StatusCode.UNAVAILABLE, Reason.REDIS_UNAVAILABLE)
        assert refused.retry_after_s > 0


async def test_a_job_that_only_redis_knows_is_cancelled_with_a_row_made_for_it(
    client: Peer, server_settings: ServerSettings
) -> None:
    name = (await client.submit(header(), batch(0))).job.name
    run(server_settings, "DELETE FROM bulk.jobs WHERE job_id = %s", job_id(name))
    assert (await cancel(client, name)).state == jobs_pb2.JOB_STATE_CANCELLED


async def test_what_only_redis_knows_of_a_job_shows_in_lists_too(serve_with: ServeWith) -> None:
    async with serve_with() as (running, _), peer(running.address, f"t{a_key()}") as client:
        await client.submit(header(), batch(0), batch(1))
        page = await client.jobs.ListJobs(jobs_pb2.ListJobsRequest(), metadata=client.metadata)
        (job,) = page.jobs
        assert (job.counts.accepted, job.next_sequence, job.state) == (4, 2, jobs_pb2.JOB_STATE_SEALED)


async def test_a_job_past_its_time_says_how_far(client: Peer, server_settings: ServerSettings) -> None:
    name = (await client.submit(header(), batch(0))).job.name
    assert not (await client.job(name)).HasField("overdue_duration")
    run(
        server_settings,
        "UPDATE bulk.jobs SET seal_time = now() - interval '400 seconds' WHERE job_id = %s",
        job_id(name),
    )
    assert 99 < (await client.job(name)).overdue_duration.ToSeconds() < 130


async def test_another_tenants_job_is_neither_watched_cancelled_nor_deleted(serve_with: ServeWith) -> None:
    async with serve_with() as (running, _), peer(running.address, "one") as one, peer(running.address, "two") as two:
        name = (await one.submit(header(), batch(0))).job.name
        own = name.replace("tenants/one", "tenants/two")
        for foreign in (name, own):
            for call in (
                seen(watch(two, foreign)),
                cancel(two, foreign),
                delete(two, foreign),
            ):
                code, refused = await refusal(call)
                assert (code, refused.reason) == (grpc.StatusCode.NOT_FOUND, Reason.JOB_NOT_FOUND)
        assert (await one.job(name)).state == jobs_pb2.JOB_STATE_SEALED
