"""Reads tables for comparison and display: a tenant's rows as a CSV file, a query's result as values."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import LiteralString

from psycopg import sql

from bulkgrpc.datasets.columns import Column
from bulkgrpc.datasets.ddl import table
from bulkgrpc.datasets.definition import Dataset
from bulkgrpc.postgres.databases import connection_to

_UTC_TEXT = sql.SQL("""to_char({} AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"') AS {}""")


def export_csv(postgres: str, dataset: Dataset, tenant: str, columns: Sequence[Column], path: Path) -> None:
    """Write a tenant's rows of a dataset's table to a CSV file: a header, NA for null, times in UTC with microseconds.

    Raises PostgresError, OSError.
    """
    statement = sql.SQL("COPY (SELECT {} FROM {} WHERE tenant = {}) TO STDOUT (FORMAT csv, HEADER, NULL 'NA')").format(
        sql.SQL(", ").join(map(_selected, columns)), table(dataset), sql.Literal(tenant)
    )
    with (
        connection_to(postgres) as connection,
        connection.cursor() as cursor,
        cursor.copy(statement) as copy,
        path.open("wb") as file,
    ):
        for block in copy:
            file.write(block)


def select(postgres: str, query: LiteralString) -> tuple[list[str], list[tuple[object, ...]]]:
    """Run a query and return its column names and rows. Raises PostgresError."""
    with connection_to(postgres) as connection:
        cursor = connection.execute(query)
        return [column.name for column in cursor.description or ()], cursor.fetchall()


def _selected(column: Column) -> sql.Composable:
    name = sql.Identifier(column.name)
    return _UTC_TEXT.format(name, name) if column.type == "timestamp with time zone" else name
