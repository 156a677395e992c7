"""Jobs with four lanes from client to table: two servers, two workers, and what befalls them."""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo
from redis.asyncio import Redis

from bulkgrpc.client import AsyncBulkClient, AsyncJobHandle, Batch, BulkError, JobOptions, JobState, Progress
from bulkgrpc.model import JobKey
from bulkgrpc.postgres import schema
from bulkgrpc.stack import Addresses
from bulkgrpc.stack.ports import choose_free
from tests.integration.server_peer import read_topic
from tests.support import examples
from tests.support.processes import Process, Service, service
from tests.support.waiting import eventually

LANES = 4
BATCHES, ROWS = 60, 500
TOTAL = BATCHES * ROWS
BAD = examples.batch_of([b"\x0a\xff\x01"] * 10)
Made = Callable[[int], Batch]


@dataclass(frozen=True, slots=True)
class Fleet:
    """Two servers and two workers, on a database and a topic of their own."""

    service: Service
    second: str
    addresses: Addresses
    postgres: str
    topic: str

    def rows(self, tenant: str) -> tuple[int, int]:
        """How many rows a tenant has, and how many different ones."""
        statement = "SELECT count(*), count(DISTINCT value) FROM fleet_readings WHERE tenant = %s"
        with psycopg.connect(self.postgres) as connection:
            found = connection.execute(statement, [tenant]).fetchone()
        assert found is not None
        return int(found[0]), int(found[1])

    def placed(self, job: AsyncJobHandle) -> tuple[list[int], dict[int, int]]:
        """The partitions of a job, and of each of its lanes the next sequence."""
        key = JobKey.parse(job.name)
        assert key is not None
        with psycopg.connect(self.postgres) as connection:
            found = connection.execute("SELECT partitions FROM bulk.jobs WHERE job_id = %s", [key.job_id]).fetchone()
            lanes = connection.execute("SELECT lane, next_sequence FROM bulk.lanes WHERE job_id = %s", [key.job_id])
            assert found is not None
            return found[0], dict(lanes.fetchall())

    async def forget(self, tenant: str, key: str) -> None:
        """Redis loses all that it knows of a job."""
        job_id = JobKey.derive(tenant, key).job_id
        async with Redis.from_url(self.addresses.redis) as redis:
            await redis.delete(f"bulk:job:{job_id}", f"bulk:digests:{job_id}", f"bulk:lease:{job_id}")


@pytest.fixture(scope="module")
def fleet(addresses: Addresses, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    name = f"lanes_{uuid.uuid4().hex[:8]}"
    postgres = make_conninfo(addresses.postgres, dbname=name)
    with psycopg.connect(addresses.postgres, autocommit=True) as admin:
        admin.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        schema.migrate(postgres)
        environment = {
            **addresses.environment(),
            "BULKGRPC_POSTGRES": postgres,
            "BULKGRPC_TOPIC": name,
            "BULKGRPC_GROUP": name,
            # Small chunks, so that a job of a test is many.
            "BULKGRPC_CHUNK_ROWS_MAX": "2000",
        }
        logs, second = tmp_path_factory.mktemp("lanes"), f"127.0.0.1:{choose_free()}"
        with service(environment, logs) as running:
            server = Process("bulkgrpc.server.process", ("--listen", second), environment, logs / "second.log")
            try:
                server.start()
                asyncio.run(_register(running.address))
                yield Fleet(running, second, addresses, postgres, name)
            finally:
                server.stop()
        admin.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


async def _register(address: str) -> None:
    async with AsyncBulkClient(address) as client:
        await client.register_dataset(examples.fleet().descriptors, examples.fleet().message_type)


@pytest.fixture
def tenant() -> str:
    return f"t-{uuid.uuid4().hex[:12]}"


def good(number: int) -> Batch:
    return Batch(examples.reading_batch(number * ROWS, ROWS), ROWS)


async def batches(
    made: Made = good, wait_at: int = BATCHES, go_on: asyncio.Event | None = None
) -> AsyncIterator[Batch]:
    """The job's batches; those from `wait_at` on once `go_on` is set, if there is one."""
    for number in range(BATCHES):
        if number == wait_at and go_on is not None:
            await go_on.wait()
        yield made(number)


async def break_off(client: AsyncBulkClient, key: str, acknowledged: int) -> None:
    """Submit a job and break off in its middle."""
    enough = asyncio.Event()

    def watch(progress: Progress) -> None:
        if progress.acknowledged_batches >= acknowledged:
            enough.set()

    held = batches(good, acknowledged, asyncio.Event())
    submission = asyncio.create_task(client.submit("fleet_readings", held, idempotency_key=key, on_progress=watch))
    await asyncio.wait_for(enough.wait(), 30)
    submission.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await submission


async def test_a_job_takes_its_lanes_and_ends_once_all_are_written(fleet: Fleet, tenant: str) -> None:
    async with AsyncBulkClient(fleet.service.address, tenant=tenant) as client:
        handle = await client.submit("fleet_readings", batches())
        job = await handle.wait(deadline_s=60)
    assert (job.state, job.counts.written) == (JobState.SUCCEEDED, TOTAL)
    assert (job.counts.accepted, job.next_sequence) == (TOTAL, BATCHES)
    assert fleet.rows(tenant) == (TOTAL, TOTAL)
    partitions, lanes = fleet.placed(handle)
    assert sorted(partitions) == list(range(LANES))
    assert lanes == {lane: BATCHES + lane for lane in range(LANES)}
    found = [m for m, _ in read_topic(fleet.addresses.kafka, fleet.topic) if m.spec.key.tenant == tenant]
    assert {(m.kind, m.lane) for m in found} == {(kind, lane) for kind in ("batch", "seal") for lane in range(LANES)}


async def test_a_job_with_fewer_batches_than_lanes_ends_too(fleet: Fleet, tenant: str) -> None:
    async def two() -> AsyncIterator[Batch]:
        for number in range(2):
            yield good(number)

    async def none() -> AsyncIterator[Batch]:
        return
        yield

    async with AsyncBulkClient(fleet.service.address, tenant=tenant) as client:
        for source, rows in ((two(), 2 * ROWS), (none(), 0)):
            job = await (await client.submit("fleet_readings", source)).wait(deadline_s=60)
            assert (job.state, job.counts.written) == (JobState.SUCCEEDED, rows)


@pytest.mark.parametrize("forgets", [False, True])
async def test_a_job_goes_on_at_another_server_with_redis_full_and_empty(
    fleet: Fleet, tenant: str, forgets: bool
) -> None:
    async with AsyncBulkClient(fleet.service.address, tenant=tenant) as client:
        await break_off(client, "k", 25)
    if forgets:
        await fleet.forget(tenant, "k")
    async with AsyncBulkClient(fleet.second, tenant=tenant) as client:
        job = await (await client.submit("fleet_readings", batches(), idempotency_key="k")).wait(deadline_s=60)
        assert (job.state, job.counts.written, job.counts.duplicate) == (JobState.SUCCEEDED, TOTAL, 0)
    assert fleet.rows(tenant) == (TOTAL, TOTAL)


async def test_another_number_of_lanes_is_that_of_new_jobs_only(fleet: Fleet, tenant: str, tmp_path: Path) -> None:
    text = (Path(__file__).parents[2] / "proto/examples/v1/sensors.proto").read_text()
    (tmp_path / "sensors.proto").write_text(text.replace("lanes: 4", "lanes: 2"))
    changed = examples.compiled(tmp_path / "sensors.proto", "examples.v1.FleetReading")
    async with AsyncBulkClient(fleet.service.address, tenant=tenant) as client:
        await break_off(client, "k", 25)
        await fleet.forget(tenant, "k")
        try:
            assert (await client.register_dataset(changed.descriptors, changed.message_type)).version > 1
            old = await client.submit("fleet_readings", batches(), idempotency_key="k")
            new = await client.submit("fleet_readings", batches())
            assert (await old.wait(deadline_s=60)).counts.written == TOTAL
            assert (await new.wait(deadline_s=60)).counts.duplicate == TOTAL
            assert [len(fleet.placed(handle)[0]) for handle in (old, new)] == [4, 2]
        finally:
            await client.register_dataset(examples.fleet().descriptors, examples.fleet().message_type)


@pytest.mark.timeout(180)
async def test_a_worker_that_is_killed_in_the_middle_loses_and_doubles_nothing(fleet: Fleet, tenant: str) -> None:
    go_on = asyncio.Event()
    async with AsyncBulkClient(fleet.service.address, tenant=tenant) as client:
        source = batches(good, 40, go_on)
        submission = asyncio.create_task(client.submit("fleet_readings", source, idempotency_key="k"))
        await eventually(lambda: fleet.rows(tenant)[0] > 0)
        victim = fleet.service.workers[0]
        await asyncio.to_thread(victim.kill)
        go_on.set()
        handle = await submission
        await asyncio.to_thread(victim.start)
        job = await handle.wait(deadline_s=120)
    assert (job.state, job.counts.written, job.counts.duplicate) == (JobState.SUCCEEDED, TOTAL, 0)
    assert fleet.rows(tenant) == (TOTAL, TOTAL)


async def test_a_cancelled_job_writes_nothing_more(fleet: Fleet, tenant: str) -> None:
    go_on = asyncio.Event()
    async with AsyncBulkClient(fleet.service.address, tenant=tenant) as client:
        source = batches(good, 40, go_on)
        submission = asyncio.create_task(client.submit("fleet_readings", source, idempotency_key="k"))
        await eventually(lambda: fleet.rows(tenant)[0] > 0)
        handle = client.job(JobKey.derive(tenant, "k").name)
        cancelled = await handle.cancel()
        there = fleet.rows(tenant)
        assert cancelled.state is JobState.CANCELLED
        go_on.set()
        with contextlib.suppress(BulkError):
            await submission

        def drained() -> bool:
            lanes = fleet.placed(handle)[1]
            return len(lanes) == LANES and min(lanes.values()) >= 40

        await eventually(drained)
        counts = (await handle.get()).counts
    assert fleet.rows(tenant) == there == (counts.written, counts.written)
    assert counts.accepted == counts.written + counts.expired


async def test_an_atomic_job_is_all_there_at_once_or_not_at_all(fleet: Fleet, tenant: str) -> None:
    def one_bad(number: int) -> Batch:
        return Batch(BAD, 10) if number == 30 else good(number)

    async with AsyncBulkClient(fleet.service.address, tenant=tenant) as client:
        atomic = JobOptions(atomic=True)
        failed = await (await client.submit("fleet_readings", batches(one_bad), options=atomic)).wait(deadline_s=60)
        assert (failed.state, failed.counts.written, fleet.rows(tenant)) == (JobState.FAILED, 0, (0, 0))
        seen: set[int] = set()
        handle = await client.submit("fleet_readings", batches(), options=atomic)

        def ended() -> bool:
            seen.add(fleet.rows(tenant)[0])
            return TOTAL in seen

        await eventually(ended)
        job = await handle.wait(deadline_s=60)
    assert (job.state, job.counts.written) == (JobState.SUCCEEDED, TOTAL)
    assert seen <= {0, TOTAL}


async def test_too_many_rejections_over_all_lanes_fail_the_job(fleet: Fleet, tenant: str) -> None:
    def some_bad(number: int) -> Batch:
        return Batch(BAD, 10) if number < 8 else good(number)

    async with AsyncBulkClient(fleet.service.address, tenant=tenant) as client:
        lenient = await client.submit("fleet_readings", batches(some_bad), options=JobOptions(rejections_max=80))
        job = await lenient.wait(deadline_s=60)
        assert (job.state, job.counts.rejected) == (JobState.PARTIALLY_SUCCEEDED, 80)
        places = [(found.sequence, found.record_index) async for found in lenient.rejections()]
        assert places == [(sequence, index) for sequence in range(8) for index in range(10)]
        handle = client.job(JobKey.derive(tenant, "strict").name)
        with contextlib.suppress(BulkError):
            strict = JobOptions(rejections_max=79)
            await client.submit("fleet_readings", batches(some_bad), idempotency_key="strict", options=strict)
        job = await handle.wait(deadline_s=60)
    assert job.state is JobState.FAILED
    assert "rejections_max" in job.failure_reason
