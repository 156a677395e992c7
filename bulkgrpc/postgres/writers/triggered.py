"""Writes rows into a table whose triggers may skip rows: what is written is what PostgreSQL counts.

A BEFORE ROW trigger that returns NULL skips its row without an error. A trigger may change keys too, so a row is not
recognized by its key afterwards. MERGE returns which of its source rows it wrote, from PostgreSQL 17 on. It does so for
new rows only: rows that may replace others (`update`) are counted by job, in a statement for each job of the chunk. So
are new rows before PostgreSQL 17.

Not decidable, whatever the writer: a row whose key the trigger changed to one that the table has counts as skipped. So
does one whose key another transaction had written and deletes before it is looked up. A row that a trigger skips counts
as known if the table has its key, also if another transaction wrote that meanwhile.
"""

from __future__ import annotations

import numpy as np
import psycopg
from psycopg import sql

from bulkgrpc.datasets.ddl import table
from bulkgrpc.datasets.rows import Rows
from bulkgrpc.postgres.connection import Connection
from bulkgrpc.postgres.writers import conflict, reject, staging, update
from bulkgrpc.postgres.writers.copy import copy_rows
from bulkgrpc.postgres.writers.savepoint import in_savepoint
from bulkgrpc.postgres.writers.written import Written
from bulkgrpc.rejections import Integers, Mask, RejectionBuilder, RejectionCode

MERGE_RETURNS = 170_000
"""The first version of the server whose MERGE returns rows."""
_INSERT = sql.SQL("INSERT INTO {table} ({columns}) SELECT {columns} FROM {staging}")
_UPSERT = sql.SQL("INSERT INTO {table} ({columns}) SELECT {columns} FROM {staging} ON CONFLICT {action}")
# The staging table is read in the order in which it was filled, by key, as by every writer.
_MERGE = sql.SQL(
    "WITH written AS (MERGE INTO {table} USING {staging} AS staged ON false "
    "WHEN NOT MATCHED THEN INSERT ({columns}) VALUES ({staged_columns}) RETURNING staged.{row}) "
    "SELECT {positions} FROM written"
)


class RepeatedKeys(Exception):
    """Some rows have equal keys, or ones that are in the table once they are written: each must be written alone.

    Which of several rows a trigger skips decides about the others.
    """


class _RowsSkipped(Exception):
    """COPY wrote fewer rows than it got."""


def write(connection: Connection, rows: Rows, job: Integers) -> Written:
    """Write rows by their dataset's policy: by direct COPY if all of them are written, else those that COPY may write.

    Raises RepeatedKeys if some are not written by COPY and keys occur twice, or a key is in the table that was not when
    it was looked up; psycopg.Error.
    """
    if rows.has_deletes:
        if not staging.first_of_equal_keys(rows).all():
            raise RepeatedKeys
        return _update_by_job(connection, rows, job)
    try:
        in_savepoint(connection, lambda: _copy(connection, rows))
    except (psycopg.errors.UniqueViolation, _RowsSkipped) as error:
        if rows.dataset.conflict_policy == "append":
            return _append(connection, rows, job)
        if not staging.first_of_equal_keys(rows).all():
            raise RepeatedKeys from error
        by_policy = _update_by_job if rows.dataset.conflict_policy == "update" else _write_new
        return by_policy(connection, rows, job)
    return Written(np.bincount(job).astype(np.int32))


def _copy(connection: Connection, rows: Rows) -> None:
    if copy_rows(connection, table(rows.dataset), rows.table) < rows.table.num_rows:
        raise _RowsSkipped


def _append(connection: Connection, rows: Rows, job: Integers) -> Written:
    """Write rows without a key; those that PostgreSQL does not write were skipped. Raises RepeatedKeys."""
    try:
        written = in_savepoint(connection, lambda: _insert(connection, rows, job, np.ones(len(job), np.bool_)))
    except (psycopg.errors.UniqueViolation, psycopg.errors.FeatureNotSupported) as error:
        # A unique index that is not the dataset's; or MERGE does not support the table.
        raise RepeatedKeys from error
    return Written(written, skipped=np.bincount(job).astype(np.int32) - written)


def _write_new(connection: Connection, rows: Rows, job: Integers) -> Written:
    """Write the rows, whose keys all differ, that have new keys. Raises RepeatedKeys."""
    known = staging.known(connection, rows, np.ones(len(job), np.bool_))
    try:
        written = in_savepoint(connection, lambda: _insert(connection, rows, job, ~known))
    except (psycopg.errors.UniqueViolation, psycopg.errors.FeatureNotSupported) as error:
        # Another transaction wrote a key meanwhile, or a trigger changed one; or MERGE does not support the table.
        raise RepeatedKeys from error
    rejected = RejectionBuilder(len(job))
    if rows.dataset.conflict_policy == "reject" and known.any():
        rejected.add(known, RejectionCode.DUPLICATE_KEY, "", reject.reasons(rows, known))
    new = np.bincount(job[~known], minlength=len(written)).astype(np.int32)
    return Written(written, rejected.build(), new - written)


def _insert(connection: Connection, rows: Rows, job: Integers, chosen: Mask) -> Integers:
    """Write the chosen rows, none of whose keys may be in the table; return how many of each job PostgreSQL wrote."""
    jobs = int(job.max(initial=0)) + 1
    if connection.info.server_version >= MERGE_RETURNS:
        return np.bincount(job[_merge(connection, rows, chosen)], minlength=jobs).astype(np.int32)
    written = np.zeros(jobs, np.int32)
    for number in np.unique(job[chosen]).tolist():
        written[number] = _execute(connection, rows, chosen & (job == number), _INSERT)
    return written


def _merge(connection: Connection, rows: Rows, chosen: Mask) -> Mask:
    """Write the chosen rows, none of whose keys may be in the table; return which PostgreSQL wrote."""
    name = staging.stage(connection, rows, chosen)
    columns = sql.SQL(", ").join(sql.Identifier("staged", column.name) for column in rows.dataset.columns)
    query = _MERGE.format(**staging.clauses(rows.dataset, name), staged_columns=columns)
    written = staging.positions(connection, query, rows)
    staging.clear(connection, name)
    return written


def _update_by_job(connection: Connection, rows: Rows, job: Integers) -> Written:
    """Write rows, whose keys all differ, over those with the same keys, or delete these: that counts as written.

    A row that a trigger does not let be written, or deleted, counts as skipped.
    """
    skipped = np.zeros(int(job.max(initial=0)) + 1, np.int32)
    action, upserts = conflict.do_update(rows.dataset), np.ones(len(job), np.bool_)
    if rows.deletes is not None:
        update.delete(connection, rows, rows.deletes)
        upserts = ~rows.deletes
        if rows.has_deletes:
            # A row that is still there was kept by a trigger.
            kept = staging.known(connection, rows, rows.deletes)
            skipped += np.bincount(job[kept], minlength=len(skipped)).astype(np.int32)
    for number in np.unique(job[upserts]).tolist():
        chosen = upserts & (job == number)
        skipped[number] += np.count_nonzero(chosen) - _execute(connection, rows, chosen, _UPSERT, action=action)
    return Written(np.bincount(job).astype(np.int32) - skipped, skipped=skipped)


def _execute(connection: Connection, rows: Rows, chosen: Mask, statement: sql.SQL, **clauses: sql.Composable) -> int:
    """Write the chosen rows with a statement; return how many PostgreSQL wrote."""
    name = staging.stage(connection, rows, chosen)
    written = connection.execute(statement.format(**staging.clauses(rows.dataset, name), **clauses)).rowcount
    staging.clear(connection, name)
    return written
