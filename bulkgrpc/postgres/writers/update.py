"""Conflict policy `update`, by staging: the last record of a key wins, in the chunk and over the row in the table.

A tenant's batches arrive through one partition in order, so a later record is newer. Every record counts as written,
also one that a later record of the same chunk replaces: counts do not depend on where chunks are cut. So does a record
that deletes the row of its key, whether there is one or not.
"""

from __future__ import annotations

import numpy as np
from psycopg import sql

from bulkgrpc.datasets.rows import Rows
from bulkgrpc.postgres.connection import Connection
from bulkgrpc.postgres.writers import staging
from bulkgrpc.postgres.writers.conflict import do_update
from bulkgrpc.postgres.writers.written import Written
from bulkgrpc.rejections import Integers, Mask

# The staging table is read in the order in which it was filled, by key: two workers never wait for each other's keys in
# opposite orders.
_UPSERT = sql.SQL("INSERT INTO {table} ({columns}) SELECT {columns} FROM {staging} ON CONFLICT {action}")

_DELETE = sql.SQL("DELETE FROM {table} AS stored USING {staging} AS staged WHERE ({stored_key}) = ({staged_key})")


def write(connection: Connection, rows: Rows, job: Integers) -> Written:
    """Write rows over those with the same keys, or delete these."""
    last = staging.last_of_equal_keys(rows)
    if rows.deletes is not None:
        # First: a row that is written may have a value of another unique index that one of these had.
        delete(connection, rows, last & rows.deletes)
        last &= ~rows.deletes
    if last.any():
        name = staging.stage(connection, rows, last)
        clauses = {**staging.clauses(rows.dataset, name), "action": do_update(rows.dataset)}
        connection.execute(_UPSERT.format(**clauses))
        staging.clear(connection, name)
    return Written(np.bincount(job).astype(np.int32))


def delete(connection: Connection, rows: Rows, chosen: Mask) -> None:
    """Delete the table's rows that have the keys of the chosen rows; a key that it does not have is passed over."""
    if not chosen.any():
        return
    key = rows.dataset.primary_key
    name = staging.stage(connection, rows, chosen, [column for column in rows.dataset.columns if column.name in key])
    connection.execute(_DELETE.format(**staging.clauses(rows.dataset, name)))
    staging.clear(connection, name)
