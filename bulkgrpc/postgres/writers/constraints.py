"""Which rows a table's check constraints refuse, asked of PostgreSQL in one query over all rows of a chunk."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import psycopg
from psycopg import sql

from bulkgrpc.datasets.ddl import table
from bulkgrpc.datasets.rows import Rows
from bulkgrpc.postgres.writers import staging
from bulkgrpc.postgres.writers.copy import Connection
from bulkgrpc.postgres.writers.written import RefusedRow
from bulkgrpc.rejections import RejectionCode

# In the order in which PostgreSQL checks them. A trigger may change a row before it is checked: then only writing it
# tells. (`conenforced` is there from PostgreSQL 18 on.)
_CHECKS = """
    SELECT conname, pg_get_expr(conbin, conrelid), ARRAY(
        SELECT attname::text FROM pg_attribute WHERE attrelid = conrelid AND attnum = ANY (conkey)
    )
    FROM pg_constraint AS checks
    WHERE conrelid = %s::regclass AND contype = 'c'
      AND coalesce((to_jsonb(checks) ->> 'conenforced')::boolean, true)
      AND NOT EXISTS (SELECT FROM pg_trigger WHERE tgrelid = conrelid AND NOT tgisinternal)
    ORDER BY conname
"""


@dataclass(frozen=True, slots=True)
class _Check:
    """A check constraint: its name, its expression, the columns that it is about."""

    name: str
    expression: str
    columns: frozenset[str]


def breaking_checks(connection: Connection, rows: Rows) -> list[RefusedRow]:
    """Return the rows that break a check constraint of their table, each with the first one that it breaks.

    Constraints on columns that are not the dataset's are passed over, and all of them if one fails to be computed: so
    what is returned is refused by the table, but it may refuse more.
    """
    checks = _checks(connection, rows)
    if not checks:
        return []
    needed = frozenset().union(*(check.columns for check in checks))
    columns = [column for column in rows.dataset.columns if column.name in needed]
    every = np.ones(rows.table.num_rows, dtype=np.bool_)
    try:
        with connection.transaction():
            name = staging.stage(connection, rows, every, columns)
            found = connection.execute(_broken(checks, name)).fetchall()
            staging.clear(connection, name)
    except (psycopg.errors.DataError, psycopg.errors.RaiseException):
        return []
    return [
        RefusedRow(
            row,
            RejectionCode.REFUSED_BY_TABLE,
            f'new row for relation "{rows.dataset.name}" violates check constraint "{checks[number].name}"',
        )
        for row, number in found
    ]


def _checks(connection: Connection, rows: Rows) -> list[_Check]:
    ours = {column.name for column in rows.dataset.columns}
    found = connection.execute(_CHECKS, (table(rows.dataset).as_string(connection),))
    checks = [_Check(name, expression, frozenset(columns)) for name, expression, columns in found]
    return [check for check in checks if check.columns and check.columns <= ours]


def _broken(checks: list[_Check], name: sql.Identifier) -> sql.Composed:
    whens = [
        sql.SQL("WHEN ({}) IS FALSE THEN {}").format(sql.SQL(check.expression), number)
        for number, check in enumerate(checks)
    ]
    return sql.SQL(
        "SELECT {row}, broken FROM (SELECT {row}, CASE {whens} END AS broken FROM {staging}) AS checked "
        "WHERE broken IS NOT NULL"
    ).format(row=staging.ROW, whens=sql.SQL(" ").join(whens), staging=name)
