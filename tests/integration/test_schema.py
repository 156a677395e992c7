from __future__ import annotations

import uuid

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from bulkgrpc.postgres import schema
from bulkgrpc.postgres.connection import connect
from bulkgrpc.stack import Addresses
from tests.support.database import Connection


def test_migrating_again_changes_nothing(database: str, connection: Connection) -> None:
    schema.migrate(database)
    schema.check(connection)
    row = connection.execute("SELECT version_num FROM public.alembic_version").fetchall()
    assert row == [(schema.newest_revision(),)]


def test_a_database_without_the_schema_says_what_to_do(addresses: Addresses) -> None:
    with (
        connect(make_conninfo(addresses.postgres, dbname="postgres"), "tests") as connection,
        pytest.raises(schema.SchemaMissing, match="bulkgrpc migrate"),
    ):
        schema.check(connection)


def test_a_database_that_cannot_store_every_text_is_refused(addresses: Addresses) -> None:
    name = f"latin_{uuid.uuid4().hex}"
    with connect(make_conninfo(addresses.postgres, dbname="postgres"), "tests") as connection:
        connection.execute(f"CREATE DATABASE {name} ENCODING LATIN1 LOCALE 'C' TEMPLATE template0")
        with pytest.raises(schema.SchemaMissing, match=r"LATIN1.*UTF8"):
            schema.migrate(make_conninfo(addresses.postgres, dbname=name))
        connection.execute(f"DROP DATABASE {name} (FORCE)")


def test_a_database_that_is_not_there_is_named() -> None:
    with pytest.raises(psycopg.OperationalError, match=r"127\.0\.0\.1"):
        schema.migrate("postgresql://nobody@127.0.0.1:1/nothing")
