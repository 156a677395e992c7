"""Large atomic jobs: no other job waits for their rows; killed workers leave all of one or nothing."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path

import pytest

from bulkgrpc.client import AsyncBulkClient, JobOptions, JobState
from bulkgrpc.faults import Site
from bulkgrpc.postgres.connection import connect
from bulkgrpc.stack import Addresses
from tests.chaos.atomic import batches, measure, revive, running, until_staged
from tests.support import examples

ROWS = 600_000
"""They take several seconds to apply."""
SLICED_ROWS = 250_000
WAIT_S_MAX = 2.0
"""As in P10."""
GROWTH_MB_MAX = 64.0
ENDS_WITHIN_S = 120.0
ATOMIC = JobOptions(atomic=True)
_COUNT = "SELECT count(*), count(DISTINCT value) FROM sensor_readings"


@pytest.mark.timeout(300)
async def test_while_a_large_atomic_job_is_applied_no_other_job_waits_and_the_workers_memory_does_not_grow(
    addresses: Addresses, tmp_path: Path
) -> None:
    with running(addresses, tmp_path) as service:
        figures = await measure(service, ROWS)
    print(f"\n{figures.summary()}")
    assert figures.apply_s > 1.5 * WAIT_S_MAX, "else the waits prove nothing: take more rows"
    assert {kind: figures.slowest_s(kind) for kind in figures.waits_s if figures.slowest_s(kind) > WAIT_S_MAX} == {}
    assert all(len(found) > 3 for found in figures.waits_s.values())
    assert figures.rss_most_mb - figures.rss_sealed_mb < GROWTH_MB_MAX
    assert figures.progress


@pytest.mark.timeout(300)
@pytest.mark.parametrize("site", ["task_claimed", "task_slice", "task_before_commit", "task_after_commit"])
async def test_a_worker_that_is_killed_while_it_applies_an_atomic_job_leaves_all_of_it_or_nothing(
    addresses: Addresses, tmp_path: Path, site: Site
) -> None:
    dataset = examples.readings()
    with running(addresses, tmp_path, f"{site}:kill:1") as service:
        async with AsyncBulkClient(service.address) as client:
            await client.register_dataset(dataset.descriptors, dataset.message_type)
            with connect(service.postgres, "tests") as connection:
                connection.execute("ALTER TABLE sensor_readings DROP CONSTRAINT sensor_readings_pkey")
            handle = await client.submit(dataset.name, batches(SLICED_ROWS), options=ATOMIC)
            assert await asyncio.to_thread(service.worker.wait) == -signal.SIGKILL
            with connect(service.postgres, "tests") as connection:
                there = connection.execute(_COUNT).fetchone()
            committed = site == "task_after_commit"
            assert there == ((SLICED_ROWS, SLICED_ROWS) if committed else (0, 0))
            assert (await handle.get()).state is (JobState.SUCCEEDED if committed else JobState.SEALED)
            await asyncio.to_thread(revive, service.worker)
            job = await handle.wait(deadline_s=ENDS_WITHIN_S)
        assert (job.state, job.counts.written) == (JobState.SUCCEEDED, SLICED_ROWS)
        with connect(service.postgres, "tests") as connection:
            assert connection.execute(_COUNT).fetchone() == (SLICED_ROWS, SLICED_ROWS)
            left = connection.execute("SELECT count(*) FROM bulk.apply_tasks").fetchone()
        assert left == (0,)


@pytest.mark.timeout(300)
async def test_a_worker_that_ends_by_sigterm_finishes_or_leaves_its_task(addresses: Addresses, tmp_path: Path) -> None:
    dataset = examples.readings()
    with running(addresses, tmp_path) as service:
        async with AsyncBulkClient(service.address) as client:
            await client.register_dataset(dataset.descriptors, dataset.message_type)
            handle = await client.submit(dataset.name, batches(ROWS), options=ATOMIC)
            await until_staged(client, handle.name)
            assert await asyncio.to_thread(service.worker.kill, signal.SIGTERM) == 0
            with connect(service.postgres, "tests") as connection:
                there = connection.execute(_COUNT).fetchone()
            ended = (await handle.get()).state is JobState.SUCCEEDED
            assert there == ((ROWS, ROWS) if ended else (0, 0))
            await asyncio.to_thread(revive, service.worker)
            job = await handle.wait(deadline_s=ENDS_WITHIN_S)
        assert (job.state, job.counts.written) == (JobState.SUCCEEDED, ROWS)
