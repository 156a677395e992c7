"""A PostgreSQL that answers and takes no writes, as a standby does, or a primary during a fail-over."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import grpc
import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict

from bulkgrpc.consume.ports import StoreUnavailable
from bulkgrpc.errors import Reason
from bulkgrpc.ingest.ports import PostgresUnavailable
from bulkgrpc.model import JobKey
from bulkgrpc.postgres import schema
from bulkgrpc.postgres.catalog import Catalog
from bulkgrpc.postgres.connection import connect
from bulkgrpc.postgres.deadlines import make_pool
from bulkgrpc.postgres.jobs import JobStore
from bulkgrpc.postgres.maintenance_store import PostgresMaintenanceStore
from bulkgrpc.postgres.worker_ports import PostgresLedger
from bulkgrpc.settings import ServerSettings
from bulkgrpc.stack import Addresses, Stack
from bulkgrpc.stack.part import Part
from bulkgrpc.v1 import datasets_pb2, jobs_pb2
from tests.integration.server_peer import DEADLINE_S, Peer, ServeWith, batch, header, refusal, registration
from tests.integration.server_peer import eventually as eventually_
from tests.support import examples
from tests.support.processes import Process
from tests.support.waiting import eventually

pytest_plugins = ["tests.integration.server_parts"]


class Switch:
    """Makes a database read-only for new sessions, and ends the others; or writable again."""

    def __init__(self, postgres: str, admin: str) -> None:
        self._name, self._admin = str(conninfo_to_dict(postgres)["dbname"]), admin

    def read_only(self) -> None:
        self._alter("SET default_transaction_read_only = on")
        with psycopg.connect(self._admin, autocommit=True) as admin:
            admin.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", [self._name])

    def writable(self) -> None:
        """Sessions that are open stay read-only."""
        self._alter("RESET default_transaction_read_only")

    def _alter(self, what: str) -> None:
        with psycopg.connect(self._admin, autocommit=True) as admin:
            admin.execute(sql.SQL(f"ALTER DATABASE {{}} {what}").format(sql.Identifier(self._name)))


@pytest.fixture
def switch(database: str, addresses: Addresses) -> Iterator[Switch]:
    made = Switch(database, addresses.postgres)
    yield made
    made.writable()


@pytest.fixture
def server_database(database: str) -> str:
    """A database of the test's own, instead of the session's."""
    return database


@pytest.fixture
async def one(serve_with: ServeWith) -> AsyncIterator[Peer]:
    async with serve_with() as (_, client):
        yield client


async def test_every_rpc_that_writes_is_refused_as_unavailable_and_streams_are_accepted(
    one: Peer, switch: Switch
) -> None:
    name = (await one.submit(header(), batch(0))).job.name
    options: Any = {"metadata": one.metadata, "timeout": DEADLINE_S}
    await one.datasets.RegisterDataset(registration("FleetReading"), **options)
    ended = (await one.submit(header(), batch(0))).job.name
    await one.jobs.CancelJob(jobs_pb2.CancelJobRequest(name=ended), **options)
    switch.read_only()

    async def answered() -> bool:
        # The pool replaces the sessions that the switch ended: until then it may have none in time.
        try:
            await one.job(name)
        except grpc.aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.UNAVAILABLE:
                raise
            return False
        return True

    await eventually_(answered)
    writes: dict[str, Callable[[], Awaitable[object]]] = {
        "register": lambda: one.datasets.RegisterDataset(registration("Trade", "trades.proto"), **options),
        "delete dataset": lambda: one.datasets.DeleteDataset(
            datasets_pb2.DeleteDatasetRequest(name="datasets/fleet_readings"), **options
        ),
        "cancel": lambda: one.jobs.CancelJob(jobs_pb2.CancelJobRequest(name=name), **options),
        "delete job": lambda: one.jobs.DeleteJob(jobs_pb2.DeleteJobRequest(name=ended), **options),
    }
    for what, write in writes.items():
        code, refused = await refusal(write())
        assert (code, refused.reason) == (grpc.StatusCode.UNAVAILABLE, Reason.POSTGRES_UNAVAILABLE), what
        assert refused.retry_after_s > 0
        assert "read-only" in refused.message
        assert refused.metadata == {"sqlstate": "25006"}
    # The failure table: without PostgreSQL jobs are accepted. Reads are answered.
    assert (await one.whole(header(), batch(0)))[-1].HasField("sealed")
    assert (await one.submit(header(), batch(0))).job.counts.accepted == 2
    assert (await one.job(name)).name == name
    switch.writable()

    async def registered() -> bool:
        # The pool's connections are still read-only: each is replaced once it was tried.
        try:
            await one.datasets.RegisterDataset(registration("Trade", "trades.proto"), **options)
        except grpc.aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.UNAVAILABLE:
                raise
            return False
        return True

    await eventually_(registered)


async def test_partitions_are_acquired_once_postgresql_takes_writes(database: str, switch: Switch) -> None:
    switch.read_only()
    with pytest.raises(StoreUnavailable, match="read-only"):
        PostgresLedger(database, "records").acquire([0])
    store = PostgresMaintenanceStore(database, "records")
    with pytest.raises(StoreUnavailable, match="read-only"):
        store.is_leader()
    assert not store.connected, "a session with a standby is not kept"
    switch.writable()
    assert store.is_leader()
    store.maintain_partitions(datetime.now(UTC).date())
    store.close()


async def test_a_worker_that_starts_on_a_read_only_postgresql_waits(
    one: Peer, server_settings: ServerSettings, switch: Switch, addresses: Addresses, tmp_path: Path
) -> None:
    environment = {
        **addresses.environment(),
        "BULKGRPC_POSTGRES": server_settings.postgres,
        "BULKGRPC_TOPIC": server_settings.topic,
        "BULKGRPC_GROUP": server_settings.topic,
    }
    job = (await one.submit(header(), batch(0))).job.name
    switch.read_only()
    worker = Process("workers.process", (), environment, tmp_path / "worker.log")
    worker.start()
    try:
        await eventually(lambda: worker.log.read_text().count("postgres_unavailable") >= 2)
        assert worker.ended is None
        switch.writable()
        key = JobKey.parse(job)
        assert key is not None

        def written() -> bool:
            with psycopg.connect(server_settings.postgres) as connection:
                row = connection.execute("SELECT state FROM bulk.jobs WHERE job_id = %s", [key.job_id]).fetchone()
            return row is not None and row[0] >= 3

        await eventually(written)
        assert worker.ended is None
    finally:
        worker.stop()


@pytest.fixture
def own_postgres(data_dir: Path) -> Part:
    """A PostgreSQL of the test's own, with our schema."""
    part = Stack(data_dir).part("postgres")
    part.start()
    schema.migrate(part.address)
    return part


async def test_a_hot_standby_is_unavailable_for_writes_and_answers_reads(own_postgres: Part, data_dir: Path) -> None:
    address, data = own_postgres.address, data_dir / "postgres" / "data"
    PostgresLedger(address, "records").acquire([0])
    key = JobKey.derive("acme", "k")
    async with make_pool(address) as pool:
        catalog, jobs = Catalog(pool), JobStore(pool)
        await catalog.register(examples.readings())
        own_postgres.stop()
        standby = data / "standby.signal"
        standby.touch()
        os.chown(standby, data.stat().st_uid, data.stat().st_gid)
        with pytest.raises(PostgresUnavailable):
            await catalog.register(examples.readings())
        own_postgres.start()
        with connect(address, "tests") as connection:
            assert connection.execute("SELECT pg_is_in_recovery()").fetchone() == (True,)
        for write in (lambda: catalog.register(examples.trades()), lambda: jobs.cancel_job(key)):
            with pytest.raises(PostgresUnavailable) as refused:
                await retried(write)
            assert refused.value.sqlstate == "25006"
        assert await catalog.get("sensor_readings") is not None
        assert await jobs.get_job(key) is None
        with pytest.raises(StoreUnavailable, match="read-only"):
            PostgresLedger(address, "records").acquire([0])
        assert PostgresLedger(address, "records").read([0])[0].owner_epoch == 1
        own_postgres.stop()
        standby.unlink()
        own_postgres.start()
        await retried(lambda: catalog.register(examples.trades()))
        assert PostgresLedger(address, "records").acquire([0])[0].owner_epoch == 2


async def retried(call: Callable[[], Awaitable[object]]) -> object:
    """Call until PostgreSQL answers: the pool needs a moment to connect again."""
    async with asyncio.timeout(DEADLINE_S):
        while True:
            try:
                return await call()
            except PostgresUnavailable as error:
                if error.sqlstate == "25006":
                    raise
            await asyncio.sleep(0.05)
