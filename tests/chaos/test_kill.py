"""kill -9 of each part in the middle of a load, then a restart: the load ends well, every record is there once."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from bulkgrpc.client import AsyncBulkClient, Batch, Job, JobState, Progress
from bulkgrpc.postgres import schema
from bulkgrpc.postgres.connection import connect
from bulkgrpc.stack import Stack
from tests.support import examples
from tests.support.processes import Service, service

BATCHES = 200
BATCH_ROWS = 1000
KILL_AFTER_BATCHES = 40
GO_ON_AFTER_BATCHES = 120
ENDS_WITHIN_S = 90.0

Blow = Callable[[Stack, Service], None]


def _server(_stack: Stack, running: Service) -> None:
    running.server.kill()
    running.server.start()


def _worker(_stack: Stack, running: Service) -> None:
    for worker in running.workers:
        worker.kill()
    for worker in running.workers:
        worker.start()


def _part(name: str) -> Blow:
    def blow(stack: Stack, _running: Service) -> None:
        stack.part(name).kill()
        stack.up(lambda _progress: None)

    return blow


BLOWS: dict[str, Blow] = {
    "server": _server,
    "workers": _worker,
    "kafka": _part("kafka"),
    "postgres": _part("postgres"),
    "redis": _part("redis"),
}


@pytest.fixture(scope="module")
def running(own_stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    schema.migrate(own_stack.addresses.postgres)
    logs: Path = tmp_path_factory.mktemp("logs")
    with service(own_stack.addresses.environment(), logs) as processes:
        yield processes


@pytest.mark.timeout(180)
@pytest.mark.parametrize("victim", BLOWS)
async def test_a_load_survives_kill_9(own_stack: Stack, running: Service, victim: str) -> None:
    start = uuid.uuid4().int % 10**9 * BATCHES * BATCH_ROWS
    hurt, healed = asyncio.Event(), asyncio.Event()

    async def batches() -> AsyncIterator[Batch]:
        for number in range(BATCHES):
            if number == GO_ON_AFTER_BATCHES:
                await healed.wait()
            yield Batch(examples.reading_batch(start + number * BATCH_ROWS, BATCH_ROWS), BATCH_ROWS)

    def watch(progress: Progress) -> None:
        if progress.acknowledged_batches >= KILL_AFTER_BATCHES:
            hurt.set()

    async def strike() -> None:
        await hurt.wait()
        await asyncio.to_thread(BLOWS[victim], own_stack, running)
        healed.set()

    async with AsyncBulkClient(running.address, tenant=f"kill-{victim}") as client:
        dataset = examples.readings()
        await client.register_dataset(dataset.descriptors, dataset.message_type)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(strike())
            submission = tasks.create_task(client.submit(dataset.name, batches(), on_progress=watch))
        job = await submission.result().wait(deadline_s=ENDS_WITHIN_S)
    _check(own_stack, job, f"kill-{victim}")


def _check(stack: Stack, job: Job, tenant: str) -> None:
    total = BATCHES * BATCH_ROWS
    assert job.state is JobState.SUCCEEDED
    assert (job.counts.accepted, job.counts.written, job.counts.duplicate, job.counts.rejected) == (total, total, 0, 0)
    with connect(stack.addresses.postgres, "tests") as connection:
        found = connection.execute(
            "SELECT count(*), count(DISTINCT value), max(value) - min(value) FROM sensor_readings WHERE tenant = %s",
            [tenant],
        ).fetchone()
    assert found == (total, total, (total - 1) * 0.5)
