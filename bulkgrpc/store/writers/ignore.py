"""Conflict policy `ignore`, by staging: a key that is there is left alone; of equal keys the first is written."""

from __future__ import annotations

from psycopg import sql

from bulkgrpc.datasets.rows import Integers, Rows
from bulkgrpc.store.writers import staging
from bulkgrpc.store.writers.copy import Connection
from bulkgrpc.store.writers.written import Written

# Rows go in in key order, so that two workers never wait for each other's keys in opposite orders.
_INSERT = sql.SQL(
    "WITH inserted AS (INSERT INTO {table} ({columns}) SELECT {columns} FROM {staging} ORDER BY {key} "
    "ON CONFLICT DO NOTHING RETURNING {key}) "
    "SELECT {owner}, count(*) FROM {staging} JOIN inserted USING ({key}) GROUP BY {owner}"
)


def write(connection: Connection, rows: Rows, owner: Integers) -> Written:
    """Write the rows whose keys are new; the others count for nobody."""
    name = staging.stage(connection, rows, owner, staging.first_of_equal_keys(rows))
    found = connection.execute(_INSERT.format(**staging.clauses(rows.dataset, name))).fetchall()
    staging.clear(connection, name)
    return Written(staging.counts_by_owner(found, owner))
