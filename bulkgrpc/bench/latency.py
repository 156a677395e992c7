"""Latency at low load: one small batch at a time on an open stream, until acknowledged and until visible."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Callable, Sequence

from bulkgrpc.bench import observe, readings, service_processes
from bulkgrpc.bench.environment import Environment
from bulkgrpc.bench.model import BenchFailed, Latency, Load, Quantiles
from bulkgrpc.bench.spawned import START, Pipe, Spawned, receive, spawned
from bulkgrpc.client import AsyncBulkClient, Batch, Progress
from bulkgrpc.datasets.codec import BatchCodec
from bulkgrpc.datasets.definition import Dataset
from bulkgrpc.model import JobCounts
from bulkgrpc.postgres import bench_state
from bulkgrpc.postgres.inspection import row_lookup

BATCH_ROWS = 100
INTERVAL_S = 0.05
_TIMEOUT_S = 60.0


def measure(environment: Environment, dataset: Dataset, load: Load) -> Latency:
    """Measure `load.samples` batches, from the moment the client receives each.

    A second connection looks up the batch's last row by primary key without a pause, so a time is at most one lookup
    (about 0.1 ms) too long. The lookups take part of a core from the measured path. Raises BenchFailed.
    """
    tenant = readings.tenants_of(load)[0]
    run, warm_up = f"latency-{secrets.token_hex(4)}", f"warm-{secrets.token_hex(4)}"
    with (
        environment.deployment("latency", load.tenants) as deployment,
        service_processes.workers(deployment, load.workers, environment.directory) as running,
        service_processes.server(deployment, environment.directory) as (server, target),
        spawned(send_paced, [(target, tenant, warm_up, run, load.samples)]) as (client,),
        environment.connection() as connection,
    ):
        bench_state.clear(connection, dataset)
        needed: list[observe.Needed] = [*running, server, client]
        observe.wait_group_balanced(deployment, load.workers)
        client.send(START)
        observe.wait_jobs_ended(connection, warm_up, 1, needed=needed)
        bench_state.clear(connection, dataset)
        exists = row_lookup(connection, dataset)
        client.send(START)
        visible_s = [_visible_after_s(exists, tenant, client) for _ in range(load.samples)]
        acknowledged_s = client.receive(_TIMEOUT_S)
        observe.wait_jobs_ended(connection, run, 1, needed=needed)
        rows = load.samples * BATCH_ROWS
        observe.check_counts(connection, dataset, run, 1, JobCounts(rows, rows))
    return Latency(Quantiles.of(acknowledged_s), Quantiles.of(visible_s))


def _visible_after_s(exists: Callable[[Sequence[object]], bool], tenant: str, client: Spawned) -> float:
    number, sent_s = client.receive(_TIMEOUT_S)
    key = (tenant, *readings.key_of((number + 1) * BATCH_ROWS - 1))
    while not exists(key):
        if time.perf_counter() - sent_s > _TIMEOUT_S:
            raise BenchFailed(f"a batch was not visible after {_TIMEOUT_S:.0f} s")
    return time.perf_counter() - float(sent_s)


def send_paced(pipe: Pipe, target: str, tenant: str, warm_up: str, run: str, samples: int) -> None:
    """Submit two jobs, each on a start signal: one of one batch, then one with a batch every INTERVAL_S.

    Sends the number and the time of each batch when it is handed over; at the end, the seconds until each was
    acknowledged.
    """
    codec = BatchCodec(readings.dataset())
    payloads = readings.batches(codec, 0, samples * BATCH_ROWS, BATCH_ROWS)
    batches = [Batch(payload, BATCH_ROWS) for payload in payloads]
    pipe.send(True)
    asyncio.run(_send_paced(pipe, (target, tenant), (warm_up, run), batches))


async def _send_paced(pipe: Pipe, server: tuple[str, str], keys: tuple[str, str], batches: list[Batch]) -> None:
    sent_s: list[float] = []
    acknowledged_s: list[float] = []

    async def paced() -> AsyncIterator[Batch]:
        # The stream is open before the first batch is read: opening it is not part of the latency.
        clock = asyncio.get_running_loop().time
        next_s = clock()
        for number, batch in enumerate(batches):
            await asyncio.sleep(max(0.0, next_s - clock()))
            next_s += INTERVAL_S
            sent_s.append(time.perf_counter())
            pipe.send((number, sent_s[-1]))
            yield batch

    def on_progress(progress: Progress) -> None:
        now_s = time.perf_counter()
        while len(acknowledged_s) < progress.acknowledged_batches:
            acknowledged_s.append(now_s)

    (target, tenant), (warm_up, run) = server, keys
    async with AsyncBulkClient(target, tenant=tenant) as client:
        await asyncio.to_thread(receive, pipe, _TIMEOUT_S)
        await client.submit(readings.TABLE, batches[:1], idempotency_key=warm_up)
        await asyncio.to_thread(receive, pipe, _TIMEOUT_S)
        await client.submit(readings.TABLE, paced(), idempotency_key=run, on_progress=on_progress)
    pipe.send([end_s - start_s for start_s, end_s in zip(sent_s, acknowledged_s, strict=True)])
