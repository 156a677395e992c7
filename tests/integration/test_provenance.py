"""Columns that say which job wrote a row: by every way of writing, in tables of the service and of others."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
from google.protobuf import message_factory

from bulkgrpc.client import AsyncBulkClient, Job, JobOptions, JobState, Reason, Refused
from bulkgrpc.datasets.definition import find_message
from bulkgrpc.datasets.sources import compile_proto
from tests.integration.service_values import Command, Parts

pytest_plugins = ["tests.integration.service_parts"]

PROVENANCE = 'provenance: {job: "job" sequence: "batch" write_time: "written_at"}'
ATOMIC = JobOptions(atomic=True)


def execute(parts: Parts, statements: str) -> None:
    with psycopg.connect(parts.postgres, autocommit=True) as connection:
        connection.execute(statements.encode())


def record_type(folder: Path, table: str, option: str, more: str = "") -> tuple[Path, bytes, Any]:
    """A message with a number and a text: its file, its descriptors, its class."""
    file = folder / f"{table}.proto"
    file.write_text(
        'syntax = "proto3"; import "bulkgrpc/v1/options.proto"; '
        f'message M {{ option (bulkgrpc.v1.dataset) = {{table: "{table}" {option}}}; '
        f"int64 id = 1; string v = 2; {more} }}"
    )
    descriptors = compile_proto(file)
    return file, descriptors, message_factory.GetMessageClass(find_message(descriptors, "M"))


def batches(record: Any, *ids: list[int]) -> list[bytes]:
    """A batch of each list of numbers, encoded."""
    return [
        b"".join(b"\x12" + bytes([len(data)]) + data for data in (record(id=n).SerializeToString() for n in one))
        for one in ids
    ]


async def loaded(client: AsyncBulkClient, table: str, sent: list[bytes], **options: Any) -> Job:
    return await (await client.submit(table, sent, **options)).wait()


def job_id(job: Job) -> uuid.UUID:
    return uuid.UUID(job.name.rpartition("/")[2])


@pytest.mark.parametrize(
    ("policy", "key"), [("APPEND", ""), ("IGNORE", 'key: ["id"]'), ("UPDATE", 'key: ["id"]'), ("REJECT", 'key: ["id"]')]
)
async def test_rows_say_which_job_and_batch_wrote_them_and_when(
    client: AsyncBulkClient, parts: Parts, tmp_path: Path, policy: str, key: str
) -> None:
    table = f"traced_{policy.lower()}"
    _, descriptors, record = record_type(
        tmp_path, table, f"{key} conflict_policy: CONFLICT_POLICY_{policy} {PROVENANCE}"
    )
    dataset = await client.register_dataset(descriptors, "M")
    assert str(dataset.provenance) == "job, batch, written_at"
    begun = datetime.now(UTC)
    first = await loaded(client, table, batches(record, [1, 2], [3]))
    # Keys that exist: other writers than direct COPY.
    second = await loaded(client, table, batches(record, [3, 4], [5, 4]))
    third = await loaded(client, table, batches(record, [10], [11]), options=ATOMIC)
    assert third.state is JobState.SUCCEEDED
    one, two, three = job_id(first), job_id(second), job_id(third)
    expected = {(1, one, 0), (2, one, 0), (3, one, 1), (4, two, 0), (5, two, 1), (10, three, 0), (11, three, 1)}
    if policy == "UPDATE":
        expected = expected - {(3, one, 1), (4, two, 0)} | {(3, two, 0), (4, two, 1)}
    if policy == "APPEND":
        expected |= {(3, two, 0), (4, two, 1)}
    found = parts.rows(f"SELECT id, job, batch, written_at FROM {table}")
    assert {row[:3] for row in found} == expected
    assert len(found) == len(expected)
    ended = datetime.now(UTC)
    assert all(begun - timedelta(seconds=1) <= row[3] <= ended for row in found)


async def test_a_dataset_gets_the_columns_later_and_keeps_them(
    client: AsyncBulkClient, parts: Parts, tmp_path: Path
) -> None:
    _, before, record = record_type(tmp_path, "traced_later", 'key: ["id"]')
    await client.register_dataset(before, "M")
    await loaded(client, "traced_later", batches(record, [1]))
    _, after, _ = record_type(tmp_path, "traced_later", 'key: ["id"] provenance: {job: "job"}')
    plan = await client.plan_dataset(after, "M")
    assert plan.statements == ('ALTER TABLE "public"."traced_later" ADD COLUMN "job" uuid',)
    await client.register_dataset(after, "M")
    job = await loaded(client, "traced_later", batches(record, [2]))
    assert parts.rows("SELECT id, job FROM traced_later ORDER BY id") == [(1, None), (2, job_id(job))]
    for changed in ("", 'provenance: {job: "other"}'):
        _, other, _ = record_type(tmp_path, "traced_later", f'key: ["id"] {changed}', "string w = 3;")
        with pytest.raises(Refused, match="provenance of dataset traced_later is job and cannot become") as refused:
            await client.register_dataset(other, "M")
        assert refused.value.reason == Reason.DATASET_INCOMPATIBLE


@pytest.mark.parametrize(
    ("option", "field", "says"),
    [
        ("provenance: {}", "provenance.job", "name the column that stores the ID of the job"),
        ('provenance: {job: "v"}', "provenance.job", "field v would both be column v"),
        ('provenance: {job: "tenant"}', "provenance.job", "another column of the service"),
        ('provenance: {job: "j" sequence: "j"}', "provenance.sequence", "field provenance.job would both be column j"),
        ('provenance: {job: "j" write_time: "xmin"}', "provenance.write_time", "xmin is reserved"),
    ],
)
async def test_columns_that_cannot_be_are_refused(
    client: AsyncBulkClient, tmp_path: Path, option: str, field: str, says: str
) -> None:
    _, descriptors, _ = record_type(tmp_path, "traced_wrong", f'key: ["id"] {option}')
    with pytest.raises(Refused, match=says) as refused:
        await client.plan_dataset(descriptors, "M")
    assert (refused.value.reason, refused.value.field) == (Reason.INVALID_DATASET, field)


async def test_columns_of_a_table_that_exists_are_bound(
    client: AsyncBulkClient, command: Command, parts: Parts, tenant: str, tmp_path: Path
) -> None:
    execute(
        parts,
        'CREATE TABLE traced_bound (id bigint PRIMARY KEY, v text, "Job" uuid, seq integer, at timestamp, other text)',
    )
    bound = f'key: ["id"] existing_table: {{only_tenant: "{tenant}"}}'
    traced = 'provenance: {job: "Job" sequence: "seq" write_time: "at"}'
    _, descriptors, record = record_type(tmp_path, "traced_bound", f"{bound} {traced}")
    await client.register_dataset(descriptors, "M")
    shown = command("datasets", "show", "traced_bound")
    assert "rows say which job wrote them: Job, seq, at" in " ".join(shown.stdout.split())
    job = await loaded(client, "traced_bound", batches(record, [1]))
    atomic = await loaded(client, "traced_bound", batches(record, [], [2]), options=ATOMIC)
    found = parts.rows("SELECT id, \"Job\", seq, now() AT TIME ZONE 'UTC' - at < '1 min' FROM traced_bound ORDER BY id")
    assert found == [(1, job_id(job), 0, True), (2, job_id(atomic), 1, True)]
    wrong = (
        'existing_table: {table: "traced_bound" tenant_not_stored: true} provenance: {job: "other" write_time: "no"}'
    )
    file, _, _ = record_type(tmp_path, "traced_misfit", f'key: ["id"] {wrong}')
    plan = command("datasets", "plan", file)
    assert plan.exit_code == 1
    said = " ".join(plan.stdout.split())
    assert "column no is missing in the table" in said
    assert "add the column, or name another one in existing_table or provenance" in said
    assert "make it uuid, or name another column in existing_table or provenance" in said
