"""Writes encoded chunks with COPY BINARY and nothing else: the baseline that the service is measured against."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from psycopg import sql

from bulkgrpc.datasets.ddl import table
from bulkgrpc.datasets.definition import Dataset
from bulkgrpc.postgres.connection import Connection
from bulkgrpc.postgres.databases import connection_to
from bulkgrpc.postgres.writers import conflict

_PIECE_BYTES = 1 << 20
_STAGED = sql.Identifier("pg_temp", "staged")


@contextmanager
def chunk_writer(postgres: str, dataset: Dataset, *, staged: bool) -> Iterator[Callable[[bytes], None]]:
    """Open a connection and yield a function that writes one chunk in one transaction.

    A chunk is COPY BINARY data with the dataset's columns. staged: COPY into a temporary table, then
    INSERT … SELECT … ON CONFLICT into the dataset's table. Otherwise COPY into the dataset's table.
    Raises PostgresError.
    """
    with connection_to(postgres) as connection:
        if staged:
            create = sql.SQL("CREATE TEMPORARY TABLE staged (LIKE {}) ON COMMIT DELETE ROWS")
            connection.execute(create.format(table(dataset)))
        target = _STAGED if staged else table(dataset)
        copy = sql.SQL("COPY {} ({}) FROM STDIN (FORMAT BINARY)").format(target, _column_names(dataset))
        insert = _insert(dataset)

        def write(chunk: bytes) -> None:
            with connection.transaction():
                copy_chunk(connection, copy, chunk)
                if staged:
                    connection.execute(insert)

        yield write


def copy_chunk(connection: Connection, statement: sql.Composed, chunk: bytes) -> None:
    """Send one chunk of COPY BINARY data, 1 MiB at a time. statement: COPY … FROM STDIN (FORMAT BINARY)."""
    view = memoryview(chunk)
    with connection.cursor() as cursor, cursor.copy(statement) as copy:
        for start in range(0, len(view), _PIECE_BYTES):
            copy.write(view[start : start + _PIECE_BYTES])


def _insert(dataset: Dataset) -> sql.Composed:
    """Return the statement that moves the staged rows, already sorted by key, into the table."""
    action = conflict.action(dataset)
    insert = sql.SQL("INSERT INTO {} ({columns}) SELECT {columns} FROM {} ON CONFLICT {}")
    return insert.format(table(dataset), _STAGED, action, columns=_column_names(dataset))


def _column_names(dataset: Dataset) -> sql.Composed:
    return sql.SQL(", ").join(sql.Identifier(column.name) for column in dataset.columns)
