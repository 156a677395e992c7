"""The statements that make and change a dataset's table."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from datetime import date

from psycopg import sql

from bulkgrpc.datasets.columns import Column
from bulkgrpc.datasets.definition import Dataset
from bulkgrpc.datasets.periods import Period, periods_around

SCHEMA = "public"
BY_BYTES = sql.SQL('COLLATE "C"')
"""The order of the workers, too: they sort the texts of keys by bytes."""


def create_table(dataset: Dataset) -> sql.Composed:
    """Return the statements that create a dataset's table with its primary key (tenant, key), partitions and indexes.

    A dataset whose policy is append has no primary key. The statements are joined with `;`, to be executed as one.
    """
    parts: list[sql.Composable] = [
        column_of(column, dataset.primary_key, by_bytes=not dataset.database_collation) for column in dataset.columns
    ]
    if dataset.primary_key:
        parts.append(sql.SQL("PRIMARY KEY ({})").format(_names(dataset.primary_key)))
    made = sql.SQL("CREATE TABLE {} (\n  {}\n)").format(table(dataset), sql.SQL(",\n  ").join(parts))
    if dataset.hash_partitions:
        made += sql.SQL(" PARTITION BY HASH ({})").format(_names(dataset.primary_key))
    if dataset.time_partitions:
        made += sql.SQL(" PARTITION BY RANGE ({})").format(sql.Identifier(dataset.time_partitions.column))
    return sql.SQL(";\n").join([made, *_partitions(dataset), *_indexes(dataset)])


def drop_table(name: str) -> sql.Composed:
    """Return the statement that drops a dataset's table, with its rows and partitions, if it is there."""
    return sql.SQL("DROP TABLE IF EXISTS {}").format(sql.Identifier(SCHEMA, name))


def column_of(column: Column, key: Sequence[str] = (), *, by_bytes: bool = False) -> sql.Composed:
    """Return a column's definition: its name, type, COLLATE, NOT NULL, DEFAULT.

    by_bytes: whether texts of the key are compared by their bytes: other collations make writing an index slower by a
    third or more.
    """
    parts = [sql.Identifier(column.name), sql.SQL(column.type)]
    if by_bytes and column.name in key and column.type == "text":
        parts.append(BY_BYTES)
    if not column.nullable or column.name in key:
        parts.append(sql.SQL("NOT NULL"))
    if column.default:
        parts.append(sql.SQL("DEFAULT {}").format(sql.Literal(column.default)))
    return sql.SQL(" ").join(parts)


def table(dataset: Dataset) -> sql.Identifier:
    """Return the qualified, quoted name of a dataset's table."""
    return sql.Identifier(SCHEMA if dataset.existing is None else dataset.existing.schema, dataset.relation)


def partition(dataset: Dataset, which: str) -> sql.Identifier:
    """Return the qualified, quoted name of a partition of a dataset's table."""
    # A dataset's name may take all of the 63 characters: its partitions' names have a hash of it.
    digest = hashlib.sha256(dataset.name.encode()).hexdigest()[:24]
    return sql.Identifier("bulk", f"rows_{digest}_{which}")


def other_times(dataset: Dataset) -> sql.Identifier:
    """Return the name of the default partition: it stores the rows whose period has no partition."""
    return partition(dataset, "other")


def of_period(dataset: Dataset, period: Period) -> sql.Identifier:
    """Return the name of a period's partition."""
    return partition(dataset, period.first.isoformat().replace("-", ""))


def is_time(dataset: Dataset) -> bool:
    """Return whether the table is partitioned by a timestamp, not by a date."""
    by = dataset.time_partitions
    return by is not None and any(c.name == by.column and c.type != "date" for c in dataset.columns)


def bounds(dataset: Dataset, period: Period) -> tuple[sql.Literal, sql.Literal]:
    """Return the bounds [from, to) of a period as values of the table's time column."""
    midnight = " 00:00:00+00" if is_time(dataset) else ""
    return sql.Literal(f"{period.first.isoformat()}{midnight}"), sql.Literal(f"{period.until.isoformat()}{midnight}")


def create_periods(dataset: Dataset, today: date) -> tuple[sql.Composed, ...]:
    """Return the statements that create the partitions around today for a new table; none if it has no partitions."""
    if dataset.time_partitions is None:
        return ()
    statement = sql.SQL("CREATE TABLE {} PARTITION OF {} FOR VALUES FROM ({}) TO ({})")
    return tuple(
        statement.format(of_period(dataset, period), table(dataset), *bounds(dataset, period))
        for period in periods_around(today, dataset.time_partitions.period)
    )


def _partitions(dataset: Dataset) -> list[sql.Composed]:
    if dataset.time_partitions:
        # A row whose period has no partition must be neither lost nor delayed.
        return [sql.SQL("CREATE TABLE {} PARTITION OF {} DEFAULT").format(other_times(dataset), table(dataset))]
    return [
        sql.SQL("CREATE TABLE {} PARTITION OF {} FOR VALUES WITH (MODULUS {}, REMAINDER {})").format(
            partition(dataset, str(number)), table(dataset), dataset.hash_partitions, number
        )
        for number in range(dataset.hash_partitions)
    ]


def _indexes(dataset: Dataset) -> list[sql.Composed]:
    tree = sql.SQL("CREATE INDEX ON {} ({})")
    # Without autosummarize, a BRIN index knows nothing of rows that were written after the last vacuum.
    brin = sql.SQL("CREATE INDEX ON {} USING brin ({}) WITH (autosummarize = on)")
    return [
        statement.format(table(dataset), sql.Identifier(column.name))
        for column in dataset.columns
        for statement, wanted in ((tree, column.index), (brin, column.brin_index))
        if wanted
    ]


def _names(names: Sequence[str]) -> sql.Composed:
    return sql.SQL(", ").join(map(sql.Identifier, names))
