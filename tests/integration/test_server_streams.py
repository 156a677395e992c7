"""Streams against a server with real Kafka, PostgreSQL and Redis: acknowledgement, seal, resume, replay."""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from contextlib import AbstractAsyncContextManager
from typing import Any

import grpc
import pytest
from redis.asyncio import Redis

from bulkgrpc.errors import Reason
from bulkgrpc.model import Kind
from bulkgrpc.settings import ServerSettings
from bulkgrpc.v1 import ingest_pb2, jobs_pb2
from tests.integration.http2 import grpc_message, raw_call
from tests.integration.server_peer import (
    DEADLINE_S,
    Peer,
    Request,
    ServeWith,
    a_key,
    batch,
    eventually,
    finish,
    header,
    next_answer,
    peer,
    proxy_to,
    read_topic,
    refusal,
    rest,
    seal,
    through,
)

pytest_plugins = ["tests.integration.server_parts"]


async def on_topic(settings: ServerSettings) -> list[tuple[Kind, int, int]]:
    found = await asyncio.to_thread(read_topic, settings.kafka, settings.topic)
    return [(message.kind, message.sequence, message.records) for message, _ in found]


async def is_on_topic(settings: ServerSettings, message: tuple[Kind, int, int]) -> bool:
    return message in await on_topic(settings)


async def test_a_stream_is_opened_first_and_sealed_last_and_its_batches_are_on_kafka_unchanged(
    client: Peer, server_settings: ServerSettings
) -> None:
    key = a_key()
    batches = [batch(sequence) for sequence in range(3)]
    answers = await client.whole(header(idempotency_key=key, labels={"a": "b"}), *batches)
    assert [answer.WhichOneof("message") for answer in (answers[0], answers[-1])] == ["opened", "sealed"]
    assert {answer.WhichOneof("message") for answer in answers[1:-1]} == {"acknowledged"}
    assert answers[-2].acknowledged.next_sequence == 3
    job = answers[-1].sealed.job
    assert (job.state, job.counts.accepted, job.next_sequence) == (jobs_pb2.JOB_STATE_SEALED, 6, 3)
    found = await asyncio.to_thread(read_topic, server_settings.kafka, server_settings.topic)
    assert [payload for _, payload in found] == [*(one.batch.SerializeToString() for one in batches), b""]
    seal, first = found[-1][0], found[0][0]
    assert (seal.kind, seal.sequence, seal.job_records) == (Kind.SEAL, 3, 6)
    assert (first.spec.idempotency_key, first.spec.labels) == (key, {"a": "b"})


async def test_a_batch_is_on_kafka_when_it_is_acknowledged(client: Peer, server_settings: ServerSettings) -> None:
    call = client.stream()
    await call.write(header())
    await next_answer(call)
    for sequence in range(3):
        await call.write(batch(sequence))
        assert (await next_answer(call)).acknowledged.next_sequence == sequence + 1
        assert (Kind.BATCH, sequence, 2) in await on_topic(server_settings)
    call.cancel()


async def test_submit_answers_once_and_names_the_job_in_its_initial_metadata(client: Peer) -> None:
    answer = await client.submit(header(), batch(0, records=5))
    assert answer.job.state == jobs_pb2.JOB_STATE_SEALED
    assert answer.job.counts.accepted == 5
    assert not answer.replayed


async def test_submit_names_the_job_as_soon_as_it_is_open(client: Peer) -> None:
    call = client.ingest.SubmitRecords(timeout=DEADLINE_S)
    await call.write(ingest_pb2.SubmitRecordsRequest.FromString(header().SerializeToString()))
    name = dict(await call.initial_metadata())["bulkgrpc-job"]
    assert (await client.job(name)).state == jobs_pb2.JOB_STATE_OPEN
    call.cancel()


@pytest.mark.parametrize("unary", [False, True])
async def test_a_stream_that_ends_without_a_seal_leaves_its_job_open(client: Peer, unary: bool) -> None:
    first = header(idempotency_key=a_key())
    call = client.submit_exactly(first, batch(0)) if unary else client.exchange(first, batch(0))
    code, refused = await refusal(call)
    assert (code, refused.reason) == (grpc.StatusCode.FAILED_PRECONDITION, Reason.MISSING_SEAL)
    assert "stays open" in refused.message
    answers = await client.whole(first, batch(0), batch(1))
    assert answers[0].opened.job.state == jobs_pb2.JOB_STATE_OPEN
    assert answers[-1].sealed.job.counts.accepted == 4


async def test_a_sealed_job_may_be_sealed_again(client: Peer) -> None:
    first = header(idempotency_key=a_key())
    await client.whole(first, batch(0))
    answers = await client.whole(first, seal(1))
    assert answers[-1].sealed.replayed


async def test_the_end_of_a_stream_whose_job_was_sealed_before_needs_no_seal(client: Peer) -> None:
    first = header(idempotency_key=a_key())
    await client.whole(first, batch(0))
    answers = await client.exchange(first)
    assert answers[0].opened.replayed
    assert answers[-1].sealed.replayed
    assert (await client.submit_exactly(first)).replayed


@pytest.mark.parametrize("method", ["SubmitRecords", "StreamRecords"])
@pytest.mark.parametrize("last", [batch(1), seal(1)], ids=["batch", "seal"])
@pytest.mark.parametrize("way", ["half-close", "broken connection"])
async def test_a_stream_that_is_cut_in_its_last_message_never_seals_its_job(
    client: Peer, server_settings: ServerSettings, method: str, last: Request, way: str
) -> None:
    first = header(idempotency_key=a_key(), session_id="one")
    cut = grpc_message(last.SerializeToString())[:-1]
    async with raw_call(client.address, f"/bulkgrpc.v1.IngestService/{method}") as call, asyncio.timeout(DEADLINE_S):
        for message in (first, batch(0)):
            await call.data(grpc_message(message.SerializeToString()))
        await eventually(lambda: is_on_topic(server_settings, (Kind.BATCH, 0, 2)))
        await call.data(cut, end=way == "half-close")
        if way == "half-close":
            await call.until_ended()
        else:
            call.abort()
    answers = await client.whole(first, batch(0), batch(1))
    assert (answers[0].opened.replayed, answers[0].opened.job.state) == (False, jobs_pb2.JOB_STATE_OPEN)
    assert answers[-1].sealed.job.counts.accepted == 4
    kinds = [kind for kind, _, _ in await on_topic(server_settings)]
    assert kinds == [Kind.BATCH, Kind.BATCH, Kind.SEAL]


@pytest.mark.parametrize(("batches", "reason"), [(1, Reason.SEQUENCE_BACKWARD), (3, Reason.SEQUENCE_GAP)])
async def test_a_seal_that_does_not_stand_after_the_last_batch_is_refused(
    client: Peer, batches: int, reason: Reason
) -> None:
    key = a_key()
    code, refused = await refusal(client.whole(header(idempotency_key=key), batch(0), batch(1), seal(batches)))
    assert (code, refused.reason, refused.field) == (grpc.StatusCode.OUT_OF_RANGE, reason, "seal.batch_count")
    answers = await client.whole(header(idempotency_key=key), batch(0), batch(1))
    assert answers[0].opened.job.state == jobs_pb2.JOB_STATE_OPEN


async def test_a_header_without_batches_is_a_job_of_no_records(client: Peer, server_settings: ServerSettings) -> None:
    answers = await client.whole(header())
    assert answers[-1].sealed.job.counts.accepted == 0
    assert await on_topic(server_settings) == [(Kind.SEAL, 0, 0)]


async def test_a_job_submitted_again_comes_back_replayed_and_adds_nothing(
    client: Peer, server_settings: ServerSettings
) -> None:
    key = a_key()
    first = await client.submit(header(idempotency_key=key), batch(0))
    before = await on_topic(server_settings)
    answers = await client.whole(header(idempotency_key=key))
    assert answers[0].opened.replayed
    assert answers[-1].sealed.replayed
    assert answers[-1].sealed.job.name == first.job.name
    assert (await client.submit(header(idempotency_key=key))).replayed
    assert await on_topic(server_settings) == before


async def test_a_sealed_job_takes_no_more_batches(client: Peer) -> None:
    key = a_key()
    await client.submit(header(idempotency_key=key), batch(0))
    code, refused = await refusal(client.whole(header(idempotency_key=key), batch(1)))
    assert (code, refused.reason) == (grpc.StatusCode.FAILED_PRECONDITION, Reason.JOB_SEALED)


async def break_off(client: Peer, key: str, batches: int, session_id: str = "") -> str:
    """Open a job, have batches acknowledged, break off; return the job's name."""
    call = client.stream()
    await call.write(header(idempotency_key=key, session_id=session_id))
    name = (await next_answer(call)).opened.job.name
    for sequence in range(batches):
        await call.write(batch(sequence))
    while batches and (await next_answer(call)).acknowledged.next_sequence < batches:
        pass
    call.cancel()
    return name


def peer_of(client: Peer) -> AbstractAsyncContextManager[Peer]:
    """A client of the same server on a connection of its own, to be closed in the middle."""
    return peer(client.address)


@pytest.mark.parametrize("rounds", range(5))
async def test_a_client_that_breaks_off_never_seals_its_job(
    rounds: int, client: Peer, server_settings: ServerSettings
) -> None:
    for way in range(20):
        call = client.stream(timeout=0.05 if way % 4 == 3 else 30)
        # Its time may be over at any of these.
        with contextlib.suppress(grpc.aio.AioRpcError):
            await call.write(header())
            await next_answer(call)
            for sequence in range(rounds % 3):
                await call.write(batch(sequence))
        if way % 4 == 3:
            assert await call.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        call.cancel()
    await asyncio.sleep(0.1)
    assert all(kind is Kind.BATCH for kind, _, _ in await on_topic(server_settings))


async def test_a_client_that_breaks_off_a_submission_never_seals_its_job(
    client: Peer, server_settings: ServerSettings
) -> None:
    opening = ingest_pb2.SubmitRecordsRequest.FromString(header().SerializeToString())
    for way in range(60):
        call = client.ingest.SubmitRecords(timeout=0.05 if way % 3 == 2 else DEADLINE_S)
        await call.write(opening)
        await call.initial_metadata()
        if way % 3 == 2:
            assert await call.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        call.cancel()
    async with peer_of(client) as other:
        call = other.ingest.SubmitRecords(timeout=DEADLINE_S)
        await call.write(opening)
        await call.initial_metadata()
    await asyncio.sleep(0.2)
    assert await on_topic(server_settings) == []


async def test_a_broken_stream_leaves_the_job_open_and_is_resumed_where_it_stopped(
    client: Peer, server_settings: ServerSettings
) -> None:
    key, session = a_key(), a_key()
    name = await break_off(client, key, 3, session)
    answers = await client.whole(header(idempotency_key=key, session_id=session, first_sequence=3), batch(3))
    opened = answers[0].opened
    assert (opened.next_sequence, opened.replayed, opened.job.name) == (3, False, name)
    job = answers[-1].sealed.job
    assert (job.counts.accepted, job.next_sequence) == (8, 4)
    assert await on_topic(server_settings) == [
        *((Kind.BATCH, sequence, 2) for sequence in range(4)),
        (Kind.SEAL, 4, 0),
    ]


async def test_batches_sent_again_are_neither_passed_on_nor_counted_again(
    client: Peer, server_settings: ServerSettings
) -> None:
    key, session = a_key(), a_key()
    name = await break_off(client, key, 2, session)

    async def is_known() -> bool:
        # A stream that takes the job over before its progress is stored sends the rest of it on again.
        return (await client.job(name)).next_sequence == 2

    await eventually(is_known)
    answers = await client.whole(header(idempotency_key=key, session_id=session), *map(batch, range(3)))
    assert answers[-1].sealed.job.counts.accepted == 6
    assert [answer.acknowledged.next_sequence for answer in answers[1:-1]][-1] == 3
    sequences = [sequence for kind, sequence, _ in await on_topic(server_settings) if kind is Kind.BATCH]
    assert sequences == [0, 1, 2]


async def test_another_session_is_refused_while_a_stream_holds_the_job(client: Peer) -> None:
    key = a_key()
    call = client.stream()
    await call.write(header(idempotency_key=key, session_id="one"))
    await next_answer(call)
    code, refused = await refusal(client.whole(header(idempotency_key=key, session_id="two")))
    assert (code, refused.reason) == (grpc.StatusCode.ABORTED, Reason.JOB_BUSY)
    assert refused.retry_after_s > 0
    call.cancel()


async def test_a_stream_of_the_same_session_takes_the_job_over_and_the_old_one_cannot_seal(
    client: Peer, server_settings: ServerSettings
) -> None:
    key = a_key()
    old = client.stream()
    await old.write(header(idempotency_key=key, session_id="one"))
    await next_answer(old)
    new = client.stream()
    await new.write(header(idempotency_key=key, session_id="one"))
    assert (await next_answer(new)).opened.next_sequence == 0
    await finish(old, 0)
    code, refused = await refusal(next_answer(old))
    assert (code, refused.reason) == (grpc.StatusCode.ABORTED, Reason.JOB_BUSY)
    await new.write(batch(0))
    await finish(new, 1)
    assert (await rest(new))[-1].sealed.job.counts.accepted == 2
    assert await on_topic(server_settings) == [(Kind.BATCH, 0, 2), (Kind.SEAL, 1, 0)]


async def test_streams_whose_jobs_were_taken_over_are_ended_while_they_wait_for_batches(
    client: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bulkgrpc.ingest.lease.RENEW_S", 0.2)
    opening = [header(idempotency_key=a_key(), session_id="one") for _ in range(50)]

    async def opened(request: Request) -> Any:
        call = client.stream()
        await call.write(request)
        await next_answer(call)
        return call

    old = await asyncio.gather(*map(opened, opening))
    new = await asyncio.gather(*map(opened, opening))
    for call in old:
        code, refused = await refusal(next_answer(call))
        assert (code, refused.reason) == (grpc.StatusCode.ABORTED, Reason.JOB_BUSY)
    for call in new:
        await call.write(batch(0))
        await finish(call, 1)
        assert (await rest(call))[-1].sealed.job.next_sequence == 1


async def test_a_stream_that_ends_frees_its_job_at_once(client: Peer) -> None:
    key = a_key()
    await break_off(client, key, 1, "one")

    async def free() -> bool:
        try:
            return bool(await client.whole(header(idempotency_key=key, session_id="two"), seal(1)))
        except grpc.aio.AioRpcError as error:
            return error.code() is not grpc.StatusCode.ABORTED

    await eventually(free, deadline_s=3)


async def test_a_job_is_known_from_redis_before_its_row_says_so(client: Peer) -> None:
    key = a_key()
    call = client.stream()
    await call.write(header(idempotency_key=key))
    name = (await next_answer(call)).opened.job.name
    await call.write(batch(0))
    await next_answer(call)

    async def noted() -> bool:
        return (await client.job(name)).next_sequence == 1

    await eventually(noted)
    job = await client.job(name)
    assert (job.state, job.counts.accepted) == (jobs_pb2.JOB_STATE_OPEN, 2)
    call.cancel()


async def test_with_redis_empty_a_client_ahead_of_the_workers_waits(
    client: Peer, server_settings: ServerSettings
) -> None:
    key = a_key()
    name = await break_off(client, key, 2, "one")
    async with Redis.from_url(server_settings.redis) as redis:
        await asyncio.sleep(0.3)
        await redis.delete(f"bulk:job:{name.rpartition('/')[2]}")
    code, refused = await refusal(client.whole(header(idempotency_key=key, session_id="one", first_sequence=2)))
    assert (code, refused.reason) == (grpc.StatusCode.UNAVAILABLE, Reason.RESUME_NOT_READY)
    assert refused.field == "header.first_sequence"
    assert refused.retry_after_s > 0
    answers = await client.whole(header(idempotency_key=key, session_id="one"), *map(batch, range(3)))
    assert answers[-1].sealed.job.counts.accepted == 6


async def test_without_postgresql_jobs_are_accepted_sealed_and_told_of(
    serve_with: ServeWith, server_settings: ServerSettings
) -> None:
    key, unknown = a_key(), f"tenants/default/jobs/{uuid.uuid4()}"

    async def back() -> bool:
        code, _ = await refusal(client.job(unknown))
        return code is grpc.StatusCode.NOT_FOUND

    proxy = proxy_to(server_settings.postgres)
    async with proxy, serve_with(postgres=lambda: through(server_settings.postgres, proxy)) as (_, client):
        await client.whole(header())
        await proxy.cut()
        answers = await client.whole(header(idempotency_key=key), batch(0))
        job = answers[-1].sealed.job
        assert (job.state, job.counts.accepted) == (jobs_pb2.JOB_STATE_SEALED, 2)
        assert (await client.job(job.name)).state == jobs_pb2.JOB_STATE_SEALED
        assert (await client.whole(header(idempotency_key=key)))[0].opened.replayed
        for call in (client.whole(header(dataset="datasets/other")), client.job(unknown)):
            code, refused = await refusal(call)
            assert (code, refused.reason) == (grpc.StatusCode.UNAVAILABLE, Reason.POSTGRES_UNAVAILABLE)
            assert refused.retry_after_s > 0
        proxy.repair()
        await eventually(back)


async def test_without_redis_jobs_are_accepted_and_resumed_from_the_row(serve_with: ServeWith) -> None:
    async with serve_with(redis="redis://127.0.0.1:1/0") as (_, client):
        key = a_key()
        answers = await client.whole(header(idempotency_key=key), batch(0))
        assert answers[-1].sealed.job.counts.accepted == 2
        assert (await client.whole(header(idempotency_key=key)))[0].opened.replayed


async def test_without_redis_streams_are_refused_if_the_setting_says_so(serve_with: ServeWith) -> None:
    async with serve_with(redis="redis://127.0.0.1:1/0", when_redis_is_down="refuse") as (_, client):
        code, refused = await refusal(client.whole(header()))
        assert (code, refused.reason) == (grpc.StatusCode.UNAVAILABLE, Reason.REDIS_UNAVAILABLE)
        assert refused.retry_after_s > 0


async def test_redis_that_goes_away_in_the_middle_disturbs_no_stream(
    serve_with: ServeWith, server_settings: ServerSettings
) -> None:
    proxy = proxy_to(server_settings.redis)
    async with proxy, serve_with(redis=lambda: through(server_settings.redis, proxy)) as (_, client):
        call = client.stream()
        await call.write(header())
        await next_answer(call)
        await proxy.cut()
        await call.write(batch(0))
        assert (await next_answer(call)).acknowledged.next_sequence == 1
        await finish(call, 1)
        assert (await rest(call))[-1].sealed.job.next_sequence == 1


async def test_tenants_with_the_same_key_have_jobs_of_their_own(serve_with: ServeWith) -> None:
    async with serve_with() as (running, _):
        key = a_key()
        async with peer(running.address, "one") as one, peer(running.address, "two") as two:
            names = {(await client.submit(header(idempotency_key=key), batch(0))).job.name for client in (one, two)}
    assert len(names) == 2
