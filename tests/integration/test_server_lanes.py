"""How many lanes a server gives a job, and where its batches go. No worker runs: jobs stay as they are left."""

from __future__ import annotations

import asyncio
import uuid
from pathlib import Path

import grpc
import psycopg
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewPartitions
from google.protobuf.descriptor_pb2 import FileDescriptorSet
from redis.asyncio import Redis

from bulkgrpc.datasets.sources import compile_proto
from bulkgrpc.errors import Reason
from bulkgrpc.model import JobKey, Message
from bulkgrpc.settings import ServerSettings
from bulkgrpc.v1 import datasets_pb2
from tests.integration.server_peer import (
    DEADLINE_S,
    Peer,
    Request,
    ServeWith,
    a_key,
    batch,
    eventually,
    header,
    next_answer,
    proxy_to,
    read_topic,
    refusal,
    registration,
    through,
)

pytest_plugins = ["tests.integration.server_parts"]

FLEET = "datasets/fleet_readings"
PROTO = """syntax = "proto3"; import "bulkgrpc/v1/options.proto";
message M { option (bulkgrpc.v1.dataset) = {table: "%s" key: ["id"] %s}; string id = 1; }"""


async def messages(settings: ServerSettings, key: str) -> list[Message]:
    """What is on Kafka of a job."""
    found = await asyncio.to_thread(read_topic, settings.kafka, settings.topic)
    return [message for message, _ in found if message.spec.key == JobKey.derive("default", key)]


async def begin(client: Peer, key: str, *requests: Request) -> None:
    """Open a job, send some batches, wait until they are acknowledged, and break off."""
    call = client.stream()
    await call.write(header(dataset=FLEET, idempotency_key=key, session_id=key))
    for request in requests:
        await next_answer(call)
        await call.write(request)
    while (await next_answer(call)).acknowledged.next_sequence < requests[-1].batch.sequence + 1:
        pass
    call.cancel()


async def register(client: Peer, folder: Path, table: str, options: str) -> int:
    (folder / "m.proto").write_text(PROTO % (table, options))
    descriptors = FileDescriptorSet.FromString(compile_proto(folder / "m.proto"))
    request = datasets_pb2.RegisterDatasetRequest(descriptors=descriptors, message_type="M")
    return int((await client.datasets.RegisterDataset(request, timeout=DEADLINE_S)).dataset.version)


async def test_a_job_goes_on_with_its_lanes_on_a_server_that_sees_more_partitions_and_without_redis(
    serve_with: ServeWith, server_settings: ServerSettings
) -> None:
    key = a_key()
    async with serve_with() as (_, client):
        await client.datasets.RegisterDataset(registration("FleetReading"), timeout=DEADLINE_S)
        await begin(client, key, *map(batch, range(3)))
    grown = AdminClient({"bootstrap.servers": server_settings.kafka})
    await asyncio.to_thread(
        grown.create_partitions([NewPartitions(server_settings.topic, 5)])[server_settings.topic].result
    )
    async with Redis.from_url(server_settings.redis) as redis:
        job_id = JobKey.derive("default", key).job_id
        await redis.delete(f"bulk:job:{job_id}", f"bulk:digests:{job_id}", f"bulk:lease:{job_id}")
    async with serve_with() as (_, client):
        requests = [header(dataset=FLEET, idempotency_key=key, session_id=key), *map(batch, range(5))]
        answers = await client.whole(*requests)
        assert answers[0].opened.next_sequence == 0
    found = await messages(server_settings, key)
    assert len({message.partitions for message in found}) == 1
    assert {(m.sequence, m.lane) for m in found if m.records} == {(s, s % 2) for s in range(5)}


async def test_without_postgresql_a_new_job_has_one_lane_and_keeps_it(
    serve_with: ServeWith, server_settings: ServerSettings
) -> None:
    key, unknown = a_key(), f"tenants/default/jobs/{uuid.uuid4()}"

    async def back() -> bool:
        code, _ = await refusal(client.job(unknown))
        return code is grpc.StatusCode.NOT_FOUND

    proxy = proxy_to(server_settings.postgres)
    async with proxy, serve_with(postgres=lambda: through(server_settings.postgres, proxy)) as (_, client):
        await client.datasets.RegisterDataset(registration("FleetReading"), timeout=DEADLINE_S)
        usual = a_key()
        await client.whole(header(dataset=FLEET, idempotency_key=usual), batch(0))
        await proxy.cut()
        await begin(client, key, *map(batch, range(3)))
        proxy.repair()
        await eventually(back)
        again = header(dataset=FLEET, idempotency_key=key, session_id=key)
        answers = await client.whole(again, batch(3), batch(4))
        assert answers[0].opened.next_sequence == 3
    assert {len(message.partitions) for message in await messages(server_settings, usual)} == {2}
    found = await messages(server_settings, key)
    assert {(message.lane, message.partitions) for message in found} == {(0, ())}
    assert [message.sequence for message in found] == [0, 1, 2, 3, 4, 5]
    with psycopg.connect(server_settings.postgres) as connection:
        job_id = JobKey.derive("default", key).job_id
        row = connection.execute("SELECT cardinality(partitions) FROM bulk.jobs WHERE job_id = %s", [job_id]).fetchone()
    assert row == (1,)


async def test_a_version_that_may_not_go_with_several_lanes_never_meets_them(
    serve_with: ServeWith, server_settings: ServerSettings, tmp_path: Path
) -> None:
    table, several = f"d_{uuid.uuid4().hex[:12]}", a_key()

    async def lanes(client: Peer, key: str, version: int = 0) -> int:
        opening = header(dataset=f"datasets/{table}", idempotency_key=key, dataset_version=version)
        await client.whole(opening, batch(0))
        return {message.lanes for message in await messages(server_settings, key)}.pop()

    async with serve_with() as (_, client):
        assert await register(client, tmp_path, table, "lanes: 2") == 1
        call = client.stream()
        await call.write(header(dataset=f"datasets/{table}", idempotency_key=several, session_id=several))
        await next_answer(call)
        call.cancel()
        assert await register(client, tmp_path, table, "conflict_policy: CONFLICT_POLICY_UPDATE") == 2
        other = header(dataset=f"datasets/{table}", idempotency_key=several, session_id=several, dataset_version=2)
        code, refused = await refusal(client.whole(other, batch(0)))
        assert (code, refused.reason) == (grpc.StatusCode.ALREADY_EXISTS, Reason.IDEMPOTENCY_CONFLICT)
        assert "has several lanes" in refused.message
        assert await register(client, tmp_path, table, "lanes: 2 conflict_policy: CONFLICT_POLICY_REJECT") == 3
        assert [await lanes(client, a_key(), version) for version in (0, 1, 2, 3)] == [2, 1, 1, 2]
        assert await lanes(client, several) == 2
