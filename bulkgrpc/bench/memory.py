"""Memory: many streams send gigabytes through one server at the same time; server and workers stay within bounds."""

from __future__ import annotations

import asyncio
import secrets
import threading
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from bulkgrpc.bench import observe, service_processes, trades
from bulkgrpc.bench.environment import Deployment, Environment
from bulkgrpc.bench.model import (
    SERVER_RSS_MB_MAX,
    WORKER_RSS_MB_MAX,
    BenchFailed,
    MemoryLoad,
    MemoryResults,
    Resident,
    Sample,
)
from bulkgrpc.bench.service_processes import ServiceProcess
from bulkgrpc.bench.spawned import START, Pipe, Spawned, receive, spawned
from bulkgrpc.client import AsyncBulkClient, Batch, ClientConfig
from bulkgrpc.datasets.codec import BatchCodec
from bulkgrpc.datasets.definition import Dataset
from bulkgrpc.kafka.administration import KafkaAdministration
from bulkgrpc.model import JobCounts
from bulkgrpc.postgres import bench_state
from bulkgrpc.postgres.connection import Connection
from bulkgrpc.postgres.inspection import ended_jobs_and_written_rows, next_offsets

SAMPLE_INTERVAL_S = 0.5
WORKERS = 2
PARTITIONS = 4
_TIMEOUT_S = 3600.0
_CLIENT_BUFFER_BYTES = 1 << 20
_MB = 1e6


@dataclass(slots=True)
class SampledProcess:
    """A process, its samples, and the resident memory that it may reach (MB)."""

    process: ServiceProcess
    limit_mb: float
    samples: list[Sample] = field(default_factory=list)

    def sample(self, share: float) -> None:
        """Sample its memory when `share` of its load, 0 to 1, is done. Raises BenchFailed if it has exited."""
        self.process.check()
        self.samples.append(Sample(share, psutil.Process(self.process.pid).memory_info().rss / _MB))

    def resident(self) -> Resident:
        """Return the result of its samples. Raises BenchFailed if there are too few."""
        sampled_mb = max(sample.rss_mb for sample in self.samples)
        max_mb = max(sampled_mb, high_water_mb(self.process.pid))
        return Resident.of(self.process.name, self.samples, max_mb, self.limit_mb)


def measure(environment: Environment, dataset: Dataset, load: MemoryLoad) -> MemoryResults:
    """Measure memory. Every stream is one tenant and one job; clients send as fast as the server accepts.

    The workers do not slow the clients down: Kafka stores what is not written yet. Records that the ledger has passed
    are deleted from the topic, so that each byte takes disk space only as long as needed. Raises BenchFailed.
    """
    rows = max(1, load.batch_bytes // trades.ROW_BYTES)
    batches = max(1, round(load.total_bytes / load.streams / (rows * trades.ROW_BYTES)))
    total, run = rows * batches * load.streams, f"memory-{secrets.token_hex(4)}"
    with (
        environment.deployment("memory", PARTITIONS) as deployment,
        service_processes.workers(deployment, WORKERS, environment.directory) as running,
        service_processes.server(deployment, environment.directory) as (server, target),
        spawned(send_streams, [(target, load.streams, rows, batches, run)]) as (client,),
        environment.connection() as connection,
    ):
        bench_state.clear(connection, dataset)
        observe.wait_group_balanced(deployment, WORKERS)
        sampled = [
            SampledProcess(server, SERVER_RSS_MB_MAX),
            *(SampledProcess(worker, WORKER_RSS_MB_MAX) for worker in running),
        ]
        times = _sample(connection, deployment, client, sampled, (run, load.streams, total))
        observe.check_counts(connection, dataset, run, load.streams, JobCounts(total, total))
        processes = tuple(item.resident() for item in sampled)
    return MemoryResults(load, times.sent_bytes, total, times.accepted_s, times.written_s, processes)


@dataclass(slots=True)
class _Times:
    sent_bytes: int = 0
    accepted_s: float = 0.0
    written_s: float = 0.0


def _sample(
    connection: Connection,
    deployment: Deployment,
    client: Spawned,
    sampled: list[SampledProcess],
    expected: tuple[str, int, int],
) -> _Times:
    """Start the clients and sample until all jobs have ended. expected: idempotency key, jobs, rows."""
    run, jobs, rows = expected
    administration = KafkaAdministration(deployment.kafka)
    times, pause, accepted_rows = _Times(), threading.Event(), 0
    start_s = time.perf_counter()
    client.send(START)
    while True:
        client.check()
        while accepted_rows < rows and client.pipe.poll():
            accepted_rows, times.sent_bytes = client.receive(0)
            times.accepted_s = time.perf_counter() - start_s
        ended, written = ended_jobs_and_written_rows(connection, run)
        server, *workers = sampled
        if times.written_s == 0.0 and accepted_rows < rows:
            server.sample(accepted_rows / rows)
        for worker in workers:
            worker.sample(written / rows)
        if ended == jobs and accepted_rows == rows:
            times.written_s = time.perf_counter() - start_s
            return times
        if time.perf_counter() - start_s > _TIMEOUT_S:
            raise BenchFailed(f"{ended} of {jobs} jobs ended within {_TIMEOUT_S:.0f} s")
        administration.delete_records(deployment.topic, next_offsets(connection, deployment.topic))
        pause.wait(SAMPLE_INTERVAL_S)


def high_water_mb(pid: int) -> float:
    """Return the kernel's high-water mark of a process's resident memory; 0 if the system has none."""
    status = Path(f"/proc/{pid}/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return next((int(line.split()[1]) * 1024 / _MB for line in lines if line.startswith("VmHWM:")), 0.0)


def send_streams(pipe: Pipe, target: str, streams: int, rows: int, count: int, key: str) -> None:
    """Submit one job of `count` batches on each of `streams` connections at the same time.

    Sends the acknowledged records and bytes of all streams every SAMPLE_INTERVAL_S / 2.
    """
    codec = BatchCodec(trades.dataset())
    columns = trades.columns_of(codec, rows)
    pipe.send(True)
    receive(pipe, _TIMEOUT_S)

    async def batches() -> AsyncIterator[Batch]:
        for batch in trades.batches(codec, columns, count):
            yield batch

    async def send(number: int, acknowledged: list[tuple[int, int]]) -> None:
        config = ClientConfig(buffer_bytes_max=_CLIENT_BUFFER_BYTES)
        async with AsyncBulkClient(target, tenant=f"tenant-{number}", config=config) as client:
            await client.submit(
                trades.TABLE,
                batches(),
                idempotency_key=key,
                on_progress=lambda progress: acknowledged.__setitem__(
                    number, (progress.acknowledged_records, progress.acknowledged_bytes)
                ),
            )

    async def send_all() -> None:
        acknowledged = [(0, 0)] * streams
        sending = asyncio.gather(*(send(number, acknowledged) for number in range(streams)))
        done = False
        while not done:
            done = bool((await asyncio.wait([sending], timeout=SAMPLE_INTERVAL_S / 2))[0])
            pipe.send((sum(records for records, _ in acknowledged), sum(size for _, size in acknowledged)))
        await sending

    asyncio.run(send_all())
