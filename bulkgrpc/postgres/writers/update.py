"""Conflict policy `update`, by staging: the last record of a key wins, in the chunk and over the row in the table.

A tenant's batches arrive through one partition in order, so a later record is newer. Every record counts as written,
also one that a later record of the same chunk replaces: counts do not depend on where chunks are cut.
"""

from __future__ import annotations

import numpy as np
from psycopg import sql

from bulkgrpc.datasets.rows import Rows
from bulkgrpc.postgres.connection import Connection
from bulkgrpc.postgres.writers import staging
from bulkgrpc.postgres.writers.conflict import do_update
from bulkgrpc.postgres.writers.written import Written
from bulkgrpc.rejections import Integers

# The staging table is read in the order in which it was filled, by key: two workers never wait for each other's keys in
# opposite orders.
_UPSERT = sql.SQL("INSERT INTO {table} ({columns}) SELECT {columns} FROM {staging} ON CONFLICT {action}")


def write(connection: Connection, rows: Rows, job: Integers) -> Written:
    """Write rows over those with the same keys."""
    name = staging.stage(connection, rows, staging.last_of_equal_keys(rows))
    clauses = {**staging.clauses(rows.dataset, name), "action": do_update(rows.dataset)}
    connection.execute(_UPSERT.format(**clauses))
    staging.clear(connection, name)
    return Written(np.bincount(job).astype(np.int32))
