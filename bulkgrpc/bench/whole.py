"""The whole path: client, server, Kafka, workers and PostgreSQL at once, on the same cores."""

from __future__ import annotations

import asyncio
import secrets
import time

from bulkgrpc.bench import programs, readings, watch
from bulkgrpc.bench.child import READY, Pipe, children, receive
from bulkgrpc.bench.ground import Ground
from bulkgrpc.bench.model import Load, Rate
from bulkgrpc.client import AsyncBulkClient, Batch
from bulkgrpc.datasets.codec import BatchCodec
from bulkgrpc.datasets.definition import Dataset
from bulkgrpc.model import JobCounts

_WITHIN_S = 600.0


def measure(ground: Ground, dataset: Dataset, load: Load) -> Rate:
    """Measure it: from the word to the client until all jobs have ended.

    One client process sends all tenants' jobs at once, a stream each, from batches encoded beforehand. Server and
    workers are warm: each tenant's first job has gone through. Raises BenchFailed.
    """
    ground.clear(dataset)
    tenants = readings.tenants_of(load)
    run, warm = f"whole-{secrets.token_hex(4)}", f"warm-{secrets.token_hex(4)}"
    with (
        ground.place("whole", load.tenants) as place,
        programs.workers(place, load.workers, ground.directory) as running,
        programs.server(place, ground.directory) as (server, target),
        children(send_jobs, [(target, load, tenants)]) as (client,),
        ground.connection() as connection,
    ):
        needed: list[watch.Needed] = [*running, server, client]
        watch.group_settles(place, load.workers)
        client.send((warm, 1))
        client.receive(_WITHIN_S)
        watch.jobs_end(connection, warm, load.tenants, needed=needed)
        ground.clear(dataset)
        begun_s = time.perf_counter()
        client.send((run, None))
        watch.jobs_end(connection, run, load.tenants, needed=needed)
        seconds = time.perf_counter() - begun_s
        client.receive(_WITHIN_S)
        client.send(None)
        watch.check_counts(connection, dataset, run, load.tenants, JobCounts(load.rows, load.rows))
    return Rate(load.rows, seconds)


def send_jobs(pipe: Pipe, target: str, load: Load, tenants: list[str]) -> None:
    """Submit a job a tenant whenever told (idempotency key, number of batches or None: all), until told None."""
    codec = BatchCodec(readings.dataset())
    payloads = readings.batches(codec, 0, load.tenant_rows, load.batch_rows)
    batches = [Batch(payload, load.batch_rows) for payload in payloads]
    pipe.send(READY)
    asyncio.run(_send_jobs(pipe, target, tenants, batches))


async def _send_jobs(pipe: Pipe, target: str, tenants: list[str], batches: list[Batch]) -> None:
    clients = [AsyncBulkClient(target, tenant=tenant) for tenant in tenants]
    while (told := await asyncio.to_thread(receive, pipe, _WITHIN_S)) is not None:
        key, count = told
        async with asyncio.TaskGroup() as tasks:
            for client in clients:
                tasks.create_task(client.submit(readings.TABLE, batches[:count], idempotency_key=key))
        pipe.send(READY)
    for client in clients:
        await client.close()
