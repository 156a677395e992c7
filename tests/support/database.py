"""A migrated database of a test's own, made from a template that is migrated once a session."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo

from bulkgrpc.datasets.ddl import create_table
from bulkgrpc.datasets.definition import Dataset
from bulkgrpc.datasets.meaning import digest_of_schema
from bulkgrpc.postgres import dedupe, schema, staged
from bulkgrpc.postgres.connection import connect
from bulkgrpc.postgres.statements import family
from bulkgrpc.stack import Addresses

Connection = psycopg.Connection[tuple[Any, ...]]


@pytest.fixture(scope="session")
def template(addresses: Addresses) -> str:
    """The name of a migrated database without connections."""
    name = f"template_{uuid.uuid4().hex}"
    with connect(addresses.postgres, "tests") as admin:
        admin.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
    schema.migrate(make_conninfo(addresses.postgres, dbname=name))
    return name


@pytest.fixture
def database(addresses: Addresses, template: str) -> Iterator[str]:
    """The connection string of a migrated database of this test's own."""
    name = f"test_{uuid.uuid4().hex}"
    with connect(addresses.postgres, "tests") as admin:
        names = {"name": sql.Identifier(name), "template": sql.Identifier(template)}
        admin.execute(sql.SQL("CREATE DATABASE {name} TEMPLATE {template}").format(**names))
        yield make_conninfo(addresses.postgres, dbname=name)
        admin.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


@pytest.fixture
def connection(database: str) -> Iterator[Connection]:
    """A connection as a worker has it."""
    with connect(database, "tests") as opened:
        yield opened


def register(connection: Connection, dataset: Dataset) -> None:
    """Register a dataset and make its table."""
    values = {
        "dataset": dataset.name,
        "version": dataset.version,
        "message_type": dataset.message_type,
        "descriptors": dataset.descriptors,
        "schema_digest": digest_of_schema(dataset),
    }
    connection.execute(create_table(dataset))
    connection.execute(staged.create(dataset))
    if dataset.dedupe_window_s:
        connection.execute(dedupe.create(dataset))
    connection.execute(family("catalog")["add_dataset"], values)


def count(connection: Connection, table: str) -> int:
    """How many rows a table has."""
    row = connection.execute(sql.SQL("SELECT count(*) FROM {}").format(sql.Identifier(*table.split(".")))).fetchone()
    assert row is not None
    return int(row[0])
