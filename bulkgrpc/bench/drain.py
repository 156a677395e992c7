"""The drain: workers empty a full topic. Kafka to PostgreSQL, without clients and server."""

from __future__ import annotations

import asyncio
import secrets
import signal
import time
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime

from bulkgrpc.bench import observe, readings, service_processes
from bulkgrpc.bench.cpu import cpu_s
from bulkgrpc.bench.environment import Deployment, Environment
from bulkgrpc.bench.model import BenchFailed, Load, Rate
from bulkgrpc.bench.service_processes import ServiceProcess
from bulkgrpc.datasets.codec import BatchCodec
from bulkgrpc.datasets.definition import Dataset
from bulkgrpc.datasets.framing import varint
from bulkgrpc.kafka.producer import RecordsProducer
from bulkgrpc.model import JobCounts, JobKey, JobSpec, Kind, Message
from bulkgrpc.postgres import bench_state
from bulkgrpc.postgres.connection import Connection

STOPPED_S_MAX = 4.0
"""The embedded Kafka removes a consumer from its group after 6 s of silence."""
_QUEUE_BYTES_MAX = 256 << 20
_IN_FLIGHT_MAX = 200
"""Batches that are not yet stored: as many as fit into the queue, whatever their size."""
Planned = tuple[int, Message, bytes]
"""Partition, headers, payload."""


def measure(environment: Environment, dataset: Dataset, load: Load) -> Rate:
    """Measure the drain: from the workers' SIGCONT until all jobs have ended.

    The workers are warm: each partition has completed a first job. Raises BenchFailed.
    """
    tenants = readings.tenants_of(load)
    codec = BatchCodec(dataset)
    run, warm_up = f"drain-{secrets.token_hex(4)}", f"warm-{secrets.token_hex(4)}"
    with environment.connection() as connection:
        # Before the warm-up too: after a key conflict, workers write through staging for a while.
        bench_state.clear(connection, dataset)
        with (
            environment.deployment("drain", load.tenants) as deployment,
            service_processes.workers(deployment, load.workers, environment.directory) as running,
        ):
            observe.wait_group_balanced(deployment, load.workers)
            payloads = readings.batches(codec, 0, load.tenant_rows, load.batch_rows)
            fill(deployment, plan(dataset, tenants, warm_up, payloads[:1], load.batch_rows))
            observe.wait_jobs_ended(connection, warm_up, load.tenants, needed=running)
            planned = plan(dataset, tenants, run, payloads, load.batch_rows)
            bench_state.clear(connection, dataset)
            drain = Drain(environment, deployment, running, connection)
            rate = drain.run(planned, run, load.rows)
            observe.check_counts(connection, dataset, run, load.tenants, JobCounts(load.rows, load.rows))
    return rate


class Drain:
    """Drains one topic with one group of workers, any number of times."""

    def __init__(
        self,
        environment: Environment,
        deployment: Deployment,
        workers: Sequence[ServiceProcess],
        connection: Connection,
    ) -> None:
        self._deployment = deployment
        self._workers = workers
        self._connection = connection
        self._pids = [environment.postgres_pid, *(worker.pid for worker in workers)]

    def run(self, planned: Sequence[Planned], idempotency_key: str, rows: int) -> Rate:
        """Fill the topic with jobs that have this key, and measure how long the workers take until all have ended.

        Meanwhile the workers are stopped by SIGSTOP, so that they start together with nothing read and nothing written.
        Raises BenchFailed.
        """
        stopped_s = time.perf_counter()
        for worker in self._workers:
            worker.send(signal.SIGSTOP)
        fill(self._deployment, planned)
        start_s, start_cpu_s = time.perf_counter(), cpu_s(self._pids)
        for worker in self._workers:
            worker.send(signal.SIGCONT)
        if start_s - stopped_s > STOPPED_S_MAX:
            raise BenchFailed(f"filling the topic took more than {STOPPED_S_MAX:.0f} s: use fewer --rows")
        jobs = len({message.spec.key for _, message, _ in planned})
        observe.wait_jobs_ended(self._connection, idempotency_key, jobs, needed=self._workers)
        return Rate(rows, time.perf_counter() - start_s, cpu_s(self._pids) - start_cpu_s)


def plan(
    dataset: Dataset, tenants: Sequence[str], idempotency_key: str, payloads: Sequence[bytes], batch_rows: int
) -> list[Planned]:
    """Return the messages of one job for each tenant, interleaved, as the server would append them to the topic."""
    specs = [
        JobSpec(JobKey.derive(name, idempotency_key), idempotency_key, dataset.name, dataset.version)
        for name in tenants
    ]
    now = datetime.now(UTC)
    planned = [
        (tenant, Message(Kind.BATCH, specs[tenant], 0, sequence, batch_rows, 0, now), _numbered(sequence, payload))
        for tenant, sequence, payload in readings.interleaved([payloads] * len(tenants))
    ]
    rows = len(payloads) * batch_rows
    seals = [
        (tenant, Message(Kind.SEAL, spec, 0, len(payloads), 0, rows, now), b"") for tenant, spec in enumerate(specs)
    ]
    return planned + seals


def fill(deployment: Deployment, planned: Iterable[Planned]) -> None:
    """Append messages to the topic; return once all are stored. Raises BenchFailed."""
    asyncio.run(_fill(deployment, planned))


async def _fill(deployment: Deployment, planned: Iterable[Planned]) -> None:
    in_flight, failures = asyncio.Semaphore(_IN_FLIGHT_MAX), list[str]()

    def delivered(error: object) -> None:
        in_flight.release()
        if error is not None:
            failures.append(str(error))

    async with RecordsProducer(deployment.settings(), _QUEUE_BYTES_MAX) as producer:
        for partition, message, payload in planned:
            await in_flight.acquire()
            producer.send(partition, message, payload, delivered)
        for _ in range(_IN_FLIGHT_MAX):
            await in_flight.acquire()
    if failures:
        raise BenchFailed(f"Kafka did not store a batch: {failures[0]}")


def _numbered(sequence: int, payload: bytes) -> bytes:
    """Prepend field 1, the sequence: the wire form of a RecordBatch. The default value 0 is not written."""
    return b"\x08" + varint(sequence) + payload if sequence else payload
