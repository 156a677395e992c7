"""Writes all rows but those that PostgreSQL rejects, and reports those: in statements whose number does not grow.

PostgreSQL itself writes the rows span by span, in a function that makes a savepoint for each span: one that fails is
cut to a quarter, down to a single row, which is rejected; one that succeeds is doubled. A span can only become as long
as the rows that were written since the last failure, so each row is written a bounded number of times and the time is
linear in the rows.
"""

from __future__ import annotations

import hashlib

import numpy as np
import pyarrow as pa
from psycopg import sql

from bulkgrpc.consume import failures
from bulkgrpc.datasets.rows import Rows
from bulkgrpc.postgres import statements
from bulkgrpc.postgres.connection import Connection
from bulkgrpc.postgres.writers import conflict, reject, staging
from bulkgrpc.postgres.writers.savepoint import in_savepoint
from bulkgrpc.postgres.writers.written import Written
from bulkgrpc.rejections import CAUSES, Integers, Mask, RejectedRows, RejectionBuilder, RejectionCode

_SQL = statements.family("writers")


def write(connection: Connection, rows: Rows, job: Integers, *, triggers: bool = False) -> Written:
    """Write rows in their order, span by span; those that PostgreSQL rejects are rejected.

    triggers: whether one may skip rows. Raises psycopg.Error if PostgreSQL fails for another reason than a row.
    """
    updates, jobs = rows.dataset.conflict_policy == "update", int(job.max(initial=0)) + 1
    rejected, left = in_savepoint(connection, lambda: _isolate(connection, rows))
    found = RejectionBuilder(len(job))
    found.add_rows(rejected)
    skipped = np.full(len(job), triggers) & left
    if skipped.any() and not updates:
        skipped &= ~_known(connection, rows, left, ~left & ~found.rejected)
    left &= ~skipped
    if rows.dataset.conflict_policy == "reject":
        found.add(left, RejectionCode.DUPLICATE_KEY, "", reject.reasons(rows, left))
    written = ~left & ~skipped & ~found.rejected
    counts = (np.bincount(job[mask], minlength=jobs).astype(np.int32) for mask in (written, skipped))
    return Written(next(counts), found.build(), next(counts))


def _known(connection: Connection, rows: Rows, left: Mask, written: Mask) -> Mask:
    """Return which of the rows that were neither written nor refused had keys that are known; a trigger skipped others.

    A key is known once an earlier row has it. If no row has, and the table has it now, another transaction wrote it.
    """
    first = staging.first_of_equal_keys(rows)
    key = np.cumsum(first) - 1
    counts = np.cumsum(written)
    earlier = counts > (counts - written)[first][key]
    elsewhere = left & ~np.bincount(key, written).astype(np.bool_)[key]
    if elsewhere.any():
        elsewhere = staging.known(connection, rows, elsewhere)
    known: Mask = left & (earlier | elsewhere)
    return known


def _isolate(connection: Connection, rows: Rows) -> tuple[RejectedRows, Mask]:
    """Write rows span by span; return those that PostgreSQL rejected, and those not written because of a conflict."""
    every = np.ones(rows.table.num_rows, np.bool_)
    staged = staging.stage(connection, rows, every)
    clauses = staging.clauses(rows.dataset, staged)
    action = conflict.action(rows.dataset)
    body = sql.SQL(_SQL["isolate_body"].decode()).format(**clauses, action=action).as_string(connection)
    digest = hashlib.sha256(body.encode()).hexdigest()[:24]
    name = sql.Identifier("pg_temp", f"bulkgrpc_isolate_{digest}")
    create = sql.SQL(_SQL["create_isolate"].decode())
    connection.execute(create.format(function=name, body=sql.Literal(body)))
    values = {
        "row_classes": list(failures.ROW_CLASSES),
        "server_classes": list(failures.SERVER_CLASSES),
        "known_classes": sorted(failures.POSTGRES_CLASSES),
        "in_function": failures.IN_FUNCTION,
        "at_raise": failures.AT_RAISE,
        "own_statement": sql.SQL("INSERT INTO {table} ({columns})").format(**clauses).as_string(connection),
    }
    call = sql.SQL(_SQL["call_isolate"].decode()).format(function=name)
    row = connection.cursor(binary=True).execute(call, values).fetchone()
    staging.clear(connection, staged)
    if row is None:
        raise AssertionError("a function without FROM returns one row")
    rejected, texts, lengths, left_alone = (value or b"" for value in row)
    left = np.zeros(len(every), np.bool_)
    left[np.frombuffer(left_alone, ">i4")] = True
    return _rejected(np.frombuffer(rejected, ">i4").astype(np.int32), texts, np.frombuffer(lengths, ">i4")), left


def _rejected(row: Integers, texts: bytes, lengths: Integers) -> RejectedRows:
    offsets = np.zeros(len(row) + 1, np.int32)
    np.cumsum(lengths, out=offsets[1:])
    reasons = pa.StringArray.from_buffers(len(row), pa.py_buffer(offsets), pa.py_buffer(texts))
    code = pa.repeat(pa.scalar(RejectionCode.REJECTED_BY_TABLE.value, pa.string()), len(row))
    field = pa.repeat(pa.scalar("", pa.string()), len(row))
    return RejectedRows(row, pa.record_batch([code, field, reasons], schema=CAUSES))
