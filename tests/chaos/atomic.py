"""What a large atomic job costs others: `python -m tests.chaos.atomic --rows 3000000`.

One server and one worker on a real stack. Once the job is sealed, small jobs of others are submitted again and again
until it has ended: in other partitions, in its own partition, of its own tenant and dataset, and atomic ones.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
import tempfile
import uuid
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

import psutil
import psycopg
from psycopg import sql
from psycopg.conninfo import make_conninfo

from bulkgrpc.client import AsyncBulkClient, Batch, ClientConfig, Job, JobOptions, JobState
from bulkgrpc.kafka.partition import partition_of
from bulkgrpc.postgres import schema
from bulkgrpc.stack import Addresses, Stack
from bulkgrpc.stack.ports import choose_free
from tests.support import examples
from tests.support.processes import Process

PARTITIONS = 4
BATCH_ROWS = 20_000
SMALL_ROWS = 10
PAUSE_S = 0.2
ENDS_WITHIN_S = 3600.0
BIG = "big"
MB = 1 << 20


@dataclass(frozen=True, slots=True)
class Running:
    """A server and a worker with a database and a topic of their own."""

    server: Process
    worker: Process
    address: str
    postgres: str


@contextmanager
def running(addresses: Addresses, logs: Path, fault: str = "") -> Iterator[Running]:
    """Run them. fault: armed in the worker until it is started again by `revive`."""
    name = f"atomic_{uuid.uuid4().hex[:8]}"
    with psycopg.connect(addresses.postgres, autocommit=True) as admin:
        admin.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
    postgres = make_conninfo(addresses.postgres, dbname=name)
    schema.migrate(postgres)
    own = {"BULKGRPC_POSTGRES": postgres, "BULKGRPC_TOPIC": name, "BULKGRPC_GROUP": name}
    environment = {**addresses.environment(), **own, "BULKGRPC_PARTITIONS": str(PARTITIONS)}
    address = f"127.0.0.1:{choose_free()}"
    with ExitStack() as stop:
        server = Process("bulkgrpc.server.process", ("--listen", address), environment, logs / "server.log")
        stop.callback(server.stop)
        server.start()
        # Through the mutants: a table without a key may be written, so that only the service prevents duplicates.
        worker = Process(
            "tests.chaos.mutants",
            ("none", "workers.process"),
            {**environment, "BULKGRPC_FAULT": fault},
            logs / "worker.log",
        )
        stop.callback(worker.stop)
        worker.start()
        yield Running(server, worker, address, postgres)
    with psycopg.connect(addresses.postgres, autocommit=True) as admin:
        admin.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


def revive(worker: Process) -> None:
    """Start a worker that has ended, without a fault."""
    worker.environment = {**worker.environment, "BULKGRPC_FAULT": ""}
    worker.start()


async def batches(rows: int) -> AsyncIterator[Batch]:
    """Yield the batches of the large job."""
    for start in range(0, rows, BATCH_ROWS):
        size = min(BATCH_ROWS, rows - start)
        yield Batch(await asyncio.to_thread(examples.reading_batch, start, size), size)


@dataclass(slots=True)
class Figures:
    """What was measured.

    waits_s: from the submission of a small job to its end, by kind of job. apply_s: from the time at which all of the
    large job is staged and its seal applied, to its end. rss_*_mb: of the worker, at that time, and the most until the
    end. progress: the numbers of applied rows that were reported, without 0 and all.
    """

    rows: int
    apply_s: float = 0.0
    waits_s: dict[str, list[float]] = field(default_factory=dict)
    rss_sealed_mb: float = 0.0
    rss_most_mb: float = 0.0
    progress: set[int] = field(default_factory=set)

    def slowest_s(self, kind: str) -> float:
        """Return the longest wait of a kind of job."""
        return max(self.waits_s[kind])

    def summary(self) -> Mapping[str, object]:
        """Return the figures as one line."""
        waits = {
            kind: {
                "jobs": len(found),
                "p50_s": round(sorted(found)[len(found) // 2], 3),
                "slowest_s": round(max(found), 3),
            }
            for kind, found in self.waits_s.items()
        }
        numbers = {name: value for name, value in asdict(self).items() if name not in ("waits_s", "progress")}
        return {**numbers, "progress_reports": len(self.progress), "waits": waits}


def tenant_on(partition: int, prefix: str) -> str:
    """Return a tenant of this partition."""
    return next(who for n in range(10_000) if partition_of(who := f"{prefix}-{n}", PARTITIONS) == partition)


async def measure(service: Running, rows: int) -> Figures:
    """Submit a large atomic job, and small ones of others until it has ended."""
    figures, now_s = Figures(rows), asyncio.get_running_loop().time
    big = tenant_on(0, BIG)
    worker = psutil.Process(service.worker.pid)
    dataset = examples.readings()
    async with AsyncBulkClient(service.address, tenant=big, config=ClientConfig(retry_deadline_s=120)) as client:
        await client.register_dataset(dataset.descriptors, dataset.message_type)
        handle = await client.submit(dataset.name, batches(rows), options=JobOptions(atomic=True))
        await until_staged(client, handle.name)
        sealed_s = now_s()
        figures.rss_sealed_mb = worker.memory_info().rss / MB
        over = asyncio.Event()
        async with asyncio.TaskGroup() as tasks:
            for kind, tenant, atomic in (
                ("another partition", tenant_on(1, "far"), False),
                ("the same partition", tenant_on(0, "near"), False),
                ("the same tenant and dataset", big, False),
                ("another tenant, atomic", tenant_on(2, "atomic"), True),
            ):
                figures.waits_s[kind] = []
                tasks.create_task(_small(service, tenant, atomic=atomic, found=figures.waits_s[kind], over=over))
            tasks.create_task(_watch_memory(worker, figures, over))

            def note(job: Job) -> None:
                if job.apply_progress is not None and 0 < job.apply_progress.applied_rows < rows:
                    figures.progress.add(job.apply_progress.applied_rows)

            try:
                job = await handle.wait(deadline_s=ENDS_WITHIN_S, on_progress=note)
            finally:
                over.set()
    assert job.state is JobState.SUCCEEDED, job
    assert job.counts.written == rows, job
    figures.apply_s = round(now_s() - sealed_s, 2)
    return figures


async def until_staged(client: AsyncBulkClient, name: str) -> None:
    """Wait until the worker has staged the rows of an atomic job, and its seal is applied."""
    async with asyncio.timeout(ENDS_WITHIN_S):
        while True:
            job = await client.get_job(name)
            if job.ended or job.apply_progress is not None:
                return
            await asyncio.sleep(0.02)


async def _small(service: Running, tenant: str, *, atomic: bool, found: list[float], over: asyncio.Event) -> None:
    """Submit a small job again and again; note how long each takes."""
    now_s, number = asyncio.get_running_loop().time, 0
    async with AsyncBulkClient(service.address, tenant=tenant) as client:
        while not over.is_set():
            # Other keys than those of the large job: what it writes is locked.
            start = 1_000_000_000 + number * SMALL_ROWS
            number += 1
            begun_s = now_s()
            handle = await client.submit(
                "sensor_readings", [examples.reading_batch(start, SMALL_ROWS)], options=JobOptions(atomic=atomic)
            )
            job = await handle.wait(deadline_s=ENDS_WITHIN_S)
            assert job.state is JobState.SUCCEEDED, job
            found.append(now_s() - begun_s)
            await asyncio.sleep(PAUSE_S)


async def _watch_memory(worker: psutil.Process, figures: Figures, over: asyncio.Event) -> None:
    while not over.is_set():
        figures.rss_most_mb = max(figures.rss_most_mb, worker.memory_info().rss / MB)
        await asyncio.sleep(PAUSE_S)


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=3_000_000)
    rows = parser.parse_args().rows
    directory = Path(tempfile.mkdtemp(prefix="bulkgrpc-atomic-", dir="/var/tmp"))
    directory.chmod(0o755)
    stack = Stack(directory / "stack")
    try:
        stack.up()
        with running(stack.addresses, directory) as service:
            print(json.dumps(asyncio.run(measure(service, rows)).summary(), indent=2))
    finally:
        stack.destroy()
        shutil.rmtree(directory, ignore_errors=True)


if __name__ == "__main__":
    main()
