"""Conflict policy `ignore`: a key that is there is left alone; of equal keys the first is written.

The keys alone are staged and looked up, and the rows whose keys are new go by straight COPY: that writes twice as fast
as INSERT … SELECT, and of a row that is there only the key travels.
"""

from __future__ import annotations

import numpy as np
import psycopg
from psycopg import sql

from bulkgrpc.datasets.rows import Integers, Rows
from bulkgrpc.postgres.writers import direct, staging
from bulkgrpc.postgres.writers.around import attempt
from bulkgrpc.postgres.writers.copy import Connection
from bulkgrpc.postgres.writers.staging import Mask
from bulkgrpc.postgres.writers.written import Written

# The staging table is read as it was filled, in key order: two workers never wait for each other's keys in opposite
# orders.
_INSERT = sql.SQL(
    "WITH inserted AS (INSERT INTO {table} ({columns}) SELECT {columns} FROM {staging} "
    "ON CONFLICT DO NOTHING RETURNING {key}) "
    "SELECT {positions} FROM {staging} JOIN inserted USING ({key})"
)


def write(connection: Connection, rows: Rows, owner: Integers) -> Written:
    """Write the rows whose keys are new; the others count for nobody."""
    first = staging.first_of_equal_keys(rows)
    new = first & ~staging.known(connection, rows, first)
    if new.any():
        try:
            attempt(connection, direct.write, rows.keep(new), owner[new])
        except psycopg.errors.UniqueViolation:
            # A key that came meanwhile, or another unique index.
            new = insert(connection, rows, first)
    return Written(np.bincount(owner[new], minlength=int(owner.max(initial=0)) + 1).astype(np.int32))


def insert(connection: Connection, rows: Rows, chosen: Mask) -> Mask:
    """Write the chosen rows, whose keys all differ, but not what conflicts; return which were written."""
    name = staging.stage(connection, rows, chosen)
    written = staging.positions(connection, _INSERT.format(**staging.clauses(rows.dataset, name)), rows)
    staging.clear(connection, name)
    return written
