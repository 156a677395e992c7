"""`bulkgrpc up --secure`: TLS and authentication on for all stores and the server at once, PgBouncer in between."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest
import redis
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from typer.testing import CliRunner

from bulkgrpc.cli.app import app
from bulkgrpc.client import AsyncBulkClient, BulkError, Tls
from bulkgrpc.datasets.sources import proto_root
from bulkgrpc.kafka.connection import KafkaUnavailable
from bulkgrpc.kafka.topics import ensure_topic
from bulkgrpc.postgres import schema
from bulkgrpc.settings import StackSettings, load
from bulkgrpc.stack.secure import debian_postgres, redis_with_tls
from tests.conftest import new_data_dir
from tests.matrix.jobs import write_every_kind
from tests.support.pgbouncer import needs_pgbouncer, pgbouncer
from tests.support.processes import Service, service

SENSORS = proto_root() / "examples" / "v1" / "sensors.proto"
needs_tls = pytest.mark.skipif(
    debian_postgres() is None or redis_with_tls() is None,
    reason="no PostgreSQL or Redis with TLS is installed: apt-get install postgresql redis-server",
)


def bulkgrpc(*arguments: str | Path, **environment: str) -> str:
    """Run a command as a user does; return what it prints on stdout."""
    command = [str(Path(sys.executable).with_name("bulkgrpc")), *map(str, arguments)]
    done = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def data_dir() -> Iterator[Path]:
    directory = new_data_dir()
    yield directory
    bulkgrpc("down", "--delete", "--data-dir", directory)
    shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture(scope="module")
def environment(data_dir: Path) -> dict[str, str]:
    """What `up --secure` prints, with a migrated database."""
    found: dict[str, str] = json.loads(bulkgrpc("up", "--secure", "--data-dir", data_dir, "--json"))["environment"]
    schema.migrate(found["BULKGRPC_POSTGRES"])
    return found


def with_database(environment: dict[str, str], name: str) -> dict[str, str]:
    """The same with a database and a topic of their own."""
    postgres = environment["BULKGRPC_POSTGRES"]
    with psycopg.connect(postgres, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}".encode())
    own = make_conninfo(postgres, dbname=name)
    schema.migrate(own)
    return {**environment, "BULKGRPC_POSTGRES": own, "BULKGRPC_TOPIC": f"{name}.records", "BULKGRPC_GROUP": name}


@contextmanager
def behind_pgbouncer(environment: dict[str, str]) -> Iterator[dict[str, str]]:
    """The same through a PgBouncer that takes TLS only, and checks the certificate of PostgreSQL."""
    authority, files = environment["BULKGRPC_TLS_CA"], new_data_dir()
    for name in ("BULKGRPC_TLS_CERTIFICATE", "BULKGRPC_TLS_KEY", "BULKGRPC_TLS_CA"):
        # PgBouncer does not run as root.
        shutil.copy(environment[name], files / name)
        (files / name).chmod(0o644)
    tls = {
        "client_tls_sslmode": "require",
        "client_tls_cert_file": files / "BULKGRPC_TLS_CERTIFICATE",
        "client_tls_key_file": files / "BULKGRPC_TLS_KEY",
        "server_tls_sslmode": "verify-full",
        "server_tls_ca_file": files / "BULKGRPC_TLS_CA",
    }
    more = "\n".join(f"{name} = {value}" for name, value in tls.items())
    with pgbouncer(environment["BULKGRPC_POSTGRES"], files / "pooler", "transaction", more=more) as through:
        assert conninfo_to_dict(through)["sslrootcert"] == authority
        yield {**environment, "BULKGRPC_POSTGRES": through}
    shutil.rmtree(files)


async def write(environment: dict[str, str], postgres: str, logs: Path) -> None:
    with service(environment, logs) as running:
        await write_every_kind(
            running.address,
            postgres,
            "bulkgrpc",
            token=environment["BULKGRPC_TOKEN"],
            ca=Path(environment["BULKGRPC_TLS_CA"]),
        )


@needs_tls
@pytest.mark.parametrize("protocol", ["consumer", "classic"])
async def test_jobs_of_every_kind_are_written(environment: dict[str, str], tmp_path: Path, protocol: str) -> None:
    own = {**with_database(environment, f"of_{protocol}"), "BULKGRPC_GROUP_PROTOCOL": protocol}
    await write(own, own["BULKGRPC_POSTGRES"], tmp_path)


@needs_tls
@needs_pgbouncer
async def test_jobs_of_every_kind_are_written_through_pgbouncer(environment: dict[str, str], tmp_path: Path) -> None:
    own = with_database(environment, "pooled")
    with behind_pgbouncer(own) as pooled:
        await write(pooled, own["BULKGRPC_POSTGRES"], tmp_path)


@pytest.fixture
def running(environment: dict[str, str], tmp_path: Path) -> Iterator[Service]:
    with service(environment, tmp_path, workers=1) as found:
        yield found


def test_the_printed_settings_are_all_that_the_command_line_needs(
    environment: dict[str, str], running: Service, tmp_path: Path
) -> None:
    rows = tmp_path / "rows.csv"
    rows.write_text("sensor_id,value,sampled_at\ns1,1,2026-01-01T00:00:00Z\ns2,2,2026-01-01T00:00:00Z\n")
    own = {**environment, "BULKGRPC_SERVER": running.address}
    bulkgrpc("datasets", "register", SENSORS, "--message", "examples.v1.SensorReading", **own)
    loaded: dict[str, Any] = json.loads(bulkgrpc("load", rows, "--dataset", "sensor_readings", "--json", **own))
    assert loaded["job"]["counts"]["written"] == 2


async def test_who_comes_without_credentials_is_refused_everywhere(
    environment: dict[str, str], running: Service
) -> None:
    ca = Path(environment["BULKGRPC_TLS_CA"])
    async with AsyncBulkClient(running.address, tenant="default", tls=Tls(ca=ca)) as client:
        with pytest.raises(BulkError) as refused:
            [one async for one in client.list_datasets()]
        assert refused.value.reason == "NO_TOKEN"
    with pytest.raises(KafkaUnavailable):
        ensure_topic(load(StackSettings, kafka=environment["BULKGRPC_KAFKA"], kafka_properties={}))
    url = environment["BULKGRPC_REDIS"]
    with redis.Redis.from_url(url.replace("bulkgrpc:", "bulkgrpc:x")) as wrong, pytest.raises(redis.RedisError):
        wrong.get("bulk:x")
    for change in ({"password": "x"}, {"sslmode": "disable"} if debian_postgres() else {"user": "nobody"}):
        with pytest.raises(psycopg.OperationalError):
            psycopg.connect(make_conninfo(environment["BULKGRPC_POSTGRES"], **change))


def test_secrets_are_the_owners_and_stay_the_same(environment: dict[str, str], data_dir: Path) -> None:
    files = [*(data_dir / "secure").iterdir(), data_dir / "secure"]
    assert {stat.S_IMODE(path.stat().st_mode) & 0o077 for path in files} == {0}
    # Without --secure: it stays secure.
    again = json.loads(bulkgrpc("up", "--data-dir", data_dir, "--json"))["environment"]
    assert {**again, "BULKGRPC_TOKEN": ""} == {**environment, "BULKGRPC_TOKEN": ""}


def test_a_stack_that_has_data_does_not_become_secure(tmp_path: Path) -> None:
    (tmp_path / "stack.json").write_text('{"version": 1, "ports": {}, "processes": {}}')
    done = CliRunner().invoke(app, ["up", "--secure", "--data-dir", str(tmp_path)])
    assert done.exit_code == 1
    assert "was started without --secure" in done.output
