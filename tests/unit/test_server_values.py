"""The server's pure parts: paging, guard, gate, keys, leases of a store that is away."""

from __future__ import annotations

import asyncio
import json
import sys
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from types import FrameType
from typing import Any
from unittest.mock import AsyncMock, Mock

import jwt
import psycopg
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from grpc_status import rpc_status
from hypothesis import given
from hypothesis import strategies as st

from bulkgrpc.errors import Invalid, Reason, TooMuch, Unavailable
from bulkgrpc.model import Job, JobCounts, JobKey, JobSpec, JobState, from_us, to_us
from bulkgrpc.postgres.rejections import Place
from bulkgrpc.redis.job import DIGESTS_MAX, LiveJob, from_fields, overlay, to_fields
from bulkgrpc.server import keys, serving, storage
from bulkgrpc.server.gate import Gate
from bulkgrpc.server.guard import guarded
from bulkgrpc.server.messages import Batch, read_batch
from bulkgrpc.server.paging import (
    dataset_page_start,
    job_page_start,
    page_size,
    rejection_page_start,
    token_after_dataset,
    token_after_job,
    token_after_rejection,
)
from bulkgrpc.settings import ServerSettings, load
from bulkgrpc.v1 import ingest_pb2

NOW = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)
TIMES = st.datetimes(datetime(1970, 1, 2), datetime(9000, 1, 1), timezones=st.just(UTC))


def a_job(**changes: Any) -> Job:
    spec = JobSpec(JobKey.derive("acme", uuid.uuid4().hex), "key", "weather", 1, {"a": "b"})
    return replace(Job(spec, (3,), JobState.OPEN, JobCounts(), 0, NOW), **changes)


def live_of(job: Job, next_sequence: int, accepted: int, state: JobState = JobState.OPEN) -> LiveJob:
    seal_time = NOW if state is JobState.SEALED else None
    return LiveJob(job.spec, job.partitions, next_sequence, accepted, state, job.create_time, seal_time)


@given(TIMES)
def test_a_time_survives_as_microseconds(time: datetime) -> None:
    assert from_us(to_us(time)) == time


@given(TIMES)
def test_a_page_token_leads_to_the_job_it_was_made_of(time: datetime) -> None:
    job = a_job(create_time=time)
    start = job_page_start(token_after_job(job))
    assert start is not None
    assert (start.create_time, start.job_id) == (time, job.spec.key.job_id)


@given(st.integers(0, 2**53), st.integers(0, 50_000), st.integers(0, 2**53))
def test_a_page_token_leads_to_the_rejection_it_was_made_of(sequence: int, record_index: int, number: int) -> None:
    place = Place(sequence, record_index, number)
    assert rejection_page_start(token_after_rejection(place)) == place


def test_only_the_row_says_that_a_job_has_ended() -> None:
    job = a_job()
    assert overlay(job, live_of(job, 9, 90, JobState.CANCELLED)) == job


def test_a_job_goes_on_by_the_lanes_of_the_stream_that_came_as_far_as_redis_says() -> None:
    job = a_job(partitions=(3, 4, 5), next_sequence=2)
    assert overlay(job, replace(live_of(job, 9, 90), partitions=(3,))).partitions == (3,)
    assert overlay(job, None).partitions == (3, 4, 5)


@given(st.lists(st.integers(1, 400), min_size=1, max_size=12))
def test_notes_of_a_job_that_join_on_keep_the_digests_of_all_up_to_the_bound(steps: list[int]) -> None:
    job, sequence = a_job(), 0
    noted = live_of(job, 0, 0)
    for step in steps:
        recent = tuple(b"%d" % number for number in range(sequence, sequence + step))
        sequence += step
        noted = replace(live_of(job, sequence, sequence), recent=recent).after(noted)
    assert noted.recent == tuple(b"%d" % number for number in range(sequence))[-DIGESTS_MAX:]
    hole = replace(live_of(job, sequence + 5, 0), recent=(b"x",))
    assert hole.after(noted) == hole


def test_a_dataset_page_token_leads_to_its_dataset() -> None:
    assert dataset_page_start(token_after_dataset("weather")) == "weather"


@given(st.text(min_size=1))
def test_a_page_token_that_is_none_is_refused_and_nothing_else_happens(text: str) -> None:
    for read in (job_page_start, dataset_page_start, rejection_page_start):
        try:
            read(text)
        except Invalid as refused:
            assert refused.field == "page_token"  # noqa: PT017 — many texts, some of them tokens


def test_a_page_has_fifty_unless_asked_and_a_thousand_at_most() -> None:
    assert (page_size(0), page_size(1000)) == (50, 1000)
    for size in (-1, 1001):
        with pytest.raises(Invalid, match="1000"):
            page_size(size)


def test_a_live_job_survives_as_fields() -> None:
    live = live_of(a_job(), 3, 30, JobState.SEALED)
    fields = {**to_fields(live), "partitions": "3", "next_sequence": "3", "accepted": "30", "state": "2"}
    assert from_fields({**fields, "seal_time_us": str(to_us(NOW))}) == live
    for name in fields:
        assert from_fields({key: value for key, value in fields.items() if key != name}) is None


def test_redis_brings_a_row_forward_and_never_back() -> None:
    row = a_job(next_sequence=5, counts=JobCounts(50, 40, 10, 0))
    ahead = overlay(row, live_of(row, 7, 70, JobState.SEALED))
    assert (ahead.next_sequence, ahead.counts, ahead.state) == (7, JobCounts(70, 40, 10, 0), JobState.SEALED)
    assert ahead.seal_time == NOW
    assert overlay(row, live_of(row, 3, 30)) == row
    assert overlay(row, None) == row


def test_an_ended_job_is_what_its_row_says() -> None:
    row = a_job(state=JobState.SUCCEEDED, seal_time=NOW, end_time=NOW + timedelta(seconds=1))
    assert overlay(row, live_of(row, 9, 90, JobState.SEALED)) == row


class Context:
    """Takes the status that a call is ended with."""

    def __init__(self) -> None:
        self.status: Any = None

    async def abort_with_status(self, status: Any) -> None:
        self.status = status
        raise RuntimeError("aborted")


async def ended_with(method: Callable[..., Awaitable[None]]) -> Any:
    context: Any = Context()
    with pytest.raises(RuntimeError, match="aborted"):
        await guarded("Method", method)(None, context)
    return context.status


async def test_an_unexpected_error_is_internal_and_tells_nothing_of_its_insides() -> None:
    async def method(_: object, __: object) -> None:
        raise ZeroDivisionError("secret")

    status = await ended_with(method)
    assert status.code.name == "INTERNAL"
    assert "secret" not in status.details


async def test_a_refusal_inside_a_task_group_is_the_answer() -> None:
    async def refuse() -> None:
        raise Unavailable(Reason.DRAINING, "away")

    async def method(_: object, __: object) -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(refuse())
            await asyncio.sleep(60)

    status = await ended_with(method)
    assert (status.code.name, status.details) == ("UNAVAILABLE", "away")
    assert dict(status.trailing_metadata)[rpc_status.GRPC_DETAILS_METADATA_KEY]


async def test_a_cancelled_call_stays_cancelled() -> None:
    async def method(_: object, __: object) -> None:
        raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        await guarded("Method", method)(None, Context())  # type: ignore[arg-type]


async def test_a_gate_refuses_one_too_many_and_takes_one_again_when_another_leaves() -> None:
    gate = Gate(1)
    with gate.stream():
        with pytest.raises(TooMuch) as caught, gate.stream():
            pass
        assert caught.value.reason is Reason.TOO_MANY_STREAMS
        assert caught.value.retry_after_s > 0
    with gate.stream():
        assert gate.open_streams == 1
    await gate.emptied()


async def test_a_draining_gate_refuses_new_streams_and_expels_open_ones_when_told() -> None:
    gate = Gate(2)
    with gate.stream():
        gate.drain()
        with pytest.raises(Unavailable) as caught, gate.stream():
            pass
        assert caught.value.reason is Reason.DRAINING
        open_one = asyncio.create_task(gate.until_expelled())
        await asyncio.sleep(0)
        assert not open_one.done()
        gate.expel()
        with pytest.raises(Unavailable):
            await open_one


def key_set(*names: str) -> bytes:
    public = json.loads(jwt.algorithms.RSAAlgorithm.to_jwk(KEY.public_key()))
    return json.dumps({"keys": [{**public, "kid": name} for name in names]}).encode()


KEY = rsa.generate_private_key(public_exponent=65537, key_size=2048)


async def test_a_flood_of_unknown_keys_asks_the_issuer_once_in_a_while() -> None:
    asked, now_s = 0, 0.0

    def read() -> bytes:
        nonlocal asked
        asked += 1
        return key_set("one") if asked < 3 else key_set("one", "two")

    found = keys.KeySet(read, clock=lambda: now_s)
    assert await found.find("one") is not None
    assert await asyncio.gather(*(found.find("two") for _ in range(100))) == [None] * 100
    assert asked == 1
    now_s = keys.REFRESH_MIN_S
    await asyncio.gather(*(found.find("two") for _ in range(100)))
    assert asked == 2
    now_s = 2 * keys.REFRESH_MIN_S
    assert await found.find("two") is not None
    assert asked == 3


async def test_known_keys_stay_while_the_issuer_is_away_and_without_any_the_call_may_come_again() -> None:
    away, now_s = False, 0.0

    def read() -> bytes:
        if away:
            raise OSError("away")
        return key_set("one")

    found = keys.KeySet(read, clock=lambda: now_s)
    await found.find("one")
    away, now_s = True, keys.REFRESH_MAX_S
    assert await found.find("one") is not None
    with pytest.raises(Unavailable):
        await keys.KeySet(read, clock=lambda: now_s).find("one")


def test_a_symmetric_key_in_the_set_is_no_key() -> None:
    secret = {"kty": "oct", "k": "c2VjcmV0", "kid": "one", "alg": "HS256"}
    assert keys.parse(json.dumps({"keys": [secret]}).encode()) == {}


@pytest.mark.parametrize("place", ["", "http://issuer.test/jwks", "ftp://issuer.test/jwks"])
def test_a_key_set_is_a_path_or_https(place: str) -> None:
    with pytest.raises(ValueError, match="https"):
        keys.KeySet.at(place)


class Asked:
    """A catalog and a job store that answer as the test says."""

    def __init__(self) -> None:
        self.error: Exception | None = None
        self.hangs = False
        self.asked = 0

    async def get(self, name: str, version: int = 0) -> Any:
        self.asked += 1
        if self.hangs:
            await hang()
        if self.error is not None:
            raise self.error
        return name


async def hang() -> None:
    """Not end when cancelled at first, as a driver does that asks a stopped server to cancel."""
    try:
        await asyncio.sleep(60)
    except asyncio.CancelledError:
        await asyncio.sleep(0.1)


async def test_a_dataset_is_asked_for_once_in_a_while_and_remembered_while_postgresql_is_away() -> None:
    asked: Any = Asked()
    now_s = 0.0
    store = storage.Storage(asked, asked, clock=lambda: now_s)
    assert {str(await store.get_dataset("weather")) for _ in range(3)} == {"weather"}
    assert asked.asked == 1
    now_s, asked.error = storage.FRESH_S, psycopg.OperationalError("away")
    assert str(await store.get_dataset("weather")) == "weather"
    with pytest.raises(storage.PostgresUnavailable):
        await store.get_dataset("other")


async def test_many_who_want_a_dataset_at_once_ask_once_and_one_that_gives_up_disturbs_no_other() -> None:
    asked: Any = Asked()
    store = storage.Storage(asked, asked)
    wanting = [asyncio.create_task(store.get_dataset("weather")) for _ in range(200)]
    await asyncio.sleep(0)
    wanting[0].cancel()
    answers = await asyncio.gather(*wanting, return_exceptions=True)
    assert {str(answer) for answer in answers[1:]} == {"weather"}
    assert asked.asked == 1


async def test_a_postgresql_that_hangs_costs_its_deadline_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "ON_A_STREAM_S", 0.02)
    asked: Any = Asked()
    asked.hangs = True
    store = storage.Storage(asked, asked)
    async with asyncio.timeout(0.09):
        with pytest.raises(storage.PostgresUnavailable):
            await store.get_dataset("weather")
    await asyncio.sleep(0.15)


async def test_a_mistake_of_ours_is_not_taken_for_an_absence() -> None:
    asked: Any = Asked()
    asked.error = psycopg.ProgrammingError("no such column")
    with pytest.raises(psycopg.ProgrammingError):
        await storage.Storage(asked, asked).get_dataset("weather")


def opcodes_of(call: Callable[[], object]) -> int:
    """Count the Python instructions that a call executes."""
    count = 0

    def trace(frame: FrameType, event: str, _: object) -> Any:
        nonlocal count
        frame.f_trace_opcodes = True
        count += event == "opcode"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        call()
    finally:
        sys.settrace(before)
    return count


def test_checking_a_batch_costs_python_nothing_a_record() -> None:
    costs = set()
    for records in (10, 10_000):
        batch = ingest_pb2.RecordBatch(sequence=1, records=[b"x" * 20] * records)
        raw = ingest_pb2.StreamRecordsRequest(batch=batch).SerializeToString()
        blocks = sys.getallocatedblocks()
        found = read_batch(raw, 1_000_000, 10_000)
        assert isinstance(found, Batch)
        assert sys.getallocatedblocks() - blocks < 100
        assert (found.sequence, found.records, found.payload) == (1, records, batch.SerializeToString())
        costs.add(opcodes_of(lambda raw=raw: read_batch(raw, 1_000_000, 10_000)))  # type: ignore[misc]
    assert len(costs) == 1


async def test_a_producer_that_failed_for_good_ends_the_process_with_status_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    running: Any = Mock(spec=serving.Serving)
    running.producer.fatal, running.gate, running.address = asyncio.Event(), Gate(1), "127.0.0.1:1"
    running.health.enter_graceful_shutdown = AsyncMock()

    @asynccontextmanager
    async def served(*_: object, **__: object) -> AsyncIterator[Any]:
        yield running

    monkeypatch.setattr(serving, "serving", served)
    settings = load(ServerSettings, drain_s=60)
    status = asyncio.create_task(serving.serve(settings, lambda _: running.producer.fatal.set(), shared_port=False))
    async with asyncio.timeout(5):
        assert await status == 1
