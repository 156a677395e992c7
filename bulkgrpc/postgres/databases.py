"""Databases for development and measurement: create one, connect to it. Imports nothing that is slow to load."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from psycopg import sql
from psycopg.conninfo import make_conninfo

from bulkgrpc.postgres.connection import UNLIMITED, Connection, connect


@contextmanager
def connection_to(postgres: str) -> Iterator[Connection]:
    """Open a connection in autocommit mode, without the time limits of the service's own connections.

    Raises PostgresError.
    """
    with connect(postgres, "bulkgrpc-tool", UNLIMITED) as connection:
        yield connection


def ensure_database(postgres: str, name: str) -> None:
    """Create a database unless it exists. postgres: connection string of another database of the server.

    Raises PostgresError.
    """
    with connection_to(postgres) as connection:
        if not connection.execute("SELECT FROM pg_database WHERE datname = %s", (name,)).rowcount:
            connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))


def recreate_database(postgres: str, name: str) -> str:
    """Drop a database if it exists, ending its sessions, and create it empty. Return its connection string.

    postgres: connection string of another database of the server. Raises PostgresError.
    """
    with connection_to(postgres) as connection:
        connection.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))
        connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
    return make_conninfo(postgres, dbname=name)
