"""Conflict policy `reject`, by staging: a record whose key is there, or came before, is a rejection that names it."""

from __future__ import annotations

import numpy as np
from psycopg import sql

from bulkgrpc.datasets.rows import Integers, Rows
from bulkgrpc.errors import Rejected
from bulkgrpc.store.writers import staging
from bulkgrpc.store.writers.copy import Connection
from bulkgrpc.store.writers.written import RefusedRow, Written

# Rows go in in key order, so that two workers never wait for each other's keys in opposite orders.
_INSERT = sql.SQL(
    "WITH inserted AS (INSERT INTO {table} ({columns}) SELECT {columns} FROM {staging} ORDER BY {key} "
    "ON CONFLICT DO NOTHING RETURNING {key}) "
    "SELECT {row} FROM {staging} LEFT JOIN inserted USING ({key}) WHERE inserted IS NULL"
)


def write(connection: Connection, rows: Rows, owner: Integers) -> Written:
    """Write the rows whose keys are new; of equal keys the first."""
    first = staging.first_of_equal_keys(rows)
    name = staging.stage(connection, rows, owner, first)
    there = [row for (row,) in connection.execute(_INSERT.format(**staging.clauses(rows.dataset, name)))]
    staging.clear(connection, name)
    refused = sorted([*np.flatnonzero(~first).tolist(), *there])
    written = first.copy()
    written[there] = False
    counts = np.bincount(owner[written], minlength=int(owner.max(initial=0)) + 1).astype(np.int32)
    return Written(counts, tuple(RefusedRow(row, Rejected.DUPLICATE_KEY, _names(rows, row)) for row in refused))


def _names(rows: Rows, row: int) -> str:
    key = ", ".join(f"{name}={rows.table.column(name)[row].as_py()}" for name in rows.dataset.key)
    return f"the key ({key}) is already in the table, or came earlier in the job"
