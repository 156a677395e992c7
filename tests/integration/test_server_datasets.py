"""What servers know of datasets that change on another server. No worker runs: jobs stay as they are left."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path

import grpc
import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorSet
from google.protobuf.duration_pb2 import Duration

from bulkgrpc.datasets.sources import compile_proto
from bulkgrpc.errors import Reason
from bulkgrpc.settings import ServerSettings
from bulkgrpc.v1 import datasets_pb2, jobs_pb2
from tests.integration.server_peer import (
    DEADLINE_S,
    Peer,
    ServeWith,
    a_key,
    header,
    next_answer,
    read_topic,
    refusal,
)
from tests.integration.server_peer import batch as batch_of
from tests.support.processes import Process
from tests.support.waiting import eventually

pytest_plugins = ["tests.integration.server_parts"]

PROTO = """syntax = "proto3"; import "bulkgrpc/v1/options.proto";
message M { option (bulkgrpc.v1.dataset) = {table: "%s" key: ["id"]}; string id = 1; %s }"""


@pytest.fixture
def table() -> str:
    """A dataset that no other test knows."""
    return f"d_{uuid.uuid4().hex[:12]}"


async def register(peer: Peer, folder: Path, table: str, fields: str = "") -> int:
    file = folder / "m.proto"
    file.write_text(PROTO % (table, fields))
    descriptors = FileDescriptorSet.FromString(compile_proto(file))
    request = datasets_pb2.RegisterDatasetRequest(descriptors=descriptors, message_type="M")
    answer = await peer.datasets.RegisterDataset(request, timeout=DEADLINE_S)
    return int(answer.dataset.version)


async def refused_version(peer: Peer, table: str, version: int) -> str:
    code, refused = await refusal(submit(peer, table, dataset_version=version))
    assert (code, refused.reason) == (grpc.StatusCode.NOT_FOUND, Reason.DATASET_VERSION_NOT_FOUND)
    assert refused.field == "header.dataset_version"
    return refused.message


async def submit(peer: Peer, table: str, **fields: object) -> jobs_pb2.Job:
    fields.setdefault("idempotency_key", a_key())
    return (await peer.submit(header(dataset=f"datasets/{table}", **fields), batch_of(0))).job


async def delete(peer: Peer, table: str, *jobs: jobs_pb2.Job) -> None:
    for job in jobs:
        await peer.jobs.CancelJob(jobs_pb2.CancelJobRequest(name=job.name), timeout=DEADLINE_S)
    request = datasets_pb2.DeleteDatasetRequest(name=f"datasets/{table}", drop_table=True)
    await peer.datasets.DeleteDataset(request, timeout=DEADLINE_S)


async def test_no_server_opens_a_job_of_a_dataset_that_another_one_deleted(
    serve_with: ServeWith, tmp_path: Path, table: str
) -> None:
    async with serve_with() as (_, one), serve_with() as (_, two):
        assert await register(one, tmp_path, table) == 1
        job = await submit(two, table)
        code, refused = await refusal(delete(one, table))
        assert (code, refused.reason) == (grpc.StatusCode.FAILED_PRECONDITION, Reason.DATASET_HAS_JOBS)
        assert job.name in refused.message
        await delete(one, table, job)
        code, refused = await refusal(submit(two, table))
        assert (code, refused.reason) == (grpc.StatusCode.NOT_FOUND, Reason.DATASET_NOT_FOUND)


async def test_a_server_that_remembers_a_deleted_version_opens_jobs_of_the_one_that_came_after(
    serve_with: ServeWith, tmp_path: Path, table: str
) -> None:
    async with serve_with() as (_, one), serve_with() as (_, two):
        assert await register(one, tmp_path, table) == 1
        await delete(one, table, await submit(two, table))
        assert await register(one, tmp_path, table, "bool flag = 2;") == 2
        assert (await submit(two, table)).dataset_version == 2


async def test_a_version_that_another_server_registered_is_known_as_soon_as_a_stream_names_it(
    serve_with: ServeWith, tmp_path: Path, table: str
) -> None:
    async with serve_with() as (_, one), serve_with() as (_, two):
        await register(one, tmp_path, table)
        first = await submit(two, table)
        assert (await register(one, tmp_path, table, "bool flag = 2;"), first.dataset_version) == (2, 1)
        assert (await submit(two, table, dataset_version=2)).dataset_version == 2
        assert (await submit(two, table, dataset_version=1)).dataset_version == 1
        assert "has versions 1 to 2 and no version 3" in await refused_version(two, table, 3)
        jobs = [job async for job in not_ended(one, table)]
        await delete(one, table, *jobs)
        await register(one, tmp_path, table)
        assert "has version 3 and no version 2" in await refused_version(two, table, 2)


async def not_ended(peer: Peer, table: str) -> AsyncIterator[jobs_pb2.Job]:
    answer = await peer.jobs.ListJobs(jobs_pb2.ListJobsRequest(page_size=1000), timeout=DEADLINE_S)
    for job in answer.jobs:
        if job.dataset == f"datasets/{table}":
            yield job


async def break_off(peer: Peer, table: str, key: str, **fields: object) -> None:
    """Bring batch 0 of a job and break off."""
    call = peer.stream()
    await call.write(header(dataset=f"datasets/{table}", idempotency_key=key, session_id=key, **fields))
    assert (await next_answer(call)).HasField("opened")
    await call.write(batch_of(0))
    assert (await next_answer(call)).acknowledged.next_sequence == 1
    call.cancel()


async def test_every_stream_of_a_job_says_which_version_its_batches_are_of(
    client: Peer, server_settings: ServerSettings, tmp_path: Path, table: str
) -> None:
    await register(client, tmp_path, table)
    key = a_key()
    await break_off(client, table, key)
    await register(client, tmp_path, table, "bool flag = 2;")
    again = {"dataset": f"datasets/{table}", "idempotency_key": key, "session_id": key}
    answers = await client.whole(header(dataset_version=2, **again), batch_of(1))
    assert answers[-1].sealed.job.dataset_version == 1
    found = await asyncio.to_thread(read_topic, server_settings.kafka, server_settings.topic)
    assert [(message.sequence, message.spec.dataset_version) for message, _ in found] == [(0, 1), (1, 2), (2, 2)]
    [replayed] = [
        answer for answer in await client.whole(header(dataset_version=1, **again)) if answer.HasField("sealed")
    ]
    assert replayed.sealed.replayed


async def test_a_stream_that_names_no_version_goes_on_with_that_of_its_job(
    client: Peer, server_settings: ServerSettings, tmp_path: Path, table: str
) -> None:
    await register(client, tmp_path, table)
    key = a_key()
    await break_off(client, table, key)
    await register(client, tmp_path, table, "bool flag = 2;")
    await client.whole(header(dataset=f"datasets/{table}", idempotency_key=key, session_id=key), batch_of(1))
    found = await asyncio.to_thread(read_topic, server_settings.kafka, server_settings.topic)
    assert {message.spec.dataset_version for message, _ in found} == {1}


async def test_an_atomic_job_goes_on_with_its_version_alone(client: Peer, tmp_path: Path, table: str) -> None:
    await register(client, tmp_path, table)
    key, options = a_key(), jobs_pb2.JobOptions(atomic=True)
    await break_off(client, table, key, options=options)
    await register(client, tmp_path, table, "bool flag = 2;")
    again = {"idempotency_key": key, "session_id": key, "options": options}
    code, refused = await refusal(submit(client, table, dataset_version=2, **again))
    assert (code, refused.reason) == (grpc.StatusCode.ALREADY_EXISTS, Reason.IDEMPOTENCY_CONFLICT)
    assert refused.field == "header.dataset_version"
    assert (await submit(client, table, dataset_version=1, **again)).state == jobs_pb2.JOB_STATE_SEALED


async def test_a_datasets_time_to_live_is_that_of_jobs_that_say_none(
    client: Peer, server_settings: ServerSettings, tmp_path: Path, table: str
) -> None:
    file = tmp_path / "m.proto"
    file.write_text((PROTO % (table, "")).replace("key: [", "time_to_live: {seconds: 1} key: ["))
    request = datasets_pb2.RegisterDatasetRequest(
        descriptors=FileDescriptorSet.FromString(compile_proto(file)), message_type="M"
    )
    await client.datasets.RegisterDataset(request, timeout=DEADLINE_S)
    job = await submit(client, table)
    own = await submit(client, table, options=jobs_pb2.JobOptions(time_to_live=Duration(seconds=600)))
    found = await asyncio.to_thread(read_topic, server_settings.kafka, server_settings.topic)
    expiry = {m.spec.key.name: m.expires_at for m, payload in found if payload and m.expires_at is not None}
    assert (expiry[own.name] - expiry[job.name]).total_seconds() == pytest.approx(599, abs=30)
    await eventually(lambda: datetime.now(UTC) > expiry[job.name])
    environment = {f"BULKGRPC_{n.upper()}": str(getattr(server_settings, n)) for n in ("kafka", "postgres", "topic")}
    worker = Process("workers.process", (), {**environment, "BULKGRPC_GROUP": table}, tmp_path / "worker.log")
    worker.start()
    try:
        async with asyncio.timeout(DEADLINE_S):
            ended = {name: await watched(client, name) for name in (job.name, own.name)}
    finally:
        worker.stop()
    assert [(ended[name].counts.written, ended[name].counts.expired) for name in ended] == [(0, 2), (1, 0)]


async def watched(peer: Peer, name: str) -> jobs_pb2.Job:
    last = jobs_pb2.Job()
    async for answer in peer.jobs.WatchJob(jobs_pb2.WatchJobRequest(name=name), timeout=DEADLINE_S):
        last = answer.job
    return last


async def test_a_message_type_that_takes_too_long_to_compile_delays_nobody(client: Peer, tmp_path: Path) -> None:
    file = tmp_path / "slow.proto"
    pattern = r"\\p{L}" * 80_000
    file.write_text(
        'syntax = "proto3"; import "bulkgrpc/v1/options.proto"; import "buf/validate/validate.proto"; message Slow {'
        ' option (bulkgrpc.v1.dataset) = {table: "slow" key: ["id"]};'
        f' string id = 1 [(buf.validate.field).string.pattern = "{pattern}"]; }}'
    )
    descriptors = FileDescriptorSet.FromString(compile_proto(file))
    request = datasets_pb2.RegisterDatasetRequest(descriptors=descriptors, message_type="Slow")
    registering = asyncio.ensure_future(refusal(client.datasets.RegisterDataset(request, timeout=DEADLINE_S)))
    slowest_s = 0.0
    while not registering.done():
        begun_s = time.monotonic()
        await client.datasets.ListDatasets(datasets_pb2.ListDatasetsRequest(), timeout=DEADLINE_S)
        slowest_s = max(slowest_s, time.monotonic() - begun_s)
    code, refused = await registering
    assert (code, refused.reason) == (grpc.StatusCode.INVALID_ARGUMENT, Reason.INVALID_DATASET)
    assert "takes more than 5 s" in refused.message
    assert slowest_s < 2


async def test_descriptors_that_are_too_large_name_the_limit(client: Peer, tmp_path: Path, table: str) -> None:
    file = tmp_path / "m.proto"
    file.write_text(PROTO % (table, ""))
    descriptors = FileDescriptorSet.FromString(compile_proto(file))
    descriptors.file[-1].source_code_info.location.add(leading_comments="x" * 2**20)
    request = datasets_pb2.RegisterDatasetRequest(descriptors=descriptors, message_type="M")
    code, refused = await refusal(client.datasets.RegisterDataset(request, timeout=DEADLINE_S))
    assert (code, refused.reason, refused.field) == (
        grpc.StatusCode.INVALID_ARGUMENT,
        Reason.INVALID_DATASET,
        "descriptors",
    )
    assert "1,048,576" in refused.message
