"""PgBouncer between the service and PostgreSQL: migration, registration, and jobs of every kind."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from bulkgrpc.client import AsyncBulkClient, Batch, JobOptions, JobState
from bulkgrpc.datasets.sources import compile_proto, proto_root
from bulkgrpc.postgres import schema
from bulkgrpc.postgres.connection import Deadlines, connect
from bulkgrpc.postgres.deadlines import make_pool
from bulkgrpc.stack import Addresses
from tests.conftest import new_data_dir
from tests.support.examples import batch_of, reading, reading_batch
from tests.support.pgbouncer import needs_pgbouncer, pgbouncer
from tests.support.processes import service

SUPPORT = Path(__file__).parents[1] / "support"
IGNORES = "ignore_startup_parameters = options,extra_float_digits"

pytestmark = needs_pgbouncer


@pytest.fixture(scope="module", params=["transaction", "session", "transaction, which drops options"])
def pooled(request: pytest.FixtureRequest, addresses: Addresses) -> Iterator[str]:
    """An empty database, through a PgBouncer with a small pool."""
    name = f"pooled_{uuid.uuid4().hex[:8]}"
    mode = request.param.partition(",")
    directory = new_data_dir()
    with psycopg.connect(addresses.postgres, autocommit=True) as admin:
        admin.execute(f"CREATE DATABASE {name}".encode())
        direct = make_conninfo(addresses.postgres, dbname=name)
        # A session keeps its connection of PostgreSQL: a server and a worker have about 20.
        size = 40 if mode[0] == "session" else 4
        with pgbouncer(
            direct, directory / "pooler", mode[0], pool_size=size, more=IGNORES if mode[2] else ""
        ) as through:
            yield through
        admin.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())
    shutil.rmtree(directory)


def test_a_transaction_has_our_settings_and_leaves_none(pooled: str) -> None:
    deadlines = Deadlines(statement_s=7.0, idle_in_transaction_s=8.0)
    with connect(pooled, "tests", deadlines, {"plan_cache_mode": "force_generic_plan"}) as connection:
        query = "SELECT current_setting('statement_timeout'), current_setting('plan_cache_mode')"
        assert connection.execute(query).fetchone() == ("7s", "force_generic_plan")
        with connection.transaction():
            assert connection.execute(query).fetchone() == ("7s", "force_generic_plan")
            with connection.transaction():
                assert connection.execute("SELECT 1").fetchone() == (1,)
        assert connection.execute("SHOW DateStyle").fetchone() == ("ISO, MDY",)
    with psycopg.connect(pooled, autocommit=True, prepare_threshold=None) as stranger:
        assert stranger.execute(query).fetchone() == ("0", "auto")


def test_an_option_of_the_operators_counts(pooled: str) -> None:
    with connect(make_conninfo(pooled, options=r"-c work_mem=7MB -c search_path=a,\ b"), "tests") as connection:
        found = connection.execute("SELECT current_setting('work_mem'), current_setting('search_path')").fetchone()
        assert found == ("7MB", "a, b")


async def test_the_pool_of_a_server_has_its_deadlines(pooled: str) -> None:
    async with make_pool(pooled) as pool, pool.connection() as connection:
        cursor = await connection.execute("SHOW statement_timeout")
        assert (await cursor.fetchone()) not in (None, ("0",))


async def test_jobs_of_every_kind_are_written(pooled: str, addresses: Addresses, tmp_path: Path) -> None:
    schema.migrate(pooled)
    schema.migrate(pooled)
    topic = f"topic-{uuid.uuid4().hex[:8]}"
    environment = {
        **addresses.environment(),
        "BULKGRPC_POSTGRES": pooled,
        "BULKGRPC_TOPIC": topic,
        "BULKGRPC_GROUP": topic,
        "BULKGRPC_PARTITIONS": "2",
        "BULKGRPC_MAINTENANCE_INTERVAL_S": "0.3",
    }
    with service(environment, tmp_path, workers=2) as running:
        async with AsyncBulkClient(running.address) as client:
            for policy in ("ignore", "update", "reject"):
                await use(client, policy)
            await client.register_dataset(
                compile_proto(proto_root() / "examples" / "v1" / "sensors.proto"), "examples.v1.FleetReading"
            )
            batches = [Batch(reading_batch(number * 200, 200), 200) for number in range(20)]
            ended = await (await client.submit("fleet_readings", batches)).wait()
            assert (ended.state, ended.counts.written) == (JobState.SUCCEEDED, 4000)
        logs = [process.log.read_text() for process in (running.server, *running.workers)]
    for log in logs:
        assert "error" not in log.lower(), log
        assert "failed" not in log, log
    with psycopg.connect(pooled, autocommit=True, prepare_threshold=None) as connection:
        left = connection.execute(
            "SELECT count(*) FROM pg_class WHERE relpersistence = 't' AND relname LIKE 'bulkgrpc%'"
        ).fetchone()
        assert left == (0,), "no temporary table outlasts its transaction"


async def use(client: AsyncBulkClient, policy: str) -> None:
    """Stream, repeat, reject by the table, and submit atomically, under a conflict policy and with dedupe."""
    name = f"remembered_{policy}"
    await client.register_dataset(
        compile_proto(SUPPORT / "remembered.proto"), f"tests.v1.Remembered{policy.capitalize()}"
    )
    for start, atomic in ((0, False), (10_000, True)):
        batches = [Batch(reading_batch(start + number * 500, 500), 500) for number in range(4)]
        ended = await (await client.submit(name, batches, options=JobOptions(atomic=atomic))).wait()
        assert (ended.state, ended.counts.written) == (JobState.SUCCEEDED, 2000), ended
        again = await (await client.submit(name, batches, options=JobOptions(atomic=atomic))).wait()
        assert (again.counts.written, again.counts.duplicate) == (0, 2000), again
    ended = await (await client.submit(name, [Batch(batch_of([reading("S", 1, 1.0), reading("S", 1, 2.0)]), 2)])).wait()
    counts = {"ignore": (1, 1, 0), "update": (2, 0, 0), "reject": (1, 0, 1)}[policy]
    assert (ended.counts.written, ended.counts.duplicate, ended.counts.rejected) == counts, ended
