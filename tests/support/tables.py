"""A table that is not what a dataset's definition makes of it, on the stack's PostgreSQL or on another one."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo

from bulkgrpc.datasets.columns import TENANT, Column
from bulkgrpc.datasets.definition import ConflictPolicy, Dataset
from bulkgrpc.datasets.overrides import Kind

Connection = psycopg.Connection[tuple[Any, ...]]
OTHER_SERVER = "BULKGRPC_TEST_POSTGRES"
"""Names a server of another version to use, as its superuser: what is tested here is to work on PostgreSQL 13 to 18."""


@pytest.fixture
def empty_database(request: pytest.FixtureRequest) -> Iterator[str]:
    """The connection string of a database of this test's own without anything of ours."""
    with new_database(request) as database:
        yield database


@contextmanager
def new_database(request: pytest.FixtureRequest) -> Iterator[str]:
    """Make a database, and drop it at the end."""
    server = os.environ.get(OTHER_SERVER) or request.getfixturevalue("addresses").postgres
    name = f"test_{uuid.uuid4().hex}"
    with psycopg.connect(server, autocommit=True) as admin:
        admin.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        yield make_conninfo(server, dbname=name)
        admin.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


@pytest.fixture
def role(empty_database: str) -> Iterator[str]:
    """The name of a role that may connect, and has no right on any table."""
    name = f"writer_{uuid.uuid4().hex[:12]}"
    with psycopg.connect(empty_database, autocommit=True) as admin:
        admin.execute(sql.SQL("CREATE ROLE {}").format(sql.Identifier(name)))
        yield name
        admin.execute(sql.SQL("DROP OWNED BY {0}; DROP ROLE {0}").format(sql.Identifier(name)))


def dataset_of(types: Sequence[str], conflict: ConflictPolicy = "update", version: int = 3) -> Dataset:
    """A dataset `weather` with key (tenant, id) and a nullable column a type: v0, v1 and so on."""
    columns = [Column(TENANT, "", "text", nullable=False), Column("id", "id", "bigint", nullable=False)]
    for number, name in enumerate(types):
        digits = (20, 4) if name.startswith("numeric(") else (0, 0)
        kind = Kind.NUMERIC if digits[0] else Kind.PLAIN
        columns.append(Column(f"v{number}", f"v{number}", name, nullable=True, kind=kind, digits=digits))
    return Dataset("weather", version, "tests.v1.Weather", ("id",), tuple(columns), b"", conflict)
