"""Staging tables of a session: columns of a dataset's rows, and each row's position in the chunk."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from functools import cache

import numpy as np
import psycopg
import pyarrow as pa
import pyarrow.compute as pc
from psycopg import sql

from bulkgrpc.datasets.columns import Column
from bulkgrpc.datasets.ddl import table
from bulkgrpc.datasets.definition import Dataset
from bulkgrpc.datasets.operations import DELETE
from bulkgrpc.datasets.rows import Rows
from bulkgrpc.postgres import rows_time
from bulkgrpc.postgres.connection import Connection
from bulkgrpc.postgres.pooler import local_settings
from bulkgrpc.postgres.writers.copy import copy_rows
from bulkgrpc.rejections import Mask

ROW = sql.Identifier("bulkgrpc_row")

POSITIONS = sql.SQL("string_agg(int4send({row}), ''::bytea)")
"""Aggregates positions of rows into one value, which `positions` reads without Python per row."""

# A subquery with OFFSET is not turned into a join: each key is looked up by the table's index, however large that is.
_KNOWN = sql.SQL(
    "SELECT {positions} FROM {staging} AS staged "
    "WHERE EXISTS (SELECT FROM {table} AS stored WHERE ({stored_key}) = ({staged_key}) OFFSET 0)"
)
_DELETES = pa.field(DELETE, pa.bool_())
_OWN_TYPES = psycopg.postgres.types
"""The types that the driver knows, by each of their names: PostgreSQL's own."""


def stage(
    connection: Connection,
    rows: Rows,
    chosen: Mask,
    columns: Sequence[Column] = (),
    where: sql.Composable | None = None,
) -> sql.Identifier:
    """COPY the chosen rows into a staging table of the session, with their positions in `rows`, and return its name.

    columns: the dataset's columns to copy; default: all, and DELETE if there is an operation. where: a condition;
    PostgreSQL leaves the other rows out. The staging table has the rows in the order of `rows`, sorted by key. It is
    emptied at the end of the transaction, and by `clear`. The statements that follow have the time that is left for the
    rows: raises psycopg.errors.QueryCanceled if that is none.
    """
    if not columns:
        columns, rows = _with_deletes(rows)
    name = _name(rows.dataset, columns)
    # Behind a pooler the session is another client's in a moment. A type of users could not be dropped or replaced
    # while a session has a table with a column of it.
    at_commit = "DROP" if local_settings(connection) or not _are_built_in(columns) else "DELETE ROWS"
    connection.execute(_create(columns, name, rows_time.restore(connection), at_commit), prepare=False)
    kept = rows.keep(chosen).table.select([column.name for column in columns])
    positions = pa.array(np.flatnonzero(chosen).astype(np.int32))
    copy_rows(connection, name, kept.append_column(ROW.as_string(None).strip('"'), positions), where)
    return name


def known(connection: Connection, rows: Rows, chosen: Mask) -> Mask:
    """Return which of the chosen rows have keys that are in the table."""
    key = rows.dataset.primary_key
    name = stage(connection, rows, chosen, [column for column in rows.dataset.columns if column.name in key])
    found = positions(connection, _KNOWN.format(**clauses(rows.dataset, name)), rows)
    clear(connection, name)
    return found


def positions(connection: Connection, query: sql.Composed, rows: Rows) -> Mask:
    """Execute a query that returns POSITIONS; return a mask of the rows that it names."""
    row = connection.execute(query, binary=True).fetchone()
    mask = np.zeros(rows.table.num_rows, dtype=np.bool_)
    if row is not None and row[0] is not None:
        mask[np.frombuffer(row[0], ">i4")] = True
    return mask


def clear(connection: Connection, name: sql.Identifier) -> None:
    """Empty the staging table, for the next write of this transaction."""
    connection.execute(sql.SQL("TRUNCATE {}").format(name))


def first_of_equal_keys(rows: Rows) -> Mask:
    """Return a mask of the rows, sorted by key, that are the first of their key. rows: of a dataset with a key."""
    first = np.ones(rows.table.num_rows, dtype=np.bool_)
    first[1:] = ~_same_as_before(rows)
    return first


def last_of_equal_keys(rows: Rows) -> Mask:
    """Return a mask of the rows, sorted by key, that are the last of their key."""
    last = np.ones(rows.table.num_rows, dtype=np.bool_)
    last[:-1] = ~_same_as_before(rows)
    return last


def clauses(dataset: Dataset, staging: sql.Identifier) -> dict[str, sql.Composable]:
    """Return the parts that the statements of all writers share: table, columns, key, staging, row, positions.

    stored_key, staged_key: the key's columns of the aliases `stored` and `staged`.
    """
    return {
        "table": table(dataset),
        "columns": sql.SQL(", ").join(sql.Identifier(column.name) for column in dataset.columns),
        "key": sql.SQL(", ").join(map(sql.Identifier, dataset.primary_key)),
        "staging": staging,
        "row": ROW,
        "positions": POSITIONS.format(row=ROW),
        "stored_key": _qualified("stored", dataset.primary_key),
        "staged_key": _qualified("staged", dataset.primary_key),
    }


def _are_built_in(columns: Sequence[Column]) -> bool:
    """Return whether all types of columns are PostgreSQL's own: neither enums nor of an extension."""
    return all(_is_built_in(column.type) for column in columns)


@cache
def _is_built_in(kind: str) -> bool:
    return _OWN_TYPES.get(kind.removesuffix("[]").partition("(")[0]) is not None


def _with_deletes(rows: Rows) -> tuple[Sequence[Column], Rows]:
    """Return the columns to stage, and the rows with them."""
    columns = rows.dataset.columns
    if rows.deletes is None:
        return columns, rows
    marked = rows.table.append_column(_DELETES, pa.array(rows.deletes))
    return (*columns, Column(DELETE, "", "boolean", nullable=False)), replace(rows, table=marked)


def _same_as_before(rows: Rows) -> Mask:
    """Return for each row but the first whether it has the key of the one before."""
    if not rows.dataset.primary_key:
        raise ValueError(f"rows of {rows.dataset.name}, which has no key, are compared by key")
    same = np.ones(max(rows.table.num_rows - 1, 0), dtype=np.bool_)
    for name in rows.dataset.primary_key:
        values = rows.table.column(name)
        same &= pc.equal(values[1:], values[:-1]).to_numpy(zero_copy_only=False)
    return same


def _qualified(alias: str, names: Sequence[str]) -> sql.Composed:
    return sql.SQL(", ").join(sql.Identifier(alias, name) for name in names)


def _name(dataset: Dataset, columns: Sequence[Column]) -> sql.Identifier:
    # The name of the dataset may have all of the 63 characters: the staging table's is a hash of it.
    what = "/".join([dataset.name, f"{dataset.version}", *(f"{column.name} {column.type}" for column in columns)])
    return sql.Identifier("pg_temp", f"bulkgrpc_{hashlib.sha256(what.encode()).hexdigest()[:24]}")


def _create(columns: Sequence[Column], name: sql.Identifier, before: str, at_commit: str) -> sql.Composed:
    # Kept for the session and emptied: one temporary table per chunk would bloat the system catalogs.
    made = [sql.SQL("{} {}").format(sql.Identifier(column.name), sql.SQL(column.type)) for column in columns]
    made.append(sql.SQL("{} integer").format(ROW))
    return sql.SQL("{} CREATE TEMPORARY TABLE IF NOT EXISTS {} ({}) ON COMMIT {}").format(
        sql.SQL(before), name, sql.SQL(", ").join(made), sql.SQL(at_commit)
    )
