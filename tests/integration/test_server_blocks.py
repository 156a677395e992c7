"""The RPCs about blocked datasets and the ledger, and admission of a blocked dataset's jobs. No worker runs."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any

import grpc
import psycopg
import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorSet

from bulkgrpc.client.model import dataset_of
from bulkgrpc.datasets.definition import TimePartitions
from bulkgrpc.datasets.periods import PartitionPeriod
from bulkgrpc.datasets.sources import compile_proto
from bulkgrpc.errors import Reason
from bulkgrpc.settings import ServerSettings
from bulkgrpc.v1 import datasets_pb2, jobs_pb2, ledger_pb2, ledger_pb2_grpc
from tests.integration.server_peer import (
    DATASET,
    DEADLINE_S,
    Peer,
    ServeWith,
    a_key,
    batch,
    eventually,
    header,
    refusal,
)

pytest_plugins = ["tests.integration.server_parts"]

NOT_FOUND = (grpc.StatusCode.NOT_FOUND, Reason.DATASET_NOT_FOUND)


async def resume(peer: Peer, name: str = DATASET) -> datasets_pb2.DatasetStatus:
    answer = await peer.datasets.ResumeDataset(datasets_pb2.ResumeDatasetRequest(name=name), timeout=DEADLINE_S)
    status: datasets_pb2.DatasetStatus = answer.status
    return status


async def pause(peer: Peer, name: str = DATASET, reason: str = "") -> datasets_pb2.DatasetStatus:
    request = datasets_pb2.PauseDatasetRequest(name=name, reason=reason)
    status: datasets_pb2.DatasetStatus = (await peer.datasets.PauseDataset(request, timeout=DEADLINE_S)).status
    return status


async def discard(peer: Peer, name: str = DATASET, *, validate_only: bool = False) -> Any:
    request = datasets_pb2.DiscardParkedRequest(name=name, validate_only=validate_only)
    return await peer.datasets.DiscardParked(request, timeout=DEADLINE_S)


async def status_of(peer: Peer, name: str = DATASET) -> datasets_pb2.DatasetStatus:
    request = datasets_pb2.GetDatasetStatusRequest(name=name)
    status: datasets_pb2.DatasetStatus = (await peer.datasets.GetDatasetStatus(request, timeout=DEADLINE_S)).status
    return status


def park(settings: ServerSettings, job: str, payload_bytes: int = 100) -> None:
    """Park a message of a job as a worker does, moving the offset of its partition."""
    with psycopg.connect(settings.postgres) as connection:
        connection.execute(
            "INSERT INTO bulk.offsets (topic, partition, next_offset, owner_epoch) VALUES (%s, 0, 1, 1)",
            [settings.topic],
        )
        connection.execute(
            "INSERT INTO bulk.parked (topic, partition, message_offset, tenant, dataset, job_id, records, headers, "
            "payload) VALUES (%s, 0, 0, 'default', 'sensor_readings', %s, 7, '[]', %s)",
            [settings.topic, uuid.UUID(job.rpartition("/")[2]), b"x" * payload_bytes],
        )


@pytest.fixture(autouse=True)
def nothing_is_parked(server_settings: ServerSettings) -> Any:
    """Each test begins and ends without blocks: the database is the session's."""
    clear = "TRUNCATE bulk.parked, bulk.blocked_datasets, bulk.blocked_jobs, bulk.discards"
    yield
    with psycopg.connect(server_settings.postgres) as connection:
        connection.execute(clear)


async def test_a_dataset_is_paused_shown_discarded_and_resumed(client: Peer, server_settings: ServerSettings) -> None:
    job = (await client.submit(header(idempotency_key=a_key()), batch(0))).job
    assert (await status_of(client)).state == datasets_pb2.DATASET_STATE_WRITABLE
    code, refused = await refusal(discard(client))
    assert (code, refused.reason) == (grpc.StatusCode.FAILED_PRECONDITION, Reason.DATASET_NOT_BLOCKED)
    paused = await pause(client, reason="because")
    assert (paused.dataset, paused.state, paused.reason) == (DATASET, datasets_pb2.DATASET_STATE_PAUSED, "because")
    park(server_settings, job.name)
    shown = await status_of(client)
    assert (shown.parked.messages, shown.parked.records, shown.parked.payload_bytes) == (1, 7, 100)
    assert (shown.parked.jobs, shown.block_time) == (1, paused.block_time)
    block = (await client.job(job.name)).block
    assert (block.cause, block.reason, block.block_time) == (
        jobs_pb2.JobBlock.CAUSE_PAUSED,
        "because",
        paused.block_time,
    )
    listed = await client.jobs.ListJobs(jobs_pb2.ListJobsRequest(page_size=1), timeout=DEADLINE_S)
    assert listed.jobs[0].block == block

    preview = await discard(client, validate_only=True)
    assert (preview.status.state, preview.discarded.records) == (datasets_pb2.DATASET_STATE_PAUSED, 7)
    assert [(one.tenant, one.parked.messages) for one in preview.tenants] == [("tenants/default", 1)]
    for _ in range(2):
        done = await discard(client)
        assert done.status.state == datasets_pb2.DATASET_STATE_DISCARDING
        assert (done.discarded, list(done.tenants)) == (preview.discarded, list(preview.tenants))
    for _ in range(2):
        assert (await resume(client)).state == datasets_pb2.DATASET_STATE_WRITABLE
    assert not (await client.job(job.name)).HasField("block")


def block_job(settings: ServerSettings, job: str) -> None:
    with psycopg.connect(settings.postgres) as connection:
        connection.execute(
            "INSERT INTO bulk.blocked_jobs (job_id, reason, next_trial_time) "
            "VALUES (%s, 'version 2 is missing', 'infinity')",
            [uuid.UUID(job.rpartition("/")[2])],
        )


async def discard_job(peer: Peer, name: str, reason: str = "") -> jobs_pb2.Job:
    request = jobs_pb2.DiscardJobRequest(name=name, reason=reason)
    job: jobs_pb2.Job = (await peer.jobs.DiscardJob(request, timeout=DEADLINE_S)).job
    return job


async def test_a_resubmission_of_a_job_with_records_that_are_set_aside_says_so(
    client: Peer, server_settings: ServerSettings
) -> None:
    key = a_key()
    job = (await client.submit(header(idempotency_key=key), batch(0))).job
    park(server_settings, job.name)
    block_job(server_settings, job.name)
    opened, sealed = await client.exchange(header(idempotency_key=key))
    for found in (opened.opened, sealed.sealed):
        assert found.replayed
        assert found.job.state == jobs_pb2.JOB_STATE_SEALED
        assert (found.job.block.cause, found.job.block.reason) == (jobs_pb2.JobBlock.CAUSE_JOB, "version 2 is missing")
        assert found.job.block.HasField("block_time")


async def test_a_sealed_job_that_is_blocked_can_be_discarded_and_no_other(
    client: Peer, server_settings: ServerSettings
) -> None:
    job = (await client.submit(header(idempotency_key=a_key()), batch(0))).job
    code, refused = await refusal(discard_job(client, job.name))
    assert (code, refused.reason) == (grpc.StatusCode.FAILED_PRECONDITION, Reason.JOB_NOT_BLOCKED)
    assert "is SEALED and is not blocked" in refused.message
    park(server_settings, job.name)
    block_job(server_settings, job.name)
    for reason in ("it is lost", "once more"):
        assert (await discard_job(client, job.name, reason)).state == jobs_pb2.JOB_STATE_SEALED
    with psycopg.connect(server_settings.postgres) as connection:
        found = connection.execute("SELECT discard_reason, next_trial_time < now() FROM bulk.blocked_jobs").fetchall()
    assert found == [("discarded by an operator: it is lost; it was blocked: version 2 is missing", True)]
    code, refused = await refusal(discard_job(client, job.name, "x" * 1001))
    assert (code, refused.field) == (grpc.StatusCode.INVALID_ARGUMENT, "reason")
    code, refused = await refusal(discard_job(client, f"tenants/default/jobs/{uuid.uuid4()}"))
    assert (code, refused.reason) == (grpc.StatusCode.NOT_FOUND, Reason.JOB_NOT_FOUND)


async def test_a_dataset_that_is_not_registered_is_not_found(client: Peer) -> None:
    name = f"datasets/d_{uuid.uuid4().hex[:8]}"
    for call in (status_of(client, name), pause(client, name), resume(client, name), discard(client, name)):
        code, refused = await refusal(call)
        assert (code, refused.reason, refused.field) == (*NOT_FOUND, "name")
    code, refused = await refusal(pause(client, reason="x" * 1001))
    assert (code, refused.field) == (grpc.StatusCode.INVALID_ARGUMENT, "reason")


async def test_the_ledger_shows_positions_and_queues(client: Peer, server_settings: ServerSettings) -> None:
    job = (await client.submit(header(idempotency_key=a_key()), batch(0))).job
    await pause(client, reason="because")
    park(server_settings, job.name)
    stub = ledger_pb2_grpc.LedgerServiceStub(client.channel)  # type: ignore[no-untyped-call]
    ledger = await stub.GetLedger(ledger_pb2.GetLedgerRequest(), timeout=DEADLINE_S)
    assert ledger.topic == server_settings.topic
    assert [(one.partition, one.next_offset, one.owner_epoch) for one in ledger.partitions] == [(0, 1, 1)]
    (queue,) = ledger.queues
    assert (queue.tenant, queue.dataset, queue.reason, queue.parked.records) == (
        "tenants/default",
        DATASET,
        "because",
        7,
    )


async def test_new_jobs_of_a_blocked_dataset_are_refused_above_the_limit_and_accepted_again_once_it_is_resumed(
    serve_with: ServeWith, server_settings: ServerSettings
) -> None:
    async with serve_with(parked_bytes_max=1000) as (_, client):
        job = (await client.submit(header(idempotency_key=a_key()), batch(0))).job
        await pause(client, reason="because")
        park(server_settings, job.name, 1000)

        async def is_refused() -> bool:
            try:
                await client.submit(header(idempotency_key=a_key()), batch(0))
            except grpc.aio.AioRpcError as error:
                return error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            return False

        await eventually(is_refused)
        _, refused = await refusal(client.submit(header(idempotency_key=a_key()), batch(0)))
        assert (refused.reason, refused.retry_after_s) == (Reason.DATASET_BLOCKED, 10.0)
        assert "because" in refused.message
        await resume(client)

        async def is_accepted() -> bool:
            return not await is_refused()

        await eventually(is_accepted)


PROTO = """syntax = "proto3"; import "bulkgrpc/v1/options.proto"; import "google/protobuf/timestamp.proto";
message M { option (bulkgrpc.v1.dataset) = {table: "%s" key: ["id", "at"] %s};
string id = 1; google.protobuf.Timestamp at = 2; }"""


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ("", {"lanes": 1, "dedupe_window_s": 0.0, "time_to_live_s": 0.0, "hash_partitions": 0}),
        (
            "lanes: 3 dedupe_window: {seconds: 60} time_to_live: {seconds: 90} hash_partitions: 4",
            {"lanes": 3, "dedupe_window_s": 60.0, "time_to_live_s": 90.0, "hash_partitions": 4},
        ),
        (
            'partition_by_time: {field: "at" period: PARTITION_PERIOD_WEEK}',
            {"time_partitions": TimePartitions("at", PartitionPeriod.WEEK)},
        ),
    ],
)
async def test_a_dataset_is_returned_with_all_its_options(
    client: Peer, tmp_path: Path, options: str, expected: dict[str, object]
) -> None:
    table = f"d_{uuid.uuid4().hex[:8]}"
    file = tmp_path / "m.proto"
    file.write_text(PROTO % (table, options))
    descriptors = FileDescriptorSet.FromString(compile_proto(file))
    request = datasets_pb2.RegisterDatasetRequest(descriptors=descriptors, message_type="M")
    await client.datasets.RegisterDataset(request, timeout=DEADLINE_S)
    answer = await client.datasets.GetDataset(
        datasets_pb2.GetDatasetRequest(name=f"datasets/{table}"), timeout=DEADLINE_S
    )
    found = dataset_of(answer.dataset)
    assert {name: getattr(found, name) for name in expected} == expected
