"""Latency at low load: a small batch at a time on an open stream, until it is acknowledged, until it can be read."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator

from bulkgrpc.bench import programs, readings, watch
from bulkgrpc.bench.child import GO, READY, Child, Pipe, children, receive
from bulkgrpc.bench.ground import Connection, Ground
from bulkgrpc.bench.model import BenchFailed, Latency, Load, Quantiles
from bulkgrpc.client import AsyncBulkClient, Batch, Progress
from bulkgrpc.datasets.codec import BatchCodec
from bulkgrpc.datasets.definition import Dataset
from bulkgrpc.model import JobCounts

BATCH_ROWS = 100
EVERY_S = 0.05
_WITHIN_S = 60.0
_LOOK = "SELECT FROM sensor_readings WHERE tenant = %s AND sensor_id = %s AND sampled_at = %s"


def measure(ground: Ground, dataset: Dataset, load: Load) -> Latency:
    """Measure it: from the moment the client is handed a batch, `load.samples` times.

    A second connection looks for the batch's last row by primary key, again and again without a pause, so a time is
    at most one look (about 0.1 ms) too long; the looking costs the measured path a part of a core. Raises BenchFailed.
    """
    ground.clear(dataset)
    tenant = readings.tenants_of(load)[0]
    run, warm = f"latency-{secrets.token_hex(4)}", f"warm-{secrets.token_hex(4)}"
    with (
        ground.place("latency", load.tenants) as place,
        programs.workers(place, load.workers, ground.directory) as running,
        programs.server(place, ground.directory) as (server, target),
        children(send_paced, [(target, tenant, warm, run, load.samples)]) as (client,),
        ground.connection() as connection,
    ):
        needed: list[watch.Needed] = [*running, server, client]
        watch.group_settles(place, load.workers)
        client.send(GO)
        watch.jobs_end(connection, warm, 1, needed=needed)
        ground.clear(dataset)
        client.send(GO)
        visible = [_visible_after(connection, tenant, client) for _ in range(load.samples)]
        acknowledged = client.receive(_WITHIN_S)
        watch.jobs_end(connection, run, 1, needed=needed)
        rows = load.samples * BATCH_ROWS
        watch.check_counts(connection, dataset, run, 1, JobCounts(rows, rows))
    return Latency(Quantiles.of(acknowledged), Quantiles.of(visible))


def _visible_after(connection: Connection, tenant: str, client: Child) -> float:
    number, sent_s = client.receive(_WITHIN_S)
    key = (tenant, *readings.key_of((number + 1) * BATCH_ROWS - 1))
    while connection.execute(_LOOK, key, prepare=True).rowcount == 0:
        if time.perf_counter() - sent_s > _WITHIN_S:
            raise BenchFailed(f"a batch was not visible after {_WITHIN_S:.0f} s")
    return time.perf_counter() - float(sent_s)


def send_paced(pipe: Pipe, target: str, tenant: str, warm: str, run: str, samples: int) -> None:
    """Submit a job of one batch when told, then one of a batch every EVERY_S; send when each went and was stored."""
    codec = BatchCodec(readings.dataset())
    payloads = readings.batches(codec, 0, samples * BATCH_ROWS, BATCH_ROWS)
    batches = [Batch(payload, BATCH_ROWS) for payload in payloads]
    pipe.send(READY)
    asyncio.run(_send_paced(pipe, (target, tenant), (warm, run), batches))


async def _send_paced(pipe: Pipe, whose: tuple[str, str], keys: tuple[str, str], batches: list[Batch]) -> None:
    sent_s: list[float] = []
    acknowledged_s: list[float] = []

    async def paced() -> AsyncIterator[Batch]:
        # The stream is open before the first batch is drawn: opening one is not what is measured.
        clock = asyncio.get_running_loop().time
        next_s = clock()
        for number, batch in enumerate(batches):
            await asyncio.sleep(max(0.0, next_s - clock()))
            next_s += EVERY_S
            sent_s.append(time.perf_counter())
            pipe.send((number, sent_s[-1]))
            yield batch

    def progressed(progress: Progress) -> None:
        now_s = time.perf_counter()
        while len(acknowledged_s) < progress.acknowledged_batches:
            acknowledged_s.append(now_s)

    (target, tenant), (warm, run) = whose, keys
    async with AsyncBulkClient(target, tenant=tenant) as client:
        await asyncio.to_thread(receive, pipe, _WITHIN_S)
        await client.submit(readings.TABLE, batches[:1], idempotency_key=warm)
        await asyncio.to_thread(receive, pipe, _WITHIN_S)
        await client.submit(readings.TABLE, paced(), idempotency_key=run, on_progress=progressed)
    pipe.send([there - away for away, there in zip(sent_s, acknowledged_s, strict=True)])
