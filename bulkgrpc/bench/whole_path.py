"""The whole path: client, server, Kafka, workers and PostgreSQL at the same time, on the same cores."""

from __future__ import annotations

import asyncio
import secrets
import time

from bulkgrpc.bench import observe, readings, service_processes
from bulkgrpc.bench.cpu import cpu_s
from bulkgrpc.bench.environment import Environment
from bulkgrpc.bench.model import Load, Rate
from bulkgrpc.bench.spawned import Pipe, receive, spawned
from bulkgrpc.client import AsyncBulkClient, Batch
from bulkgrpc.datasets.codec import BatchCodec
from bulkgrpc.datasets.definition import Dataset
from bulkgrpc.model import JobCounts
from bulkgrpc.postgres import bench_state

_TIMEOUT_S = 600.0


def measure(environment: Environment, dataset: Dataset, load: Load) -> Rate:
    """Measure the whole path: from the start signal to the client until all jobs have ended.

    One client process sends all tenants' jobs at the same time, one stream each, from batches encoded beforehand.
    Server and workers are warm: each tenant has completed a first job. Raises BenchFailed.
    """
    tenants = readings.tenants_of(load)
    run, warm_up = f"whole-{secrets.token_hex(4)}", f"warm-{secrets.token_hex(4)}"
    with (
        environment.deployment("whole", load.tenants) as deployment,
        service_processes.workers(deployment, load.workers, environment.directory) as running,
        service_processes.server(deployment, environment.directory) as (server, target),
        spawned(send_jobs, [(target, load, tenants)]) as (client,),
        environment.connection() as connection,
    ):
        bench_state.clear(connection, dataset)
        needed: list[observe.Needed] = [*running, server, client]
        pids = [environment.postgres_pid, server.pid, client.pid, *(worker.pid for worker in running)]
        observe.wait_group_balanced(deployment, load.workers)
        client.send((warm_up, 1))
        client.receive(_TIMEOUT_S)
        observe.wait_jobs_ended(connection, warm_up, load.tenants, needed=needed)
        bench_state.clear(connection, dataset)
        start_s, start_cpu_s = time.perf_counter(), cpu_s(pids)
        client.send((run, None))
        observe.wait_jobs_ended(connection, run, load.tenants, needed=needed)
        rate = Rate(load.rows, time.perf_counter() - start_s, cpu_s(pids) - start_cpu_s)
        client.receive(_TIMEOUT_S)
        client.send(None)
        observe.check_counts(connection, dataset, run, load.tenants, JobCounts(load.rows, load.rows))
    return rate


def send_jobs(pipe: Pipe, target: str, load: Load, tenants: list[str]) -> None:
    """Submit one job for each tenant whenever a message (idempotency key, number of batches) arrives, until None does.

    A number of None means all batches.
    """
    codec = BatchCodec(readings.dataset())
    payloads = readings.batches(codec, 0, load.tenant_rows, load.batch_rows)
    batches = [Batch(payload, load.batch_rows) for payload in payloads]
    pipe.send(True)
    asyncio.run(_send_jobs(pipe, target, tenants, batches))


async def _send_jobs(pipe: Pipe, target: str, tenants: list[str], batches: list[Batch]) -> None:
    clients = [AsyncBulkClient(target, tenant=tenant) for tenant in tenants]
    while (message := await asyncio.to_thread(receive, pipe, _TIMEOUT_S)) is not None:
        key, count = message
        async with asyncio.TaskGroup() as tasks:
            for client in clients:
                tasks.create_task(client.submit(readings.TABLE, batches[:count], idempotency_key=key))
        pipe.send(True)
    for client in clients:
        await client.close()
