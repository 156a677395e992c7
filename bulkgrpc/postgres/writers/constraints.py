"""Finds the rows that break a check or not-null constraint of their table: one query, or the columns' null masks."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import psycopg
from psycopg import sql

from bulkgrpc.datasets.ddl import table
from bulkgrpc.datasets.rows import Rows
from bulkgrpc.postgres import statements
from bulkgrpc.postgres.connection import Connection
from bulkgrpc.postgres.writers import staging
from bulkgrpc.postgres.writers.row_errors import is_about_a_row
from bulkgrpc.rejections import Mask, RejectedRows, RejectionBuilder, RejectionCode

_SQL = statements.family("constraints")


@dataclass(frozen=True, slots=True)
class _Check:
    """A check constraint: its name, its expression, the columns that it reads, those of them with the collation "C"."""

    name: str
    expression: str
    columns: frozenset[str]
    by_bytes: frozenset[str]


def broken_constraints(connection: Connection, rows: Rows) -> RejectedRows:
    """Return the rows that break a constraint of their table, each with the first one, as PostgreSQL names it.

    PostgreSQL rejects every row that is returned; it may reject more. No constraint is looked at if a trigger of the
    table may change rows first (the caller excludes those of its partitions), no check on columns that are not the
    dataset's or have a collation of their own other than "C", none of the whole row or with a function that is not
    immutable, and none at all if one cannot be evaluated.
    """
    if rows.deletes is not None and rows.has_deletes:
        # What is deleted has no values.
        written = ~rows.deletes
        return broken_constraints(connection, rows.keep(written)).moved(np.flatnonzero(written))
    name = table(rows.dataset).as_string(connection)
    found = RejectionBuilder(rows.table.num_rows)
    relation = rows.dataset.relation
    for (column,) in connection.execute(_SQL["not_null_columns"], {"table": name}).fetchall():
        if column in rows.table.schema.names and (values := rows.table.column(column)).null_count:
            mask = values.is_null().to_numpy(zero_copy_only=False)
            reason = f'null value in column "{column}" of relation "{relation}" violates not-null constraint'
            found.add(mask, RejectionCode.REJECTED_BY_TABLE, "", reason)
    checks = _checks(connection, rows, name)
    for number, mask in enumerate(_broken(connection, rows, checks) if checks else []):
        reason = f'new row for relation "{relation}" violates check constraint "{checks[number].name}"'
        found.add(mask, RejectionCode.REJECTED_BY_TABLE, "", reason)
    return found.build()


def _checks(connection: Connection, rows: Rows, name: str) -> list[_Check]:
    ours = {column.name for column in rows.dataset.columns}
    found = connection.execute(_SQL["checks"], {"table": name})
    checks = [_Check(check, text, frozenset(columns), frozenset(by_bytes)) for check, text, columns, by_bytes in found]
    return [check for check in checks if check.columns and check.columns <= ours]


def _broken(connection: Connection, rows: Rows, checks: list[_Check]) -> list[Mask]:
    """Return for each check which rows break it."""
    needed = frozenset().union(*(check.columns for check in checks))
    by_bytes = frozenset().union(*(check.by_bytes for check in checks))
    columns = [
        replace(column, type=f'{column.type} COLLATE "C"') if column.name in by_bytes else column
        for column in rows.dataset.columns
        if column.name in needed
    ]
    every = np.ones(rows.table.num_rows, np.bool_)
    broken = [sql.SQL("({}) IS FALSE").format(sql.SQL(check.expression)) for check in checks]
    parts = [
        sql.SQL("string_agg(int4send({}), ''::bytea) FILTER (WHERE {})").format(staging.ROW, part) for part in broken
    ]
    try:
        with connection.transaction():
            # Usually few rows are broken: only those are stored.
            name = staging.stage(connection, rows, every, columns, sql.SQL(" OR ").join(broken))
            query = sql.SQL("SELECT {} FROM {}").format(sql.SQL(", ").join(parts), name)
            found = connection.cursor(binary=True).execute(query).fetchone() or ()
            staging.clear(connection, name)
    except psycopg.Error as error:
        if not is_about_a_row(error):
            raise
        return []
    masks = []
    for positions in found:
        mask = np.zeros(rows.table.num_rows, np.bool_)
        mask[np.frombuffer(positions or b"", ">i4")] = True
        masks.append(mask)
    return masks
