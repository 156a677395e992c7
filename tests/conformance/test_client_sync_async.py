"""What a client promises, for both colours: the asynchronous one, and the blocking one as if it were."""

from __future__ import annotations

import asyncio
import threading
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from redis.asyncio import Redis

from bulkgrpc.client import (
    AsyncBulkClient,
    Batch,
    BulkClient,
    Dataset,
    Job,
    JobOptions,
    JobState,
    NotEnded,
    Progress,
    Refused,
    Unreachable,
    WrongInput,
)
from bulkgrpc.datasets.definition import find_message
from tests.integration.service_values import Parts
from tests.support import examples
from tests.support.processes import Process, Service

pytest_plugins = ["tests.integration.service_parts"]

READINGS = "sensor_readings"
ENDS_WITHIN_S = 60.0


class AsyncColour:
    """The asynchronous client as it is."""

    def __init__(self, address: str, tenant: str) -> None:
        self._client = AsyncBulkClient(address, tenant=tenant)

    async def submit(self, *given: Any, **options: Any) -> Any:
        return await self._client.submit(*given, **options)

    async def wait(self, handle: Any, **options: Any) -> Job:
        job: Job = await handle.wait(**options)
        return job

    async def jobs(self) -> list[Job]:
        return [job async for job in self._client.list_jobs()]

    async def datasets(self) -> list[Dataset]:
        return [dataset async for dataset in self._client.list_datasets()]

    async def ask(self, method: str, *given: Any) -> Any:
        return await getattr(self._client, method)(*given)

    def job(self, name: str) -> Any:
        return self._client.job(name)

    async def get(self, handle: Any) -> Job:
        job: Job = await handle.get()
        return job

    async def of(self, handle: Any, method: str) -> Any:
        return await getattr(handle, method)()

    async def all(self, handle: Any, method: str, **options: Any) -> list[Any]:
        return [item async for item in getattr(handle, method)(**options)]

    async def close(self) -> None:
        await self._client.close()


class SyncColour:
    """The blocking client, each call on a thread so that a test may do something else meanwhile."""

    def __init__(self, address: str, tenant: str) -> None:
        self._client = BulkClient(address, tenant=tenant)

    async def submit(self, *given: Any, **options: Any) -> Any:
        return await asyncio.to_thread(self._client.submit, *given, **options)

    async def wait(self, handle: Any, **options: Any) -> Job:
        job: Job = await asyncio.to_thread(handle.wait, **options)
        return job

    async def jobs(self) -> list[Job]:
        return await asyncio.to_thread(lambda: list(self._client.list_jobs()))

    async def datasets(self) -> list[Dataset]:
        return await asyncio.to_thread(lambda: list(self._client.list_datasets()))

    async def ask(self, method: str, *given: Any) -> Any:
        return await asyncio.to_thread(getattr(self._client, method), *given)

    def job(self, name: str) -> Any:
        return self._client.job(name)

    async def get(self, handle: Any) -> Job:
        return await asyncio.to_thread(handle.get)

    async def of(self, handle: Any, method: str) -> Any:
        return await asyncio.to_thread(getattr(handle, method))

    async def all(self, handle: Any, method: str, **options: Any) -> list[Any]:
        return await asyncio.to_thread(lambda: list(getattr(handle, method)(**options)))

    async def close(self) -> None:
        await asyncio.to_thread(self._client.close)


Colour = AsyncColour | SyncColour
COLOURS: dict[str, type[AsyncColour] | type[SyncColour]] = {"async": AsyncColour, "sync": SyncColour}


@pytest.fixture(params=COLOURS)
async def colour(request: pytest.FixtureRequest, running: Service, tenant: str) -> AsyncIterator[Colour]:
    client = COLOURS[request.param](running.address, tenant)
    yield client
    await client.close()


def batches(count: int, rows: int = 100) -> Iterator[Batch]:
    for number in range(count):
        yield Batch(examples.reading_batch(number * rows, rows), rows)


def messages(count: int) -> Iterator[Message]:
    reading = GetMessageClass(find_message(examples.readings().descriptors, examples.readings().message_type))
    for number in range(count):
        message = reading(sensor_id=f"M{number}", value=number / 2)
        message.sampled_at.FromSeconds(1_700_000_000 + number)  # type: ignore[attr-defined]
        yield message


def in_table(parts: Parts, tenant: str) -> int:
    return int(parts.rows(f"SELECT count(*) FROM {READINGS} WHERE tenant = %s", tenant)[0][0])


async def test_messages_are_packed_and_every_one_is_in_the_table(colour: Colour, parts: Parts, tenant: str) -> None:
    handle = await colour.submit(READINGS, messages(2500))
    job = await colour.wait(handle, deadline_s=ENDS_WITHIN_S)
    assert (job.state, job.counts.written) == (JobState.SUCCEEDED, 2500)
    found = parts.rows(f"SELECT sensor_id, value FROM {READINGS} WHERE tenant = %s", tenant)
    assert sorted(found) == sorted((f"M{number}", number / 2) for number in range(2500))


async def test_bytes_of_batches_go_through_and_are_counted(colour: Colour, parts: Parts, tenant: str) -> None:
    handle = await colour.submit(f"datasets/{READINGS}", [batch.payload for batch in batches(5)])
    assert (await colour.wait(handle)).counts.written == 500
    assert in_table(parts, tenant) == 500


async def test_a_submission_with_no_batches_is_a_job_that_succeeds(colour: Colour) -> None:
    job = await colour.wait(await colour.submit(READINGS, []))
    assert (job.state, job.counts.accepted) == (JobState.SUCCEEDED, 0)


async def test_the_same_key_again_is_the_same_job_and_writes_nothing(colour: Colour, parts: Parts, tenant: str) -> None:
    first = await colour.submit(READINGS, batches(3), idempotency_key="once", labels={"a": "b"})
    ended = await colour.wait(first)
    again = await colour.submit(READINGS, batches(3), idempotency_key="once", labels={"a": "b"})
    assert (first.replayed, again.replayed) == (False, True)
    assert again.name == first.name
    assert await colour.get(again) == ended
    assert in_table(parts, tenant) == 300


async def test_the_same_key_with_other_labels_is_a_conflict(colour: Colour) -> None:
    await colour.submit(READINGS, batches(1), idempotency_key="k")
    with pytest.raises(Refused) as caught:
        await colour.submit(READINGS, batches(1), idempotency_key="k", labels={"other": "label"})
    assert (caught.value.reason, caught.value.retriable) == ("IDEMPOTENCY_CONFLICT", False)


async def test_progress_is_told_until_everything_is_acknowledged(colour: Colour) -> None:
    seen: list[Progress] = []
    await colour.submit(READINGS, batches(10), on_progress=seen.append)
    last = seen[-1]
    assert (last.sent_records, last.acknowledged_records, last.acknowledged_batches) == (1000, 1000, 10)
    assert last.acknowledged_bytes == last.sent_bytes > 0
    assert [p.acknowledged_records for p in seen] == sorted(p.acknowledged_records for p in seen)


async def test_an_unknown_dataset_is_refused_with_its_reason(colour: Colour) -> None:
    with pytest.raises(Refused, match="not registered") as caught:
        await colour.submit("no_such_dataset", batches(1))
    assert caught.value.reason == "DATASET_NOT_FOUND"


async def test_messages_of_another_type_are_refused_before_anything_is_sent(colour: Colour) -> None:
    with pytest.raises(WrongInput, match=r"are messages of examples\.v1\.Trade"):
        await colour.submit("trades", messages(5))
    assert await colour.jobs() == []


async def test_a_source_that_fails_leaves_a_job_that_the_same_key_goes_on_with(
    colour: Colour, parts: Parts, tenant: str
) -> None:
    def torn() -> Iterator[Batch]:
        yield from batches(3)
        raise LookupError("torn")

    with pytest.raises(LookupError, match="torn"):
        await colour.submit(READINGS, torn(), idempotency_key="torn")
    (still_open,) = await colour.jobs()
    assert still_open.state is JobState.OPEN
    with pytest.raises(NotEnded, match="still OPEN"):
        await colour.wait(colour.job(still_open.name), deadline_s=0.1)
    handle = await colour.submit(READINGS, batches(6), idempotency_key="torn")
    assert handle.name == still_open.name
    assert (await colour.wait(handle)).counts.written == 600
    assert in_table(parts, tenant) == 600


@pytest.mark.parametrize("name", COLOURS)
async def test_kill_9_of_the_server_in_the_middle_of_a_load_loses_nothing_and_doubles_nothing(
    name: str, running: Service, parts: Parts, tenant: str, tmp_path: Path
) -> None:
    server = Process("bulkgrpc.server.process", ("--listen", "127.0.0.1:0"), parts.environment, tmp_path / "server.log")
    address = await asyncio.to_thread(_start_on_a_port_of_its_own, server)
    hurt, healed = threading.Event(), threading.Event()

    def source() -> Iterator[Batch]:
        for number, batch in enumerate(batches(100)):
            if number == 60:
                assert healed.wait(60)
            yield batch

    def watch(progress: Progress) -> None:
        if progress.acknowledged_batches >= 20:
            hurt.set()

    async def strike() -> None:
        assert await asyncio.to_thread(hurt.wait, 60)
        await asyncio.to_thread(server.kill)
        await asyncio.to_thread(server.start)
        healed.set()

    client = COLOURS[name](address, tenant)
    try:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(strike())
            submission = tasks.create_task(client.submit(READINGS, source(), on_progress=watch))
        job = await client.wait(submission.result(), deadline_s=ENDS_WITHIN_S)
    finally:
        await client.close()
        await asyncio.to_thread(server.stop)
    assert (job.state, job.counts.accepted, job.counts.written) == (JobState.SUCCEEDED, 10_000, 10_000)
    assert in_table(parts, tenant) == 10_000
    assert running.server.pid


def _start_on_a_port_of_its_own(server: Process) -> str:
    from bulkgrpc.stack.ports import choose_free

    address = f"127.0.0.1:{choose_free()}"
    server.arguments = ("--listen", address)
    server.start()
    return address


async def test_jobs_are_listed_newest_first_and_found_by_name(colour: Colour) -> None:
    handles = [await colour.submit(READINGS, batches(1), idempotency_key=f"job-{n}") for n in range(3)]
    for handle in handles:
        await colour.wait(handle)
    assert [job.name for job in await colour.jobs()] == [handle.name for handle in reversed(handles)]
    rebuilt = colour.job(handles[0].name)
    assert rebuilt.job is None
    assert (await colour.get(rebuilt)).idempotency_key == "job-0"


async def test_a_job_is_watched_from_now_to_its_end(colour: Colour) -> None:
    handle = await colour.submit(READINGS, batches(3))
    seen = await colour.all(handle, "watch")
    assert (seen[-1].state, seen[-1].counts.written) == (JobState.SUCCEEDED, 300)
    assert [job.state for job in seen] == sorted(job.state for job in seen)
    assert handle.job == seen[-1]
    assert await colour.all(handle, "watch") == [seen[-1]]


async def test_an_open_job_is_cancelled_and_stays_for_what_may_still_come(colour: Colour) -> None:
    def torn() -> Iterator[Batch]:
        yield from batches(2)
        raise LookupError("torn")

    with pytest.raises(LookupError):
        await colour.submit(READINGS, torn(), idempotency_key="k")
    (still_open,) = await colour.jobs()
    handle = colour.job(still_open.name)
    with pytest.raises(Refused, match="cancel it first") as caught:
        await colour.of(handle, "delete")
    assert caught.value.reason == "JOB_NOT_ENDED"
    with pytest.raises(Refused, match=r"is OPEN and is not blocked.*cancel it") as caught:
        await colour.of(handle, "discard")
    assert caught.value.reason == "JOB_NOT_BLOCKED"
    cancelled = await colour.of(handle, "cancel")
    assert (cancelled.state, cancelled.ended) == (JobState.CANCELLED, True)
    again = await colour.submit(READINGS, batches(2), idempotency_key="k")
    assert (again.replayed, again.job.state) == (True, JobState.CANCELLED)
    with pytest.raises(Refused, match="may still come"):
        await colour.of(handle, "delete")


async def test_an_ended_job_is_deleted_and_its_key_is_free(colour: Colour) -> None:
    handle = await colour.submit(READINGS, batches(2), idempotency_key="k")
    await colour.wait(handle)
    await colour.of(handle, "delete")
    assert await colour.jobs() == []
    fresh = await colour.submit(READINGS, batches(2), idempotency_key="k", labels={"a": "b"})
    assert (fresh.replayed, fresh.name) == (False, handle.name)


async def test_rejections_are_given_with_and_without_their_bytes(colour: Colour) -> None:
    handle = await colour.submit(READINGS, [Batch(b"\x12\x02\x0a\x7f" * 1500, 1500)], labels={"c": "d"})
    job = await colour.wait(handle)
    assert (job.state, job.counts.rejected) == (JobState.FAILED, 1500)
    found = await colour.all(handle, "rejections")
    assert [(one.sequence, one.record_index, one.record) for one in found] == [(0, n, b"") for n in range(1500)]
    assert {one.code for one in found} == {"MALFORMED_RECORD"}
    assert {one.record for one in await colour.all(handle, "rejections", include_records=True)} == {b"\x0a\x7f"}


async def test_options_are_those_of_the_job_and_of_its_key(colour: Colour) -> None:
    options = JobOptions(rejections_max=5, time_to_live_s=3600.5)
    handle = await colour.submit(READINGS, batches(1), idempotency_key="k", options=options)
    assert (await colour.wait(handle)).options == options
    with pytest.raises(Refused, match="other options") as caught:
        await colour.submit(READINGS, batches(1), idempotency_key="k")
    assert caught.value.reason == "IDEMPOTENCY_CONFLICT"


@pytest.mark.parametrize("redis_forgets", [False, True])
async def test_a_hundred_thousand_records_sent_again_are_the_same_job_at_once(
    colour: Colour, parts: Parts, redis_forgets: bool
) -> None:
    first = await colour.submit(READINGS, batches(100, 1000), idempotency_key="large")
    ended = await colour.wait(first, deadline_s=ENDS_WITHIN_S)
    assert ended.counts.written == 100_000
    if redis_forgets:
        job_id = first.name.rpartition("/")[2]
        async with Redis.from_url(parts.environment["BULKGRPC_REDIS"]) as redis:
            assert await redis.delete(f"bulk:job:{job_id}", f"bulk:digests:{job_id}", f"bulk:lease:{job_id}") >= 2
    begun_s = time.monotonic()
    again = await colour.submit(READINGS, batches(100, 1000), idempotency_key="large")
    assert time.monotonic() - begun_s < 1
    assert (again.replayed, again.job) == (True, ended)


async def test_a_job_of_another_tenant_is_not_found(colour: Colour, running: Service) -> None:
    handle = await colour.submit(READINGS, batches(1))
    async with AsyncBulkClient(running.address, tenant=f"other-{uuid.uuid4().hex[:8]}") as other:
        with pytest.raises(Refused):
            await other.get_job(handle.name)


async def test_datasets_are_listed_without_and_shown_with_their_descriptors(colour: Colour) -> None:
    listed = {dataset.name: dataset for dataset in await colour.datasets()}
    assert set(listed) >= {"weather", "flights", "trades", READINGS}
    assert listed[READINGS].descriptors == b""
    shown = await colour.ask("get_dataset", READINGS)
    expected = examples.readings()
    assert (shown.message_type, shown.key, shown.columns) == (expected.message_type, expected.key, expected.columns)
    again = await colour.ask("register_dataset", shown.descriptors, shown.message_type)
    assert (again.name, again.version) == (READINGS, 1)


@pytest.mark.parametrize("name", COLOURS)
async def test_no_server_is_one_clear_line(name: str) -> None:
    client = COLOURS[name]("127.0.0.1:1", "t")
    try:
        with pytest.raises(Unreachable, match=r"^no server at 127\.0\.0\.1:1: start one with"):
            await client.submit(READINGS, batches(1))
    finally:
        await client.close()


def test_a_closed_blocking_client_says_so() -> None:
    client = BulkClient("127.0.0.1:1")
    client.close()
    client.close()
    with pytest.raises(RuntimeError, match="closed"):
        client.get_job("tenants/t/jobs/x")
