"""Fixtures of the client's and the command line's tests, a pytest plugin: one server and one worker for the session."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Iterator

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo

from bulkgrpc.client import AsyncBulkClient
from bulkgrpc.datasets.sources import compile_proto, proto_root
from bulkgrpc.postgres import schema
from bulkgrpc.stack import Addresses
from tests.integration.service_values import Command, Parts
from tests.support.processes import Service, service

MESSAGES = {"flights": ("Weather", "Flight"), "trades": ("Trade",), "sensors": ("SensorReading",)}


@pytest.fixture(scope="session")
def parts(addresses: Addresses) -> Iterator[Parts]:
    """A migrated database, a topic and a consumer group that nothing else uses."""
    name = f"client_{uuid.uuid4().hex[:8]}"
    with psycopg.connect(addresses.postgres, autocommit=True) as admin:
        admin.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
    postgres = make_conninfo(addresses.postgres, dbname=name)
    schema.migrate(postgres)
    own = {"BULKGRPC_POSTGRES": postgres, "BULKGRPC_TOPIC": name, "BULKGRPC_GROUP": name}
    yield Parts({**addresses.environment(), **own}, postgres)
    with psycopg.connect(addresses.postgres, autocommit=True) as admin:
        admin.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


@pytest.fixture(scope="session")
def running(parts: Parts, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A server and a worker, with the example datasets registered."""
    with service(parts.environment, tmp_path_factory.mktemp("service"), workers=1) as processes:
        asyncio.run(_register(processes.address))
        yield processes


async def _register(address: str) -> None:
    async with AsyncBulkClient(address) as client:
        for file, messages in MESSAGES.items():
            descriptors = compile_proto(proto_root() / "examples" / "v1" / f"{file}.proto")
            for message in messages:
                await client.register_dataset(descriptors, f"examples.v1.{message}")


@pytest.fixture
def tenant() -> str:
    """A tenant of the test's own, so that its rows and jobs are."""
    return f"t-{uuid.uuid4().hex[:12]}"


@pytest.fixture
def command(running: Service, tenant: str) -> Command:
    """The command line for the session's server and the test's tenant."""
    return Command(running.address, tenant)


@pytest.fixture
async def client(running: Service, tenant: str) -> AsyncIterator[AsyncBulkClient]:
    """A client of the session's server for the test's tenant."""
    async with AsyncBulkClient(running.address, tenant=tenant) as connected:
        yield connected
