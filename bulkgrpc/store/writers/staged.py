"""COPY into a staging table of the session, then INSERT … ON CONFLICT DO NOTHING: for rows whose keys may be there."""

from __future__ import annotations

import hashlib

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from psycopg import sql

from bulkgrpc.datasets.ddl import table
from bulkgrpc.datasets.definition import Dataset
from bulkgrpc.datasets.rows import Integers, Rows
from bulkgrpc.store.writers.copy import Connection, copy_rows

_OWNER = "bulkgrpc_owner"


def write(connection: Connection, rows: Rows, owner: Integers) -> Integers:
    """Write the rows whose keys are new, of equal keys the first; the others are left out.

    Rows go in in key order, so that two workers never wait for each other's keys in opposite orders. Raises what
    PostgreSQL says if the table refuses a row for another reason than its key; the caller rolls back then.
    """
    first = first_of_equal_keys(rows)
    kept, owners = rows.keep(first), owner[first]
    staging = _staging_table(rows.dataset)
    connection.execute(_create(rows.dataset, staging))
    copy_rows(connection, staging, kept.table.append_column(_OWNER, pa.array(owners, pa.int32())))
    cursor = connection.execute(_insert(rows.dataset, staging))
    written = np.zeros(int(owner.max(initial=0)) + 1, np.int32)
    for number, count in cursor:
        written[number] = count
    # The next write of this transaction finds it empty; the commit would empty it only then.
    connection.execute(sql.SQL("TRUNCATE {}").format(staging))
    return written


def first_of_equal_keys(rows: Rows) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """Return a mask of the rows, sorted by key, that are the first of their key."""
    first = np.ones(rows.table.num_rows, dtype=np.bool_)
    if rows.table.num_rows < 2:
        return first
    same = np.ones(rows.table.num_rows - 1, dtype=np.bool_)
    for name in rows.dataset.primary_key:
        values = rows.table.column(name)
        same &= pc.equal(values[1:], values[:-1]).to_numpy(zero_copy_only=False)
    first[1:] = ~same
    return first


def _staging_table(dataset: Dataset) -> sql.Identifier:
    # A table's name may take all of the 63 characters: the staging table's is a hash of it.
    digest = hashlib.sha256(f"{dataset.name}/{dataset.version}".encode()).hexdigest()[:24]
    return sql.Identifier("pg_temp", f"bulkgrpc_{digest}")


def _create(dataset: Dataset, staging: sql.Identifier) -> sql.Composed:
    # One a session, kept and emptied: a temporary table a chunk would bloat the system catalogs.
    columns = [sql.SQL("{} {}").format(sql.Identifier(c.name), sql.SQL(c.type)) for c in dataset.columns]
    columns.append(sql.SQL("{} integer").format(sql.Identifier(_OWNER)))
    return sql.SQL("CREATE TEMPORARY TABLE IF NOT EXISTS {} ({}) ON COMMIT DELETE ROWS").format(
        staging, sql.SQL(", ").join(columns)
    )


def _insert(dataset: Dataset, staging: sql.Identifier) -> sql.Composed:
    key = sql.SQL(", ").join(map(sql.Identifier, dataset.primary_key))
    return sql.SQL(
        "WITH inserted AS ("
        "INSERT INTO {table} ({columns}) SELECT {columns} FROM {staging} ORDER BY {key} "
        "ON CONFLICT DO NOTHING RETURNING {key}"
        ") SELECT {owner}, count(*) FROM {staging} JOIN inserted USING ({key}) GROUP BY {owner}"
    ).format(
        table=table(dataset),
        columns=sql.SQL(", ").join(sql.Identifier(column.name) for column in dataset.columns),
        staging=staging,
        key=key,
        owner=sql.Identifier(_OWNER),
    )
