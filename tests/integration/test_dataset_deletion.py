"""Datasets deleted and registered again, on real PostgreSQL and Kafka: the table kept or dropped, jobs, clients."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psycopg
import pytest
from google.protobuf import message_factory
from psycopg_pool import AsyncConnectionPool

from bulkgrpc.client import AsyncBulkClient, BulkError, ClientConfig, JobState, Reason, Refused
from bulkgrpc.datasets.definition import find_message
from bulkgrpc.datasets.sources import compile_proto
from bulkgrpc.ingest.ports import DatasetDeleted, JobsNotEnded
from bulkgrpc.model import JobKey, JobSpec
from bulkgrpc.postgres.catalog import Catalog
from bulkgrpc.postgres.connection import connect
from bulkgrpc.postgres.jobs import JobStore, open_values
from bulkgrpc.postgres.statements import family
from tests.integration.service_values import Command, Parts
from tests.support import examples
from tests.support.database import Connection, count, register
from tests.support.processes import Service
from tests.support.waiting import eventually

pytest_plugins = ["tests.integration.service_parts"]

PROTO = """syntax = "proto3"; import "bulkgrpc/v1/options.proto";
message M { option (bulkgrpc.v1.dataset) = {table: "%s" key: ["id"]}; int64 id = 1; %s }"""


def compiled(folder: Path, table: str, fields: str) -> tuple[bytes, Any]:
    file = folder / f"{table}.proto"
    file.write_text(PROTO % (table, fields))
    descriptors = compile_proto(file)
    return descriptors, message_factory.GetMessageClass(find_message(descriptors, "M"))


class BreaksOff(Exception):
    """A source that ends in the middle: its job stays open."""


async def test_a_dataset_is_deleted_once_its_jobs_have_ended_and_comes_back_as_the_next_version(
    client: AsyncBulkClient, parts: Parts, tenant: str, tmp_path: Path
) -> None:
    descriptors, record = compiled(tmp_path, "passing", "string name = 2;")
    assert (await client.register_dataset(descriptors, "M")).version == 1

    async def broken() -> AsyncIterator[Any]:
        for number in range(2000):
            yield record(id=number, name="a")
        raise BreaksOff

    with pytest.raises(BreaksOff):
        await client.submit("passing", broken(), idempotency_key="broken")
    with pytest.raises(Refused, match=r"1 jobs that have not ended \(tenants/.*cancel") as busy:
        await client.delete_dataset("passing")
    assert busy.value.reason == Reason.DATASET_HAS_JOBS
    [job] = [job async for job in client.list_jobs()]
    await client.job(job.name).cancel()
    await client.delete_dataset("passing")

    for call in (
        client.get_dataset("passing"),
        client.submit("passing", [record(id=1)]),
        client.delete_dataset("passing"),
    ):
        with pytest.raises(Refused) as missing:
            await call
        assert missing.value.reason == Reason.DATASET_NOT_FOUND
    assert "passing" not in [dataset.name async for dataset in client.list_datasets()]
    assert (await client.job(job.name).get()).state is JobState.CANCELLED
    parts.rows("SELECT count(*) FROM passing")

    more, wider = compiled(tmp_path, "passing", "string name = 2; optional int32 size = 3;")
    plan = await client.plan_dataset(more, "M")
    assert plan.statements == ('ALTER TABLE "public"."passing" ADD COLUMN "size" integer',)
    assert (await client.register_dataset(more, "M")).version == 2
    assert [dataset.version async for dataset in client.list_dataset_versions("passing")] == [2]
    done = await (await client.submit("passing", [wider(id=-1, size=3)], idempotency_key="again")).wait()
    assert (done.state, done.dataset_version) == (JobState.SUCCEEDED, 2)
    assert parts.rows("SELECT id, size FROM passing WHERE tenant = %s AND id < 0", tenant) == [(-1, 3)]

    await client.delete_dataset("passing", drop_table=True)
    assert parts.rows("SELECT to_regclass('passing')") == [(None,)]
    other, _ = compiled(tmp_path, "passing", "bool flag = 2;")
    assert (await client.register_dataset(other, "M")).version == 3
    assert parts.rows("SELECT count(*) FROM passing") == [(0,)]


@pytest.mark.parametrize(
    ("change", "fields", "says"),
    [
        ("ALTER TABLE kept ALTER COLUMN name TYPE varchar(9)", "string name = 2;", "has one of type character varying"),
        ("ALTER TABLE kept DROP COLUMN name", "string name = 2;", "has no such column"),
        ("ALTER TABLE kept DROP CONSTRAINT kept_pkey", "string name = 2;", "primary key of table kept"),
        ("ALTER TABLE kept ADD COLUMN more integer NOT NULL", "string name = 2;", "column more that takes no null"),
        ("ALTER TABLE kept ADD COLUMN more integer NOT NULL DEFAULT 1", "int32 name = 2;", "cannot become integer"),
        ("ALTER TABLE kept SET UNLOGGED", "string name = 2;", "run ALTER TABLE kept SET LOGGED"),
    ],
)
async def test_a_table_that_was_kept_and_does_not_fit_is_not_taken_over(
    client: AsyncBulkClient, parts: Parts, tmp_path: Path, change: str, fields: str, says: str
) -> None:
    descriptors, _ = compiled(tmp_path, "kept", "string name = 2;")
    await client.register_dataset(descriptors, "M")
    await client.delete_dataset("kept")
    try:
        with psycopg.connect(parts.postgres, autocommit=True) as connection:
            connection.execute(change.encode())
        new, _ = compiled(tmp_path, "kept", fields)
        for register in (client.plan_dataset, client.register_dataset):
            with pytest.raises(Refused, match=says) as refused:
                await register(new, "M")
            assert refused.value.reason == Reason.DATASET_INCOMPATIBLE
    finally:
        with psycopg.connect(parts.postgres, autocommit=True) as connection:
            connection.execute("DROP TABLE kept")


async def test_no_version_is_registered_for_a_table_that_cannot_be_written(
    client: AsyncBulkClient, parts: Parts, tmp_path: Path
) -> None:
    descriptors, _ = compiled(tmp_path, "changed", "string name = 2;")
    await client.register_dataset(descriptors, "M")
    more, _ = compiled(tmp_path, "changed", "string name = 2; optional int32 size = 3;")
    with psycopg.connect(parts.postgres, autocommit=True) as connection:
        connection.execute("ALTER TABLE changed SET UNLOGGED")
        for register in (client.plan_dataset, client.register_dataset):
            with pytest.raises(Refused, match="run ALTER TABLE changed SET LOGGED") as refused:
                await register(more, "M")
            assert refused.value.reason == Reason.DATASET_INCOMPATIBLE
        connection.execute("ALTER TABLE changed SET LOGGED")
    assert (await client.register_dataset(more, "M")).version == 2


async def test_a_table_that_something_depends_on_is_not_dropped(
    client: AsyncBulkClient, parts: Parts, tmp_path: Path
) -> None:
    descriptors, _ = compiled(tmp_path, "viewed", "")
    await client.register_dataset(descriptors, "M")
    with psycopg.connect(parts.postgres, autocommit=True) as connection:
        connection.execute("CREATE VIEW viewer AS SELECT id FROM viewed")
    with pytest.raises(Refused, match="view viewer depends on") as refused:
        await client.delete_dataset("viewed", drop_table=True)
    assert refused.value.reason == Reason.TABLE_IN_USE
    assert (await client.get_dataset("viewed")).version == 1, "the dataset is not half deleted"


async def test_a_hundred_views_on_a_table_are_the_reason_and_not_the_size_of_the_answer(
    client: AsyncBulkClient, parts: Parts, tmp_path: Path
) -> None:
    descriptors, _ = compiled(tmp_path, "popular", "")
    await client.register_dataset(descriptors, "M")
    with psycopg.connect(parts.postgres, autocommit=True) as connection:
        for number in range(100):
            connection.execute(f"CREATE VIEW popular_{'v' * 40}_{number} AS SELECT id FROM popular".encode())
    with pytest.raises(
        Refused, match=r"(?s)^table popular cannot be dropped.*view popular_v.*or omit drop_table$"
    ) as refused:
        await client.delete_dataset("popular", drop_table=True)
    assert refused.value.reason == Reason.TABLE_IN_USE


async def test_a_table_that_a_long_transaction_holds_is_said_to_be_busy(
    running: Service, parts: Parts, tmp_path: Path
) -> None:
    descriptors, _ = compiled(tmp_path, "held_up", "")
    async with AsyncBulkClient(running.address, config=ClientConfig(call_deadline_s=4)) as client:
        await client.register_dataset(descriptors, "M")
        with psycopg.connect(parts.postgres) as connection:
            connection.execute("SELECT FROM held_up")
            with pytest.raises(BulkError, match="a transaction holds a lock on table held_up") as refused:
                await client.delete_dataset("held_up", drop_table=True)
        assert refused.value.reason == Reason.TABLE_BUSY
        # The attempt that the client gave up may have waited on the server, and got the lock when it was released.
        with suppress(Refused):
            await client.delete_dataset("held_up", drop_table=True)
        assert parts.rows("SELECT to_regclass('held_up')") == [(None,)]


def test_the_command_asks_before_it_deletes(command: Command, parts: Parts, tmp_path: Path) -> None:
    file = tmp_path / "asked.proto"
    file.write_text(PROTO % ("asked", ""))
    command.json("datasets", "register", file)
    refused = command("datasets", "delete", "asked", "--drop-table")
    assert (refused.exit_code, "and its table, with all rows?" in refused.output) == (1, True)
    assert command.json("datasets", "show", "asked")["version"] == 1
    assert command.json("datasets", "delete", "asked", "--drop-table", "--yes") == {
        "deleted": "asked",
        "table_dropped": True,
    }
    assert parts.rows("SELECT to_regclass('asked')") == [(None,)]


def job_of(key: str) -> JobSpec:
    return JobSpec(JobKey.derive("acme", key), key, "sensor_readings", 1)


def somebody_waits(connection: Connection) -> bool:
    found = connection.execute("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted").fetchone()
    return found is not None and found[0] > 0


async def test_a_job_that_is_being_opened_keeps_its_dataset(database: str, connection: Connection) -> None:
    register(connection, examples.readings())
    async with AsyncConnectionPool(database, kwargs={"autocommit": True}) as pool:
        with connect(database, "opener") as opener, opener.transaction():
            values = open_values(job_of("k"), [0], datetime.now(UTC), of_deleted=False)
            for name in ("lock_job", "open_job"):
                opener.execute(family("jobs")[name], values)
            deleting = asyncio.create_task(Catalog(pool).delete("sensor_readings", drop_table=True))
            await eventually(lambda: somebody_waits(connection))
        with pytest.raises(JobsNotEnded) as kept:
            await deleting
        assert kept.value.names == [job_of("k").key.name]
    assert count(connection, "sensor_readings") == 0


async def test_a_job_waits_for_a_deletion_under_way_and_is_not_opened(database: str, connection: Connection) -> None:
    register(connection, examples.readings())
    async with AsyncConnectionPool(database, kwargs={"autocommit": True}, min_size=2) as pool:
        with connect(database, "reader") as reader, reader.transaction():
            # Whoever reads the table keeps the deletion from ending.
            reader.execute("SELECT FROM sensor_readings")
            deleting = asyncio.create_task(Catalog(pool).delete("sensor_readings", drop_table=True))
            await eventually(
                lambda: (
                    connection.execute("SELECT FROM pg_locks WHERE NOT granted AND locktype = 'relation'").fetchone()
                    is not None
                )
            )
            opening = asyncio.create_task(JobStore(pool).open_job(job_of("k"), [0], datetime.now(UTC)))
            await eventually(lambda: somebody_waits(connection))
        assert await deleting
        with pytest.raises(DatasetDeleted):
            await opening
        # What was acknowledged while PostgreSQL did not answer is accounted for anyway.
        await JobStore(pool).open_job(job_of("k"), [0], datetime.now(UTC), of_deleted=True)
