"""An operator changes the records topic while the service runs: its limit of a message, and its partitions."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path
from typing import Any

import grpc
import psycopg
from confluent_kafka import admin as kafka_admin
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import RESOURCE_TOPIC, NewPartitions

from bulkgrpc.client import AsyncBulkClient, AsyncJobHandle, Batch, JobState
from bulkgrpc.datasets.sources import compile_proto, proto_root
from bulkgrpc.errors import Reason
from bulkgrpc.kafka.topics import ensure_topic
from bulkgrpc.model import JobKey
from bulkgrpc.settings import ServerSettings
from bulkgrpc.stack import Addresses
from bulkgrpc.v1 import ingest_pb2
from tests.integration.server_peer import Peer, Request, ServeWith, a_key, batch, header, next_answer, refusal
from tests.support.examples import reading_batch
from tests.support.processes import service
from tests.support.waiting import eventually

pytest_plugins = ["tests.integration.server_parts"]

_admin: Any = vars(kafka_admin)  # the stubs do not export what it has


def large(sequence: int) -> Request:
    """A batch that no compression makes small."""
    record = random.Random(sequence).randbytes(300_000)
    return Request(batch=ingest_pb2.RecordBatch(sequence=sequence, records=[record]))


def limit(settings: ServerSettings, bytes_max: int) -> None:
    """Set max.message.bytes of the topic."""
    entry = _admin["ConfigEntry"](
        "max.message.bytes", str(bytes_max), incremental_operation=_admin["AlterConfigOpType"].SET
    )
    resource = _admin["ConfigResource"](RESOURCE_TOPIC, settings.topic, incremental_configs=[entry])
    admin = AdminClient({"bootstrap.servers": settings.kafka})
    for answer in admin.incremental_alter_configs([resource]).values():
        answer.result(10)


async def test_a_batch_above_a_limit_that_was_lowered_is_refused_at_once_and_others_are_stored(
    serve_with: ServeWith, server_settings: ServerSettings
) -> None:
    async with serve_with() as (_, one):
        await one.submit(header(), large(0))
        await asyncio.to_thread(limit, server_settings, 100_000)
        key = a_key()
        call = one.stream()
        await call.write(header(idempotency_key=key))
        await next_answer(call)
        await call.write(batch(0))
        assert (await next_answer(call)).acknowledged.next_sequence == 1
        await call.write(large(1))
        async with asyncio.timeout(10):
            code, refused = await refusal(next_answer(call))
        assert (code, refused.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, Reason.BATCH_TOO_LARGE)
        assert "max.message.bytes of the topic is 100000: send batches of at most 34848 bytes" in refused.message
        assert not refused.retry_after_s
        await continues(one, key)
        await asyncio.to_thread(limit, server_settings, 4_000_000)
        await one.submit(header(), large(0))


async def continues(one: Peer, key: str) -> None:
    """The job, and others, take smaller batches: the producer has not failed."""
    assert (await one.submit(header(), batch(0))).job.counts.accepted == 2
    answers = await one.whole(header(idempotency_key=key), *map(batch, range(3)))
    assert answers[-1].sealed.job.counts.accepted == 6


async def test_new_partitions_are_used_and_a_job_keeps_those_that_it_has(
    addresses: Addresses, server_settings: ServerSettings, tmp_path: Path
) -> None:
    topic = server_settings.topic
    ensure_topic(server_settings)
    environment = {
        **addresses.environment(),
        "BULKGRPC_POSTGRES": server_settings.postgres,
        "BULKGRPC_TOPIC": topic,
        "BULKGRPC_GROUP": topic,
    }
    with service(environment, tmp_path, workers=1) as running:
        async with AsyncBulkClient(running.address) as client:
            sensors = compile_proto(proto_root() / "examples" / "v1" / "sensors.proto")
            await client.register_dataset(sensors, "examples.v1.FleetReading")
            first = await client.submit("fleet_readings", batches(0))
            assert len(placed(server_settings, first)) == 2
            admin = AdminClient({"bootstrap.servers": server_settings.kafka})
            admin.create_partitions([NewPartitions(topic, 8)])[topic].result(10)
            await eventually(lambda: "partitions_added" in running.server.log.read_text() or None)
            second = await client.submit("fleet_readings", batches(10_000))
            assert len(placed(server_settings, second)) == 4
            for job in (first, second):
                ended = await job.wait()
                assert (ended.state, ended.counts.written) == (JobState.SUCCEEDED, 800)
            again = await client.submit(
                "fleet_readings", batches(0), idempotency_key=(await first.get()).idempotency_key
            )
            assert len(placed(server_settings, again)) == 2
            assert running.workers[0].ended is None


def batches(start: int) -> list[Batch]:
    return [Batch(reading_batch(start + number * 100, 100), 100) for number in range(8)]


def placed(settings: ServerSettings, job: AsyncJobHandle) -> list[int]:
    """The partitions of a job."""
    key = JobKey.parse(job.name)
    assert key is not None
    with psycopg.connect(settings.postgres) as connection:
        row = connection.execute("SELECT partitions FROM bulk.jobs WHERE job_id = %s", [key.job_id]).fetchone()
    assert row is not None
    return list(row[0])
