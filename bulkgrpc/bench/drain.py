"""The drain: workers empty a topic that is full. Kafka to PostgreSQL, without clients and server."""

from __future__ import annotations

import asyncio
import secrets
import signal
import time
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime

from confluent_kafka import KafkaError

from bulkgrpc.bench import programs, readings, watch
from bulkgrpc.bench.ground import Ground, Place
from bulkgrpc.bench.model import BenchFailed, Load, Rate
from bulkgrpc.client.packing import varint
from bulkgrpc.datasets.codec import BatchCodec
from bulkgrpc.datasets.definition import Dataset
from bulkgrpc.kafka.producer import RecordsProducer
from bulkgrpc.model import JobCounts, JobKey, JobSpec, Kind, Message

STOPPED_S_MAX = 4.0
"""The embedded Kafka takes a consumer for dead after 6 s."""
_QUEUE_BYTES_MAX = 256 << 20
_IN_FLIGHT_MAX = 200
"""Batches on their way to Kafka: all of them fit into the queue, whatever a server may take for a batch."""
Planned = tuple[int, Message, bytes]


def measure(ground: Ground, dataset: Dataset, load: Load) -> Rate:
    """Measure it: from the workers' SIGCONT until all jobs have ended.

    The workers are warm: each partition's first job has gone through. Raises BenchFailed.
    """
    tenants = readings.tenants_of(load)
    codec = BatchCodec(dataset)
    # Before the warm-up too: a key that is there would send the workers to staging for a while.
    ground.clear(dataset)
    run, warm = f"drain-{secrets.token_hex(4)}", f"warm-{secrets.token_hex(4)}"
    with (
        ground.place("drain", load.tenants) as place,
        programs.workers(place, load.workers, ground.directory) as running,
        ground.connection() as connection,
    ):
        watch.group_settles(place, load.workers)
        payloads = readings.batches(codec, 0, load.tenant_rows, load.batch_rows)
        fill(place, plan(dataset, tenants, warm, payloads[:1], load.batch_rows))
        watch.jobs_end(connection, warm, load.tenants, needed=running)
        filling = plan(dataset, tenants, run, payloads, load.batch_rows)
        ground.clear(dataset)
        seconds = emptied_s(place, running, connection, filling, run)
        watch.check_counts(connection, dataset, run, load.tenants, JobCounts(load.rows, load.rows))
    return Rate(load.rows, seconds)


def emptied_s(
    place: Place,
    workers: Sequence[programs.Program],
    connection: watch.Connection,
    planned: Sequence[Planned],
    run: str,
) -> float:
    """Fill the topic with jobs, key `run`, and return the seconds that the workers take until all have ended.

    They are stopped by SIGSTOP meanwhile, so that they begin together, at nothing read and nothing written.
    Raises BenchFailed.
    """
    stopped_s = time.perf_counter()
    for worker in workers:
        worker.send(signal.SIGSTOP)
    fill(place, planned)
    begun_s = time.perf_counter()
    for worker in workers:
        worker.send(signal.SIGCONT)
    if begun_s - stopped_s > STOPPED_S_MAX:
        raise BenchFailed(f"filling the topic took over {STOPPED_S_MAX:.0f} s: give fewer --rows")
    jobs = len({message.spec.key for _, message, _ in planned})
    watch.jobs_end(connection, run, jobs, needed=workers)
    return time.perf_counter() - begun_s


def plan(
    dataset: Dataset, tenants: Sequence[str], run: str, payloads: Sequence[bytes], batch_rows: int
) -> list[Planned]:
    """Return the messages of one job a tenant, tenant by turns: what the server would have put on the topic."""
    specs = [JobSpec(JobKey.derive(name, run), run, dataset.name, dataset.version) for name in tenants]
    now = datetime.now(UTC)
    planned = [
        (tenant, Message(Kind.BATCH, specs[tenant], 0, sequence, batch_rows, 0, now), _numbered(sequence, payload))
        for tenant, sequence, payload in readings.turns([payloads] * len(tenants))
    ]
    rows = len(payloads) * batch_rows
    seals = [
        (tenant, Message(Kind.SEAL, spec, 0, len(payloads), 0, rows, now), b"") for tenant, spec in enumerate(specs)
    ]
    return planned + seals


def fill(place: Place, planned: Iterable[Planned]) -> None:
    """Put messages on the topic; return once all are stored. Raises BenchFailed."""
    asyncio.run(_fill(place, planned))


async def _fill(place: Place, planned: Iterable[Planned]) -> None:
    in_flight, failures = asyncio.Semaphore(_IN_FLIGHT_MAX), []

    def delivered(error: KafkaError | None) -> None:
        in_flight.release()
        if error is not None:
            failures.append(error.str())

    async with RecordsProducer(place.settings(), _QUEUE_BYTES_MAX) as producer:
        for partition, message, payload in planned:
            await in_flight.acquire()
            producer.send(partition, message, payload, delivered)
        for _ in range(_IN_FLIGHT_MAX):
            await in_flight.acquire()
    if failures:
        raise BenchFailed(f"Kafka did not store a batch: {failures[0]}")


def _numbered(sequence: int, payload: bytes) -> bytes:
    """Put field 1, the sequence, in front: the wire form of a RecordBatch."""
    return b"\x08" + varint(sequence) + payload if sequence else payload
