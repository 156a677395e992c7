"""Conflict policy `ignore`: a row whose key is in the table is not written; of equal keys the first is.

Only the keys are staged and looked up, and the rows whose keys are new are written by direct COPY: that is twice as
fast as INSERT … SELECT, and of a known row only the key is sent.
"""

from __future__ import annotations

import numpy as np
import psycopg
from psycopg import sql

from bulkgrpc.datasets.rows import Rows
from bulkgrpc.postgres.connection import Connection
from bulkgrpc.postgres.writers import direct, staging
from bulkgrpc.postgres.writers.conflict import do_nothing
from bulkgrpc.postgres.writers.savepoint import in_savepoint
from bulkgrpc.postgres.writers.written import Written
from bulkgrpc.rejections import Integers, Mask

# The staging table is read in the order in which it was filled, by key: two workers never wait for each other's keys in
# opposite orders.
_INSERT = sql.SQL(
    "WITH inserted AS (INSERT INTO {table} ({columns}) SELECT {columns} FROM {staging} "
    "ON CONFLICT {nothing} RETURNING {key}) "
    "SELECT {positions} FROM {staging} JOIN inserted USING ({key})"
)


def write(connection: Connection, rows: Rows, job: Integers) -> Written:
    """Write the rows whose keys are new; the others are not counted."""
    first = staging.first_of_equal_keys(rows)
    new = first & ~staging.known(connection, rows, first)
    if new.any():
        try:
            in_savepoint(connection, lambda: direct.write(connection, rows.keep(new), job[new]))
        except psycopg.errors.UniqueViolation:
            # Another transaction wrote a key meanwhile, or another unique index conflicts.
            new = insert(connection, rows, first)
    return Written(np.bincount(job[new], minlength=int(job.max(initial=0)) + 1).astype(np.int32))


def insert(connection: Connection, rows: Rows, chosen: Mask) -> Mask:
    """Write those of the chosen rows, whose keys all differ, that do not conflict; return which were written."""
    name = staging.stage(connection, rows, chosen)
    written = staging.positions(
        connection, _INSERT.format(nothing=do_nothing(rows.dataset), **staging.clauses(rows.dataset, name)), rows
    )
    staging.clear(connection, name)
    return written
