"""Lets PostgreSQL read texts for columns whose types have no form of their own in COPY: addresses, enums, ranges.

The texts are staged, and one statement returns what the types' input functions make of them, in binary form. COPY then
writes that form, so that every writer takes such rows as any others. Where PostgreSQL does not accept a text, a
function looks for all such rows, span by span; these are rejected. The number of statements does not grow with the
rows.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import psycopg
import pyarrow as pa
from psycopg import sql

from bulkgrpc.consume.failures import SERVER_CLASSES
from bulkgrpc.datasets.conversions import Conversion, Reading
from bulkgrpc.datasets.rows import Rows
from bulkgrpc.postgres import statements
from bulkgrpc.postgres.connection import Connection
from bulkgrpc.postgres.writers import staging
from bulkgrpc.rejections import Mask, RejectedRows, RejectionBuilder, RejectionCode

_SQL = statements.family("writers")
_ABOUT_A_TYPE = ("42", "0A")
"""Classes of errors that are not about a text: the type was changed meanwhile, or the role may not use it."""
_INTERNAL = "XX"
"""Extensions report a text that they cannot read as an internal error."""
_RAISED = (*(one for one in SERVER_CLASSES if one != _INTERNAL), *_ABOUT_A_TYPE)


@dataclass(frozen=True, slots=True)
class Read:
    """values: by column, of the rows that are not rejected, as COPY BINARY writes them. rejected: the other rows."""

    values: Mapping[str, pa.Array]
    rejected: RejectedRows


def is_needed(conversions: Sequence[Conversion]) -> bool:
    """Return whether PostgreSQL has to read texts of a column."""
    return any(conversion.reading is not None for conversion in conversions)


def read(connection: Connection, rows: Rows, conversions: Sequence[Conversion]) -> Read:
    """Return what PostgreSQL reads the texts of rows as; reject the rows with a text that it does not read.

    In the caller's transaction. conversions: at least one with `reading`. Raises psycopg.Error if PostgreSQL fails
    for another reason than a text.
    Cost: one COPY of the texts and one query, whose result has the values once more.
    """
    read_as = [(one, one.reading) for one in conversions if one.reading is not None]
    staged = staging.stage(connection, rows, np.ones(len(rows.payload), np.bool_), [one.column for one, _ in read_as])
    try:
        with connection.transaction():
            return Read(_values(connection, staged, read_as), RejectedRows.none())
    except psycopg.Error as error:
        if (error.sqlstate or "08")[:2] in _RAISED:
            raise
    rejected = _rejected(connection, staged, read_as, len(rows.payload))
    kept = ~rejected.mask(len(rows.payload))
    staging.clear(connection, staged)
    staged = staging.stage(connection, rows, kept, [one.column for one, _ in read_as])
    return Read(_values(connection, staged, read_as), rejected)


def _values(
    connection: Connection, staged: sql.Identifier, read_as: Sequence[tuple[Conversion, Reading]]
) -> dict[str, pa.Array]:
    """Return the values of staged texts, in the order of their rows."""
    parts, sent = list[sql.Composable](), list[sql.Composable]()
    for number, (conversion, reading) in enumerate(read_as):
        value = sql.Identifier(f"value_{number}")
        sent.append(sql.SQL("{} AS {}").format(_sent(conversion, reading), value))
        parts.append(sql.SQL("string_agg({}, ''::bytea)").format(value))
        parts.append(sql.SQL("string_agg(int4send(coalesce(octet_length({}), -1)), ''::bytea)").format(value))
    query = sql.SQL("SELECT {} FROM (SELECT {} FROM {} ORDER BY {}) AS sent").format(
        sql.SQL(", ").join(parts), sql.SQL(", ").join(sent), staged, staging.ROW
    )
    row = connection.cursor(binary=True).execute(query).fetchone() or ()
    staging.clear(connection, staged)
    return {
        conversion.column.name: _array(row[2 * number] or b"", row[2 * number + 1] or b"", textual=reading.textual)
        for number, (conversion, reading) in enumerate(read_as)
    }


def _array(values: bytes, lengths: bytes, *, textual: bool) -> pa.Array:
    """Return an array of values that are joined. lengths: of each, big-endian, -1 for null."""
    found = np.frombuffer(lengths, ">i4")
    offsets = np.zeros(len(found) + 1, np.int32)
    np.cumsum(np.maximum(found, 0), out=offsets[1:])
    there = pa.array(found >= 0)
    nulls = None if (found >= 0).all() else there.buffers()[1]
    kind = pa.string() if textual else pa.binary()
    return pa.Array.from_buffers(kind, len(found), [nulls, pa.py_buffer(offsets), pa.py_buffer(values)])


def _rejected(
    connection: Connection, staged: sql.Identifier, read_as: Sequence[tuple[Conversion, Reading]], count: int
) -> RejectedRows:
    """Return the staged rows with a text that PostgreSQL does not read, each with the first such text's reason."""
    found = RejectionBuilder(count)
    for conversion, reading in read_as:
        body = sql.SQL(_SQL["unreadable_body"].decode())
        text = body.format(staging=staged, row=staging.ROW, sent=_sent(conversion, reading)).as_string(connection)
        digest = hashlib.sha256(text.encode()).hexdigest()[:24]
        function = sql.Identifier("pg_temp", f"bulkgrpc_unreadable_{digest}")
        create = sql.SQL(_SQL["create_unreadable"].decode())
        connection.execute(create.format(function=function, body=sql.Literal(text)))
        call = sql.SQL(_SQL["call_unreadable"].decode()).format(function=function)
        row = connection.cursor(binary=True).execute(call, {"raised": list(_RAISED)}).fetchone()
        positions, texts, lengths = (value or b"" for value in row or (b"", b"", b""))
        mask: Mask = np.zeros(count, np.bool_)
        mask[np.frombuffer(positions, ">i4")] = True
        reasons = _array(texts, lengths, textual=True)
        field = conversion.column.field or conversion.column.name
        found.add(mask, RejectionCode.REJECTED_BY_TABLE, field, reasons)
    return found.build()


def _sent(conversion: Conversion, reading: Reading) -> sql.Composed:
    return sql.SQL("{}({})").format(sql.SQL(reading.send), conversion.expression())
