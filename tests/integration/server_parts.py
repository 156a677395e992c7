"""Fixtures of the server's tests, a pytest plugin: a database of the session, a server of the test."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from urllib.parse import urlsplit, urlunsplit

import psycopg
import pytest

from bulkgrpc.postgres import schema
from bulkgrpc.server.serving import Serving, serving
from bulkgrpc.settings import ServerSettings, load
from bulkgrpc.stack import Addresses
from tests.integration.server_peer import Peer, ServeWith, peer


@pytest.fixture(scope="session")
def server_database(addresses: Addresses) -> Iterator[str]:
    """A database of the session with the schema in it."""
    name = f"server_{uuid.uuid4().hex[:8]}"
    with psycopg.connect(addresses.postgres, autocommit=True) as connection:
        connection.execute(f'CREATE DATABASE "{name}"'.encode())
    parts = urlsplit(addresses.postgres)
    url = urlunsplit(parts._replace(path=f"/{name}"))
    schema.migrate(url)
    yield url
    with psycopg.connect(addresses.postgres, autocommit=True) as connection:
        connection.execute(f'DROP DATABASE "{name}" WITH (FORCE)'.encode())


@pytest.fixture
def server_settings(addresses: Addresses, server_database: str) -> ServerSettings:
    """Settings of a server with a topic of its own."""
    return load(
        ServerSettings,
        kafka=addresses.kafka,
        postgres=server_database,
        redis=addresses.redis,
        topic=f"server-{uuid.uuid4().hex[:8]}",
        partitions=2,
        listen="127.0.0.1:0",
        drain_s=0.0,
    )


@pytest.fixture
def serve_with(server_settings: ServerSettings) -> ServeWith:
    """Serve with settings changed, the example's dataset registered."""

    @asynccontextmanager
    async def serve(**changes: object) -> AsyncIterator[tuple[Serving, Peer]]:
        # A function: what is known only once a proxy listens.
        found = {name: change() if callable(change) else change for name, change in changes.items()}
        settings = server_settings.model_copy(update=found)
        async with serving(settings) as running, peer(running.address) as client:
            if settings.auth == "none":
                await client.register()
            yield running, client

    return serve


@pytest.fixture
async def client(serve_with: ServeWith) -> AsyncIterator[Peer]:
    """A client, as tenant `default`, of a server with the usual settings."""
    async with serve_with() as (_, one):
        yield one
