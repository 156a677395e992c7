"""What servers know of datasets that change on another server. No worker runs: jobs stay as they are left."""

from __future__ import annotations

import uuid
from pathlib import Path

import grpc
import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorSet

from bulkgrpc.datasets.sources import compile_proto
from bulkgrpc.errors import Reason
from bulkgrpc.v1 import datasets_pb2, jobs_pb2
from tests.integration.server_peer import DEADLINE_S, Peer, ServeWith, a_key, header, refusal
from tests.integration.server_peer import batch as batch_of

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
