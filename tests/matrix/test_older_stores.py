"""The oldest stores that are supported: Redis 7 instead of Valkey 9, and Kafka 3.9 with the classic group protocol.

PostgreSQL 13 and 15: `make matrix` runs the tests of the writers, and these, on them.
"""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import make_conninfo
from redis import Redis

from bulkgrpc.postgres import schema
from bulkgrpc.stack import Addresses
from bulkgrpc.stack.kafka import Kafka
from bulkgrpc.stack.part import Part
from bulkgrpc.stack.state import StateFile
from tests.conftest import new_data_dir
from tests.integration.test_secure_redis import running
from tests.matrix.jobs import write_every_kind
from tests.support.processes import service

REDIS = shutil.which("redis-server")
KAFKA_JARS = os.environ.get("BULKGRPC_TEST_KAFKA_JARS")
needs_older_kafka = pytest.mark.skipif(
    not KAFKA_JARS, reason="BULKGRPC_TEST_KAFKA_JARS is not set: python -m tools.older_kafka"
)


@pytest.fixture
def environment(addresses: Addresses) -> Iterator[dict[str, str]]:
    """The stores of the session, with a database and a topic of its own."""
    name = f"older_{uuid.uuid4().hex[:8]}"
    with psycopg.connect(addresses.postgres, autocommit=True) as admin:
        admin.execute(f"CREATE DATABASE {name}".encode())
        own = make_conninfo(addresses.postgres, dbname=name)
        schema.migrate(own)
        yield {
            **addresses.environment(),
            "BULKGRPC_POSTGRES": own,
            "BULKGRPC_TOPIC": f"{name}.records",
            "BULKGRPC_GROUP": name,
        }
        admin.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())


async def write(environment: dict[str, str], logs: Path) -> None:
    """Write jobs of every kind."""
    with service(environment, logs) as found:
        await write_every_kind(found.address, environment["BULKGRPC_POSTGRES"], "bulkgrpc")


@pytest.mark.parametrize("protocol", ["consumer", "classic"])
async def test_jobs_of_every_kind_are_written(environment: dict[str, str], tmp_path: Path, protocol: str) -> None:
    await write({**environment, "BULKGRPC_GROUP_PROTOCOL": protocol}, tmp_path)


@pytest.mark.skipif(REDIS is None, reason="no Redis is installed: apt-get install redis-server")
async def test_jobs_of_every_kind_are_written_with_redis(environment: dict[str, str], tmp_path: Path) -> None:
    arguments = ["--bind", "127.0.0.1", "--save", "", "--dir", str(tmp_path), "--maxmemory-policy", "noeviction"]
    with running(lambda port: ["--port", str(port), *arguments], str(REDIS)) as port:
        await write({**environment, "BULKGRPC_REDIS": f"redis://127.0.0.1:{port}/0"}, tmp_path)
        with Redis("127.0.0.1", port) as client:
            assert client.info("server")["redis_version"].startswith("7.")
            assert client.dbsize()


class OlderKafka(Kafka):
    """The broker of an older release, from other jars."""

    def settings(self, ports: Mapping[str, int]) -> str:
        """Return the text of server.properties."""
        return f"{super().settings(ports)}group.coordinator.rebalance.protocols=classic\n"

    def _java(self, *options: str) -> list[str]:
        *command, _ = super()._java(*options)
        return [*command, f"{KAFKA_JARS}/*"]


@pytest.fixture
def older_kafka() -> Iterator[str]:
    """The address of a Kafka 3.9."""
    directory = new_data_dir()
    state = StateFile(directory)
    part = Part(OlderKafka(directory / "kafka", 384), state)
    part.start()
    try:
        yield part.address
    finally:
        part.stop()
        shutil.rmtree(directory)


@needs_older_kafka
async def test_jobs_of_every_kind_are_written_with_kafka_3_9(
    environment: dict[str, str], older_kafka: str, tmp_path: Path
) -> None:
    own = {**environment, "BULKGRPC_KAFKA": older_kafka, "BULKGRPC_GROUP_PROTOCOL": "classic"}
    await write(own, tmp_path)
