"""Memory: many streams at once send gigabytes through one server; what server and workers hold stays bounded."""

from __future__ import annotations

import asyncio
import secrets
import threading
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil
from confluent_kafka import TopicPartition
from confluent_kafka.admin import AdminClient

from bulkgrpc.bench import programs, trades, watch
from bulkgrpc.bench.child import GO, READY, Child, Pipe, children, receive
from bulkgrpc.bench.ground import Connection, Ground, Place
from bulkgrpc.bench.model import (
    SERVER_RSS_MB_MAX,
    WORKER_RSS_MB_MAX,
    BenchFailed,
    MemoryLoad,
    MemoryResults,
    Resident,
    Sample,
)
from bulkgrpc.bench.programs import Program
from bulkgrpc.client import AsyncBulkClient, Batch, ClientConfig
from bulkgrpc.datasets.codec import BatchCodec
from bulkgrpc.datasets.definition import Dataset
from bulkgrpc.model import JobCounts

SAMPLE_EVERY_S = 0.5
WORKERS = 2
PARTITIONS = 4
_WITHIN_S = 3600.0
_CLIENT_BUFFER_BYTES = 1 << 20
_MB = 1e6
_DONE = "SELECT coalesce(sum(written), 0), count(*) FILTER (WHERE state >= 3) FROM bulk.jobs WHERE idempotency_key = %s"
_STANDS = "SELECT partition, next_offset FROM bulk.offsets WHERE topic = %s"


@dataclass(slots=True)
class Watched:
    """A process, its samples, and the most it may hold (MB)."""

    program: Program
    limit_mb: float
    samples: list[Sample] = field(default_factory=list)

    def sample(self, share: float) -> None:
        """Note what it holds when `share` of its load is done. Raises BenchFailed if it ended."""
        self.program.check()
        self.samples.append(Sample(share, psutil.Process(self.program.pid).memory_info().rss / _MB))

    def resident(self) -> Resident:
        """Return what was seen of it."""
        sampled_mb = max(sample.rss_mb for sample in self.samples)
        most_mb = max(sampled_mb, high_water_mb(self.program.pid))
        return Resident.of(self.program.name, self.samples, most_mb, self.limit_mb)


def measure(ground: Ground, dataset: Dataset, load: MemoryLoad) -> MemoryResults:
    """Measure it. Every stream is a tenant and a job of its own; clients send as fast as the server takes it.

    Nothing paces the clients by the workers: Kafka holds what these have still to write. What they have written is
    deleted from the topic (never more: up to the ledger's offset), so the disk holds each byte only as long as needed.
    Raises BenchFailed.
    """
    ground.clear(dataset)
    rows = max(1, load.batch_bytes // trades.ROW_BYTES)
    count = max(1, round(load.total_bytes / load.streams / (rows * trades.ROW_BYTES)))
    total, run = rows * count * load.streams, f"memory-{secrets.token_hex(4)}"
    with (
        ground.place("memory", PARTITIONS) as place,
        programs.workers(place, WORKERS, ground.directory) as running,
        programs.server(place, ground.directory) as (server, target),
        children(send_streams, [(target, load.streams, rows, count, run)]) as (client,),
        ground.connection() as connection,
    ):
        watch.group_settles(place, WORKERS)
        watched = [Watched(server, SERVER_RSS_MB_MAX), *(Watched(worker, WORKER_RSS_MB_MAX) for worker in running)]
        times = _watch(connection, place, client, watched, (run, load.streams, total))
        watch.check_counts(connection, dataset, run, load.streams, JobCounts(total, total))
        processes = tuple(item.resident() for item in watched)
    return MemoryResults(load, times.sent_bytes, total, times.accepted_s, times.written_s, processes)


@dataclass(slots=True)
class _Times:
    sent_bytes: int = 0
    accepted_s: float = 0.0
    written_s: float = 0.0


def _watch(
    connection: Connection, place: Place, client: Child, watched: list[Watched], expected: tuple[str, int, int]
) -> _Times:
    """Let the clients go and sample until all jobs have ended. expected: idempotency key, jobs, rows."""
    run, jobs, rows = expected
    admin = AdminClient({"bootstrap.servers": place.kafka, "log_level": 0})
    times, pause, accepted_rows = _Times(), threading.Event(), 0
    begun_s = time.perf_counter()
    client.send(GO)
    while True:
        client.check()
        while accepted_rows < rows and client.pipe.poll():
            accepted_rows, times.sent_bytes = client.receive(0)
            times.accepted_s = time.perf_counter() - begun_s
        row = connection.execute(_DONE, (run,)).fetchone()
        written, ended = (int(row[0]), int(row[1])) if row else (0, 0)
        server, *workers = watched
        if times.written_s == 0.0 and accepted_rows < rows:
            server.sample(accepted_rows / rows)
        for worker in workers:
            worker.sample(written / rows)
        if ended == jobs and accepted_rows == rows:
            times.written_s = time.perf_counter() - begun_s
            return times
        if time.perf_counter() - begun_s > _WITHIN_S:
            raise BenchFailed(f"{ended} of {jobs} jobs ended within {_WITHIN_S:.0f} s")
        _delete_written(connection, admin, place)
        pause.wait(SAMPLE_EVERY_S)


def _delete_written(connection: Connection, admin: AdminClient, place: Place) -> None:
    stands = connection.execute(_STANDS, (place.topic,)).fetchall()
    before = [TopicPartition(place.topic, partition, offset) for partition, offset in stands if offset]
    if before:
        for deleted in admin.delete_records(before).values():
            deleted.result(10)


def high_water_mb(pid: int) -> float:
    """Return the most that a process ever held in memory, by the kernel's own account; 0 where there is none."""
    status = Path(f"/proc/{pid}/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return next((int(line.split()[1]) * 1024 / _MB for line in lines if line.startswith("VmHWM:")), 0.0)


def send_streams(pipe: Pipe, target: str, streams: int, rows: int, count: int, key: str) -> None:
    """Submit a job on each of `streams` connections at once; tell now and then how many records, bytes are stored."""
    codec = BatchCodec(trades.dataset())
    columns = trades.columns_of(codec, rows)
    pipe.send(READY)
    receive(pipe, _WITHIN_S)

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
            done = bool((await asyncio.wait([sending], timeout=SAMPLE_EVERY_S / 2))[0])
            pipe.send((sum(records for records, _ in acknowledged), sum(size for _, size in acknowledged)))
        await sending

    asyncio.run(send_all())
