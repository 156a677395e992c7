"""PostgreSQL or Redis unavailable for a while: jobs are accepted, workers stay in their group, all is written later."""

from __future__ import annotations

import signal
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from bulkgrpc.client import AsyncBulkClient, Batch, JobState
from bulkgrpc.postgres import schema
from bulkgrpc.stack import Stack
from tests.support import examples
from tests.support.processes import Service, service
from tests.support.waiting import eventually

ENDS_WITHIN_S = 60.0


@pytest.fixture(scope="module")
def running(own_stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    schema.migrate(own_stack.addresses.postgres)
    logs: Path = tmp_path_factory.mktemp("logs")
    with service(own_stack.addresses.environment(), logs, workers=1) as processes:
        yield processes


async def _register(client: AsyncBulkClient) -> None:
    dataset = examples.readings()
    await client.register_dataset(dataset.descriptors, dataset.message_type)


def _batches(count: int) -> list[Batch]:
    start = uuid.uuid4().int % 10**9 * 10**5
    return [Batch(examples.reading_batch(start + number * 100, 100), 100) for number in range(count)]


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
async def test_while_postgres_is_away_jobs_are_accepted_and_workers_stay(
    own_stack: Stack, running: Service, how: signal.Signals
) -> None:
    worker = running.workers[0]
    async with AsyncBulkClient(running.address, tenant="away") as client:
        await _register(client)
        first = await client.submit("sensor_readings", _batches(5))
        assert (await first.wait(deadline_s=ENDS_WITHIN_S)).state is JobState.SUCCEEDED
        seen = len(worker.log.read_text())
        own_stack.part("postgres").kill(how)
        try:
            second = await client.submit("sensor_readings", _batches(20))
            assert second.job is not None
            assert second.job.state is JobState.SEALED
            assert (await second.get()).counts.accepted == 2000
            if how is signal.SIGKILL:
                await eventually(lambda: "postgres_unavailable" in worker.log.read_text()[seen:])
        finally:
            if how is signal.SIGSTOP:
                own_stack.part("postgres").kill(signal.SIGCONT)
            own_stack.up(lambda _progress: None)
        job = await second.wait(deadline_s=ENDS_WITHIN_S)
    assert (job.state, job.counts.written) == (JobState.SUCCEEDED, 2000)
    assert "partitions_revoked" not in worker.log.read_text()


async def test_while_redis_is_away_jobs_are_accepted_and_nothing_is_written_twice(
    own_stack: Stack, running: Service
) -> None:
    async with AsyncBulkClient(running.address, tenant="away") as client:
        await _register(client)
        batches = _batches(20)
        own_stack.part("redis").kill()
        try:
            jobs = [await client.submit("sensor_readings", batches, idempotency_key="same") for _ in range(2)]
            assert jobs[0].name == jobs[1].name
            job = await jobs[1].wait(deadline_s=ENDS_WITHIN_S)
        finally:
            own_stack.up(lambda _progress: None)
    assert (job.state, job.counts.accepted, job.counts.written) == (JobState.SUCCEEDED, 2000, 2000)


async def test_a_worker_ends_by_sigterm_while_kafka_does_not_answer(own_stack: Stack, running: Service) -> None:
    worker = running.workers[0]
    await eventually(lambda: "partitions_assigned" in worker.log.read_text())
    own_stack.part("kafka").kill(signal.SIGSTOP)
    try:
        assert worker.kill(signal.SIGTERM) == 0
    finally:
        own_stack.part("kafka").kill(signal.SIGCONT)
