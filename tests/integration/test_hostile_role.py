"""Defaults of a role or a database that would break the service: each is tried on every path to PostgreSQL."""

from __future__ import annotations

import dataclasses
import threading
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import psycopg
import pytest
from google.protobuf import message_factory
from psycopg import sql
from psycopg.conninfo import make_conninfo

from bulkgrpc.consume.apply_tasks import TaskKind
from bulkgrpc.consume.assembly import Chunk, Received, Span
from bulkgrpc.consume.decode import prepare
from bulkgrpc.datasets.definition import find_message
from bulkgrpc.ingest.ports import RejectionPosition
from bulkgrpc.model import JobKey, JobOptions, JobSpec, Kind, Message, digest_of
from bulkgrpc.postgres import schema
from bulkgrpc.postgres.apply_task_store import PostgresApplyTasks
from bulkgrpc.postgres.catalog import Catalog
from bulkgrpc.postgres.connection import SESSION, connect, conninfo
from bulkgrpc.postgres.deadlines import make_pool
from bulkgrpc.postgres.jobs import JobStore
from bulkgrpc.postgres.maintenance_store import PostgresMaintenanceStore
from bulkgrpc.postgres.worker_ports import PostgresChunkWriter, PostgresDatasetRegistry, PostgresLedger, check_schema
from bulkgrpc.stack import Addresses
from tests.support import examples
from workers.apply import ApplyThread

TOPIC = "records"
THINGS = examples.things()
Thing: Any = message_factory.GetMessageClass(find_message(THINGS.descriptors, THINGS.message_type))
HOSTILE = [
    ("DateStyle", "SQL, DMY"),
    ("DateStyle", "German"),
    ("IntervalStyle", "sql_standard"),
    ("IntervalStyle", "iso_8601"),
    ("TimeZone", "Asia/Kathmandu"),
    ("TimeZone", "<+13>-13"),
    ("search_path", ""),
    ("search_path", "elsewhere"),
    ("bytea_output", "escape"),
    ("extra_float_digits", "-15"),
    ("standard_conforming_strings", "off"),
    ("array_nulls", "off"),
    ("quote_all_identifiers", "on"),
    ("default_transaction_isolation", "serializable"),
    ("default_transaction_isolation", "repeatable read"),
    ("default_transaction_deferrable", "on"),
    ("client_encoding", "LATIN1"),
    ("client_encoding", "SQL_ASCII"),
    ("lc_messages", "de_DE.UTF-8"),
    ("statement_timeout", "1ms"),
    ("lock_timeout", "1ms"),
    ("idle_in_transaction_session_timeout", "1ms"),
    ("transaction_timeout", "1ms"),
    ("idle_session_timeout", "1ms"),
    ("exit_on_error", "on"),
    ("row_security", "off"),
    ("work_mem", "64kB"),
    ("temp_buffers", "800kB"),
    ("plan_cache_mode", "force_custom_plan"),
    ("enable_indexscan", "off"),
    ("client_min_messages", "debug5"),
    ("transform_null_equals", "on"),
    ("xmloption", "document"),
]


@pytest.fixture
def role(addresses: Addresses) -> Iterator[str]:
    """A role of the test's own. A superuser, so that no missing right hides what is tested."""
    name = f"hostile_{uuid.uuid4().hex[:12]}"
    with psycopg.connect(addresses.postgres, autocommit=True) as admin:
        admin.execute(sql.SQL("CREATE ROLE {} SUPERUSER LOGIN PASSWORD 'x'").format(sql.Identifier(name)))
        yield name


@pytest.fixture
def database_of_role(addresses: Addresses, role: str) -> Iterator[str]:
    """The connection string, as the role, of a database that is empty but for a schema."""
    name = f"test_{uuid.uuid4().hex}"
    with psycopg.connect(addresses.postgres, autocommit=True) as admin:
        admin.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        with psycopg.connect(make_conninfo(addresses.postgres, dbname=name), autocommit=True) as inside:
            inside.execute("CREATE SCHEMA elsewhere")
        yield make_conninfo(addresses.postgres, dbname=name, user=role, password="x")
        admin.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))
        admin.execute(sql.SQL("DROP ROLE {}").format(sql.Identifier(role)))


def records() -> list[bytes]:
    """Things with every kind of value; the last one is rejected."""
    made = [Thing(id=number) if "id" in Thing.DESCRIPTOR.fields_by_name else Thing() for number in range(3)]
    for number, thing in enumerate(made):
        for field in thing.DESCRIPTOR.fields:
            _fill(thing, field, number + 1)
    return [thing.SerializeToString() for thing in made] + [b"\x08"]


def _fill(thing: Any, field: Any, number: int) -> None:
    values: dict[int, object] = {
        field.TYPE_DOUBLE: number / 3,
        field.TYPE_FLOAT: number / 7,
        field.TYPE_STRING: "",
        field.TYPE_BYTES: b"",
        field.TYPE_BOOL: True,
    }
    if field.is_repeated or field.type in (field.TYPE_MESSAGE, field.TYPE_ENUM, field.TYPE_GROUP):
        return
    if field.type in values:
        if values[field.type] not in ("", b""):
            setattr(thing, field.name, values[field.type])
    else:
        setattr(thing, field.name, number)


async def use(postgres: str) -> tuple[object, ...]:
    """Walk every path of server and worker to PostgreSQL; return what callers were answered and the tables have."""
    schema.migrate(postgres)
    schema.check_server(postgres)
    check_schema(postgres)
    spec = JobSpec(JobKey.derive("acme", "k"), "k", THINGS.name, 1, {"ä": "日本\\n"}, JobOptions())
    atomic = JobSpec(JobKey.derive("acme", "a"), "a", THINGS.name, 1, {}, JobOptions(atomic=True))
    opened = datetime(2026, 2, 3, 4, 5, 6, 789, tzinfo=UTC)
    async with make_pool(postgres) as pool:
        catalog, jobs = Catalog(pool), JobStore(pool)
        planned = await catalog.plan(THINGS)
        registered = await catalog.register(THINGS)
        assert (await catalog.register(THINGS)) == registered, "the same again changes nothing"
        assert (await catalog.get(THINGS.name)) == registered
        assert list(await catalog.list(10)) == [registered]
        first = await jobs.open_job(spec, (0,), opened)
        await jobs.open_job(atomic, (0,), opened)
        _write(postgres, spec, atomic)
        listed = await jobs.list_jobs("acme", 10, None)
        assert {job.spec.key for job in listed} == {spec.key, atomic.key}
        found = [await jobs.get_job(key) for key in (spec.key, atomic.key)]
        digests = await jobs.digests(spec.key, 0, 10)
        rejected = await jobs.rejections(spec.key.job_id, 10, RejectionPosition(), include_records=True)
        assert await jobs.delete_job(spec.key)
    _maintain(postgres)
    ended = [None if job is None else (job.state, job.counts, job.spec, job.create_time) for job in found]
    return (
        planned,
        first,
        ended,
        digests,
        [dataclasses.astuple(rejection) for _, rejection in rejected],
        _rows(postgres),
    )


def _write(postgres: str, *specs: JobSpec) -> None:
    ledger, registry, writer = PostgresLedger(postgres, TOPIC), PostgresDatasetRegistry(postgres), None
    epoch = ledger.acquire([0])[0].owner_epoch
    made, items = records(), list[Received]()
    payload = examples.batch_of(made)
    for spec in specs:
        whole = payload if not spec.options.atomic else examples.batch_of(made[:-1])
        count = len(made) if not spec.options.atomic else len(made) - 1
        batch = Message(Kind.BATCH, spec, 0, 0, count, 0, datetime.now(UTC), digest=digest_of(whole))
        seal = Message(Kind.SEAL, spec, 0, 1, 0, count, datetime.now(UTC))
        items += [Received(0, len(items), batch, whole), Received(0, len(items) + 1, seal, b"")]
    chunk = Chunk((Span(0, 0, len(items), epoch),), tuple(items), sum(item.message.records for item in items))
    writer = PostgresChunkWriter(postgres, TOPIC)
    try:
        writer.write(prepare(chunk, registry.codec))
    finally:
        writer.close()
    tasks = PostgresApplyTasks(postgres)
    assert ApplyThread(tasks, TaskKind.SMALL, threading.Event()).round() == 0.0
    tasks.close()
    assert ledger.read([0])[0].next_offset == len(items)


def _maintain(postgres: str) -> None:
    store = PostgresMaintenanceStore(postgres, TOPIC)
    assert store.is_leader()
    store.maintain_days(7)
    assert store.maintain_partitions(datetime.now(UTC).date()) == ()
    store.expire_abandoned({0: 4}, 60)
    store.delete_orphaned_staged_rows()
    store.rotate_dedupe()
    store.build_filters()
    store.count_overdue()
    store.close()


def _rows(postgres: str) -> list[tuple[object, ...]]:
    """Return the table's rows as text, in a session without the role's settings."""
    with connect(postgres, "tests") as connection:
        connection.execute("SET TimeZone = 'UTC'")
        statement = sql.SQL("SELECT t::text FROM {} t ORDER BY 1").format(sql.Identifier("public", THINGS.name))
        return connection.execute(statement).fetchall()


EXPECTED: list[tuple[object, ...]] = []


@pytest.mark.parametrize(("setting", "value"), [("application_name", "harmless"), *HOSTILE])
async def test_no_default_of_a_role_changes_what_is_stored_or_answered(
    addresses: Addresses, role: str, database_of_role: str, setting: str, value: str
) -> None:
    if not EXPECTED:
        EXPECTED.append(await use(database_of_role))
        with psycopg.connect(make_conninfo(database_of_role, dbname="postgres"), autocommit=True) as admin:
            name = sql.Identifier(str(psycopg.conninfo.conninfo_to_dict(database_of_role)["dbname"]))
            admin.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(name))
            admin.execute(sql.SQL("CREATE DATABASE {}").format(name))
    with psycopg.connect(addresses.postgres, autocommit=True) as admin:
        what = sql.SQL("ALTER ROLE {} SET {} = {}")
        try:
            admin.execute(what.format(sql.Identifier(role), sql.SQL(setting), sql.Literal(value)))
        except psycopg.errors.InvalidParameterValue:
            pytest.skip(f"this server has no {setting} = {value}")
    assert (await use(database_of_role)) == EXPECTED[0]


@pytest.mark.parametrize("setting", SESSION)
async def test_every_connection_has_the_settings_that_the_service_relies_on(database: str, setting: str) -> None:
    def found(connection: Any) -> Any:
        return connection.execute(sql.SQL("SHOW {}").format(sql.SQL(setting)))

    async with make_pool(database) as pool, pool.connection() as connection:
        of_server = await (await found(connection)).fetchone()
    with connect(database, "tests") as worker:
        of_worker = found(worker).fetchone()
    assert of_server == of_worker
    assert of_worker is not None
    assert of_worker[0].startswith(SESSION[setting])


def test_options_of_the_connection_string_stay_but_for_ours() -> None:
    theirs = make_conninfo("", options="-c search_path=app -c DateStyle=German")
    made = str(psycopg.conninfo.conninfo_to_dict(conninfo(theirs, "tests"))["options"])
    assert made.startswith("-c search_path=app -c DateStyle=German -c ")
    assert made.index("DateStyle=ISO") > made.index("DateStyle=German")
