"""Conversions into the columns of a table that exists, beyond those that are exact for every value. Pure.

Whether a value fits may depend on the value: a record whose value does not is rejected, its neighbours are written.
No value is rounded, cut or replaced, except that blanks at the end of a `char(n)`, which mean nothing there, are not
kept. What has no form of its own in COPY is a text that PostgreSQL reads.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pyarrow as pa

from bulkgrpc.datasets.columns import Column
from bulkgrpc.datasets.conversions import Conversion, Reading, TextLimit, convertible, keeps_microseconds

if TYPE_CHECKING:
    from bulkgrpc.datasets.table_description import TableColumn

_INTEGERS = {"int2": (16, pa.int16()), "int4": (32, pa.int32()), "int8": (64, pa.int64())}
_INTEGER_TYPES = frozenset({"integer", "bigint", "numeric"})
_FIELDS_OF_THEIR_OWN = frozenset(
    {"bool", "bytea", "char", "date", "float4", "float8", "int2", "int4", "int8", "money",
     "timestamp", "timestamptz", "timetz"}
)  # fmt: skip
"""Types whose text is not read: another field suits them, or the text means different things to different sessions."""
_READ_KEYS = frozenset({"cidr", "inet", "macaddr", "macaddr8", "uuid"})
"""Types of key columns whose texts may be read, besides enums: equal values have one binary form."""
_TEXTS = frozenset({"json", "xml"})
_NOT_CONSTANT = r"(?i)\bnow\b"


def bound_conversion(column: Column, found: TableColumn, *, key: bool) -> Conversion | None:
    """Return the conversion into a column of a table that exists; None if there is none.

    key: whether the column is part of the key, so that equal values must have one form.
    """
    exact = convertible(column, found.base, found.typmod, is_array=found.is_array)
    if exact is not None:
        return exact
    if column.type.endswith("[]") != found.is_array:
        return None
    element = column.type.removesuffix("[]")
    if element in _INTEGER_TYPES and found.base in _INTEGERS:
        bits, arrow = _INTEGERS[found.base]
        return Conversion(column, arrow, bounds=(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1))
    if column.type == "timestamp with time zone" and found.base == "timestamp":
        fits = keeps_microseconds(found.base, found.typmod)
        return Conversion(column, pa.timestamp("us"), utc=True) if fits else None
    if element != "text":
        return None
    return _from_text(column, found, key=key)


def _from_text(column: Column, found: TableColumn, *, key: bool) -> Conversion | None:
    limit = TextLimit(found.typmod - 4) if found.base in ("bpchar", "varchar") and found.typmod >= 0 else None
    if found.base == "bpchar" and not found.is_array:
        # What is read back has as many blanks at its end as the column is long, whatever was sent.
        return Conversion(column, limit=limit, blanks=True)
    if found.base in _FIELDS_OF_THEIR_OWN or not found.send:
        return None
    if (found.base == "numeric" and found.typmod >= 0) or not keeps_microseconds(found.base, found.typmod):
        return None
    if key and found.base not in _READ_KEYS and found.category != "E":
        return None
    textual = not found.is_array and (found.category in ("E", "S") or found.base in _TEXTS)
    reading = Reading(found.untyped, found.send, textual, _NOT_CONSTANT if found.base == "time" else "")
    return Conversion(column, limit=limit, reading=reading)
