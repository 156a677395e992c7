"""The statement that makes a dataset's table."""

from __future__ import annotations

from psycopg import sql

from bulkgrpc.datasets.definition import Dataset

SCHEMA = "public"


def create_table(dataset: Dataset) -> sql.Composed:
    """Return CREATE TABLE for a dataset: its columns, its primary key (tenant, key)."""
    columns = [
        sql.SQL("{} {}{}").format(
            sql.Identifier(column.name),
            sql.SQL(column.type),
            sql.SQL(" NOT NULL" if not column.nullable or column.name in dataset.primary_key else ""),
        )
        for column in dataset.columns
    ]
    key = sql.SQL("PRIMARY KEY ({})").format(sql.SQL(", ").join(map(sql.Identifier, dataset.primary_key)))
    return sql.SQL("CREATE TABLE {} (\n  {}\n)").format(table(dataset), sql.SQL(",\n  ").join([*columns, key]))


def table(dataset: Dataset) -> sql.Identifier:
    """Return the qualified, quoted name of a dataset's table."""
    return sql.Identifier(SCHEMA, dataset.name)
