"""The statements that make and change a dataset's table."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from psycopg import sql

from bulkgrpc.datasets.columns import Column
from bulkgrpc.datasets.definition import Dataset

SCHEMA = "public"


def create_table(dataset: Dataset) -> sql.Composed:
    """Return the statements that make a dataset's table: its columns, its primary key (tenant, key), all it is made of.

    Joined with `;`, to be executed as one.
    """
    columns: list[sql.Composable] = [column_of(column, dataset.primary_key) for column in dataset.columns]
    key = sql.SQL("PRIMARY KEY ({})").format(_names(dataset.primary_key))
    made = sql.SQL("CREATE TABLE {} (\n  {}\n)").format(table(dataset), sql.SQL(",\n  ").join([*columns, key]))
    if dataset.hash_partitions:
        made += sql.SQL(" PARTITION BY HASH ({})").format(_names(dataset.primary_key))
    return sql.SQL(";\n").join([made, *_partitions(dataset), *_indexes(dataset)])


def drop_table(name: str) -> sql.Composed:
    """Return the statement that drops a dataset's table, with its rows and partitions, if it is there."""
    return sql.SQL("DROP TABLE IF EXISTS {}").format(sql.Identifier(SCHEMA, name))


def column_of(column: Column, key: Sequence[str] = ()) -> sql.Composed:
    """Return a column's definition: its name, type, NOT NULL, DEFAULT."""
    parts = [sql.Identifier(column.name), sql.SQL(column.type)]
    if not column.nullable or column.name in key:
        parts.append(sql.SQL("NOT NULL"))
    if column.default:
        parts.append(sql.SQL("DEFAULT {}").format(sql.Literal(column.default)))
    return sql.SQL(" ").join(parts)


def table(dataset: Dataset) -> sql.Identifier:
    """Return the qualified, quoted name of a dataset's table."""
    return sql.Identifier(SCHEMA, dataset.name)


def _partitions(dataset: Dataset) -> list[sql.Composed]:
    # A dataset's name may take all of the 63 characters: its partitions' names have a hash of it.
    digest = hashlib.sha256(dataset.name.encode()).hexdigest()[:24]
    return [
        sql.SQL("CREATE TABLE {} PARTITION OF {} FOR VALUES WITH (MODULUS {}, REMAINDER {})").format(
            sql.Identifier("bulk", f"rows_{digest}_{number}"), table(dataset), dataset.hash_partitions, number
        )
        for number in range(dataset.hash_partitions)
    ]


def _indexes(dataset: Dataset) -> list[sql.Composed]:
    return [
        sql.SQL("CREATE INDEX ON {} ({})").format(table(dataset), sql.Identifier(column.name))
        for column in dataset.columns
        if column.index
    ]


def _names(names: Sequence[str]) -> sql.Composed:
    return sql.SQL(", ").join(map(sql.Identifier, names))
