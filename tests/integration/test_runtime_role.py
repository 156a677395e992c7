"""Servers and workers run as a role that owns nothing, with the rights that `bulkgrpc migrate --grant-to` gives it."""

from __future__ import annotations

import os
import subprocess
import sys
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo

from bulkgrpc.client import AsyncBulkClient, Batch, JobOptions, JobState, Reason, Refused
from bulkgrpc.datasets.sources import compile_proto, proto_root
from bulkgrpc.postgres import rights, schema
from bulkgrpc.postgres.connection import connect
from bulkgrpc.stack import Addresses
from tests.support.examples import batch_of, reading, reading_batch
from tests.support.processes import service

PASSWORD = "of-the-role"
ROOT = Path(__file__).parents[1]


@dataclass(frozen=True, slots=True)
class Roles:
    """A database with the roles of an organization. Each is a connection string; `name` is the runtime role's."""

    superuser: str
    owner: str
    runtime: str
    name: str

    def execute(self, statement: str) -> None:
        with psycopg.connect(self.superuser, autocommit=True) as connection:
            connection.execute(statement.encode())


@pytest.fixture(scope="module")
def roles(addresses: Addresses) -> Iterator[Roles]:
    """Nothing is granted to PUBLIC; an owner migrated for the runtime role."""
    name = uuid.uuid4().hex[:8]
    database, owner, runtime = f"roles_{name}", f"owner_{name}", f"Service {name}"
    with psycopg.connect(addresses.postgres, autocommit=True) as admin:
        for role in (owner, runtime):
            admin.execute(sql.SQL("CREATE ROLE {} LOGIN PASSWORD {}").format(sql.Identifier(role), PASSWORD))
        admin.execute(f"CREATE DATABASE {database} OWNER {owner}".encode())
        admin.execute(f"REVOKE ALL ON DATABASE {database} FROM PUBLIC".encode())
    found = Roles(
        make_conninfo(addresses.postgres, dbname=database),
        make_conninfo(addresses.postgres, dbname=database, user=owner, password=PASSWORD),
        make_conninfo(addresses.postgres, dbname=database, user=runtime, password=PASSWORD),
        runtime,
    )
    found.execute("REVOKE ALL ON SCHEMA public FROM PUBLIC")
    migrated = run(["migrate", "--postgres", found.owner, "--grant-to", runtime])
    assert migrated.returncode == 0, migrated.stderr
    yield found
    with psycopg.connect(addresses.postgres, autocommit=True) as admin:
        admin.execute(f"DROP DATABASE {database} WITH (FORCE)".encode())
        for role in (owner, runtime):
            admin.execute(sql.SQL("DROP ROLE {}").format(sql.Identifier(role)))


def run(arguments: list[str], **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(Path(sys.executable).parent / "bulkgrpc"), *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def needed(found: Roles) -> list[rights.Right]:
    """All rights of the list: what a role lacks that has none."""
    with psycopg.connect(found.superuser, autocommit=True) as connection:
        stranger = f"stranger_{uuid.uuid4().hex[:8]}"
        connection.execute(f"CREATE ROLE {stranger}".encode())
        lacking = list(rights.missing(connection, stranger))
        connection.execute(f"DROP ROLE {stranger}".encode())
    return lacking


def test_granting_again_changes_nothing(roles: Roles) -> None:
    rights.grant(roles.owner, roles.name)
    with connect(roles.runtime, "tests") as connection:
        assert schema.check(connection) == []


def test_each_right_that_is_revoked_is_named_with_what_grants_it(roles: Roles) -> None:
    listed = needed(roles)
    assert {"CONNECT", "TEMPORARY", "USAGE", "CREATE", "SELECT", "INSERT", "UPDATE", "DELETE", "EXECUTE"} == {
        right.privilege for right in listed
    }
    revocable = [right for right in listed if right.privilege != "CONNECT"]
    with connect(roles.runtime, "tests") as connection:
        for right in revocable:
            who = sql.Identifier(roles.name).as_string(None) + ", PUBLIC"
            roles.execute(f"REVOKE {right.privilege} ON {right.kind} {right.object} FROM {who}")
            if right.only_to_register:
                assert rights.check(connection) == [right]
            else:
                with pytest.raises(rights.RightsMissing) as refused:
                    rights.check(connection)
                assert f"lacks {right} ({right.grant(roles.name)})" in str(refused.value)
                assert f"migrate --grant-to {roles.name}" in str(refused.value)
            roles.execute(right.grant(roles.name))
        assert rights.check(connection) == []


def test_a_worker_and_a_server_without_a_right_say_which(roles: Roles, addresses: Addresses) -> None:
    roles.execute(f'REVOKE INSERT ON bulk.rejections FROM "{roles.name}"')
    environment = {**addresses.environment(), "BULKGRPC_POSTGRES": roles.runtime}
    try:
        for process in (["worker"], ["server", "--listen", "127.0.0.1:0"]):
            ended = run(process, **environment)
            assert ended.returncode == 1
            assert f"error: role {roles.name} lacks INSERT on table bulk.rejections (GRANT INSERT" in ended.stderr
    finally:
        roles.execute(f'GRANT INSERT ON bulk.rejections TO "{roles.name}"')


def test_an_owner_that_may_not_grant_a_right_says_what_a_superuser_has_to_run(roles: Roles) -> None:
    stranger = f"stranger_{uuid.uuid4().hex[:8]}"
    roles.execute(f"CREATE ROLE {stranger}; ALTER SCHEMA public OWNER TO CURRENT_USER")
    try:
        with pytest.raises(
            rights.RightsMissing,
            match=f'run as a superuser or the owner: GRANT CREATE ON SCHEMA public TO "{stranger}"',
        ):
            rights.grant(roles.owner, stranger)
    finally:
        roles.execute("ALTER SCHEMA public OWNER TO pg_database_owner")
        roles.execute(f"DROP OWNED BY {stranger}; DROP ROLE {stranger}")


def test_a_role_that_does_not_exist_is_named(roles: Roles) -> None:
    ended = run(["migrate", "--postgres", roles.owner, "--grant-to", "nobody_of_the_name"])
    assert ended.returncode == 1
    assert 'role "nobody_of_the_name" does not exist' in ended.stderr


async def test_all_of_a_job_works_as_a_role_that_owns_nothing(
    roles: Roles, addresses: Addresses, tmp_path: Path
) -> None:
    topic = f"topic-{uuid.uuid4().hex[:8]}"
    environment = {
        **addresses.environment(),
        "BULKGRPC_POSTGRES": roles.runtime,
        "BULKGRPC_TOPIC": topic,
        "BULKGRPC_GROUP": topic,
        "BULKGRPC_PARTITIONS": "2",
        "BULKGRPC_MAINTENANCE_INTERVAL_S": "0.5",
    }
    with service(environment, tmp_path, workers=1) as running:
        async with AsyncBulkClient(running.address) as client:
            await use(client)
            await without_create(client, roles)
        assert "maintenance" not in running.workers[0].log.read_text()
        assert running.workers[0].ended is None
    with psycopg.connect(roles.superuser) as connection:
        days = connection.execute("SELECT count(*) FROM pg_inherits WHERE inhparent = 'bulk.jobs'::regclass").fetchone()
        assert days is not None
        assert days[0] > 1, "the worker created the days' partitions"


async def use(client: AsyncBulkClient) -> None:
    """Submit to tables of several kinds, streamed and atomic, with rejections; delete a dataset with its table."""
    sensors = compile_proto(proto_root() / "examples" / "v1" / "sensors.proto")
    remembered = compile_proto(ROOT / "support" / "remembered.proto")
    for descriptors, message, name in (
        (sensors, "examples.v1.SensorReading", "sensor_readings"),
        (remembered, "tests.v1.RememberedUpdate", "remembered_update"),
        (remembered, "tests.v1.RememberedReject", "remembered_reject"),
    ):
        await client.register_dataset(descriptors, message)
        for atomic in (False, True):
            job = await client.submit(
                name, [Batch(reading_batch(1000 * atomic, 500), 500)], options=JobOptions(atomic=atomic)
            )
            ended = await job.wait()
            assert (ended.state, ended.counts.written) == (JobState.SUCCEEDED, 500), ended
    for value, written in ((1.0, 1), (2.0, 0)):
        job = await client.submit("remembered_reject", [Batch(batch_of([reading("S", 1, value)]), 1)])
        assert (await job.wait()).counts.written == written
    assert [found.code async for found in job.rejections()] == ["DUPLICATE_KEY"]
    await client.delete_dataset("remembered_reject", drop_table=True)


async def without_create(client: AsyncBulkClient, roles: Roles) -> None:
    """A dataset whose table cannot be created is refused, and not as if PostgreSQL were unavailable."""
    roles.execute(f'REVOKE CREATE ON SCHEMA public FROM "{roles.name}"')
    trades = compile_proto(proto_root() / "examples" / "v1" / "trades.proto")
    with pytest.raises(Refused, match=r"permission denied for schema public.*--grant-to") as refused:
        await client.register_dataset(trades, "examples.v1.Trade")
    assert refused.value.reason == Reason.RIGHT_MISSING
    roles.execute(f'GRANT CREATE ON SCHEMA public TO "{roles.name}"')
