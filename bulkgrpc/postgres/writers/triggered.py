"""Writes rows into a table whose triggers may skip rows: what is written is what PostgreSQL counts.

A BEFORE ROW trigger that returns NULL skips its row without an error. A trigger may change keys too, so a row is not
recognized afterwards: rows are counted by job, in a statement for each job of the chunk.
"""

from __future__ import annotations

import numpy as np
import psycopg
from psycopg import sql

from bulkgrpc.datasets.ddl import table
from bulkgrpc.datasets.rows import Rows
from bulkgrpc.postgres.connection import Connection
from bulkgrpc.postgres.writers import reject, staging, update
from bulkgrpc.postgres.writers.copy import copy_rows
from bulkgrpc.postgres.writers.savepoint import in_savepoint
from bulkgrpc.postgres.writers.written import Written
from bulkgrpc.rejections import Integers, Mask, RejectionBuilder, RejectionCode

_INSERT = sql.SQL("INSERT INTO {table} ({columns}) SELECT {columns} FROM {staging} ON CONFLICT {action}")


class RepeatedKeys(Exception):
    """Some rows have equal keys. Which of them a trigger skips decides about the others: each must be written."""


class _RowsSkipped(Exception):
    """COPY wrote fewer rows than it got."""


def write(connection: Connection, rows: Rows, job: Integers) -> Written:
    """Write rows by their dataset's policy: by direct COPY if all of them are written, else job by job.

    Raises RepeatedKeys if some are not written by COPY and keys occur twice, psycopg.Error.
    """
    try:
        in_savepoint(connection, lambda: _copy(connection, rows))
    except (psycopg.errors.UniqueViolation, _RowsSkipped) as error:
        if not staging.first_of_equal_keys(rows).all():
            raise RepeatedKeys from error
        return _write_by_job(connection, rows, job)
    return Written(np.bincount(job).astype(np.int32))


def known_or_repeated(connection: Connection, rows: Rows) -> Mask:
    """Return the rows whose key the table has, or an earlier row. Call it before anything is written."""
    first = staging.first_of_equal_keys(rows)
    return ~first | staging.known(connection, rows, first)


def _copy(connection: Connection, rows: Rows) -> None:
    if copy_rows(connection, table(rows.dataset), rows.table) < rows.table.num_rows:
        raise _RowsSkipped


def _write_by_job(connection: Connection, rows: Rows, job: Integers) -> Written:
    updates = rows.dataset.conflict_policy == "update"
    known = np.zeros(len(job), np.bool_) if updates else known_or_repeated(connection, rows)
    chosen = staging.last_of_equal_keys(rows) if updates else ~known
    skipped = np.zeros(int(job.max(initial=0)) + 1, np.int32)
    for number in np.unique(job[chosen]).tolist():
        mask = chosen & (job == number)
        skipped[number] = np.count_nonzero(mask) - _insert(connection, rows, mask)
    rejected = RejectionBuilder(len(job))
    if rows.dataset.conflict_policy == "reject" and known.any():
        rejected.add(known, RejectionCode.DUPLICATE_KEY, "", reject.reasons(rows, known))
    # Under `update` a row that a later one replaces counts as written.
    counted = np.bincount(job[~known], minlength=len(skipped)).astype(np.int32)
    return Written(counted - skipped, rejected.build(), skipped)


def _insert(connection: Connection, rows: Rows, chosen: Mask) -> int:
    """Write the chosen rows, whose keys all differ; return how many PostgreSQL wrote."""
    name = staging.stage(connection, rows, chosen)
    action = update.on_conflict(rows.dataset) if rows.dataset.conflict_policy == "update" else sql.SQL("DO NOTHING")
    statement = _INSERT.format(**staging.clauses(rows.dataset, name), action=action)
    written = connection.execute(statement).rowcount
    staging.clear(connection, name)
    return written
