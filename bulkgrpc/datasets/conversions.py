"""Exact conversions from a dataset's column type to the type that the table's column has. Pure, vectorized.

A conversion is exact if the value that is read back equals the value that was sent. Where that depends on the value
(a text and `character varying(20)`), the conversion has a limit, and `unfit_rows` returns the rows that are over it.
PostgreSQL alone would not do: it drops the trailing spaces of a text that is too long.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from psycopg import sql

from bulkgrpc.datasets.columns import Column

Mask = npt.NDArray[np.bool_]

# Names of the types in pg_type. The name of an array type derives from that of its element type.
_BASES = {
    "boolean": "bool",
    "integer": "int4",
    "bigint": "int8",
    "real": "float4",
    "double precision": "float8",
    "numeric": "numeric",
    "text": "text",
    "bytea": "bytea",
    "timestamp with time zone": "timestamptz",
    "date": "date",
    "time": "time",
    "interval": "interval",
    "jsonb": "jsonb",
    "uuid": "uuid",
}
_CASTS = {
    ("int4", "int8"): pa.int64(),
    ("int4", "float8"): pa.float64(),
    ("int4", "numeric"): pa.decimal128(10, 0),
    ("int8", "numeric"): pa.decimal128(19, 0),
    ("float4", "float8"): pa.float64(),
}
"""From the dataset's type to the table's, the Arrow type that COPY BINARY writes as the latter."""
_DIGITS = {"int4": (10, 0), "int8": (19, 0), "numeric": (20, 0)}
"""Digits before and after the point that values have. A `numeric` without precision is of a uint64."""
_NUMERIC = re.compile(r"numeric\((\d+),(\d+)\)")
_MICROSECONDS = 6
_INTERVAL_FULL_RANGE = 0x7FFF
_NAME_BYTES_MAX = 63


@dataclass(frozen=True, slots=True)
class TextLimit:
    """The longest text that a column stores unchanged, in characters and in bytes; None where there is no limit."""

    characters: int | None = None
    bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Conversion:
    """What is done to the values of one column before COPY. At least one of the two is set.

    cast: Arrow type of the values, or of a list's elements. limit: of the texts.
    """

    column: Column
    cast: pa.DataType | None = None
    limit: TextLimit | None = None


@dataclass(frozen=True, slots=True)
class UnfitRows:
    """The rows whose value of a column cannot be stored as it is, and why."""

    column: Column
    rows: Mask
    reason: str


def convertible(column: Column, base: str, typmod: int, *, is_array: bool) -> Conversion | None:
    """Return the exact conversion into a column of the table; None if there is none.

    base: pg_type's name of the table's type, below its domains, of the element if it is an array. typmod: of it, -1 if
    none. A Conversion with neither cast nor limit leaves the values as they are.
    """
    name = column.type.removesuffix("[]")
    if (name != column.type) != is_array:
        return None
    digits = _NUMERIC.fullmatch(name)
    source = "numeric" if digits else _BASES[name]
    if source == "text":
        # An array's elements have their type's number with them: texts are not taken for elements of another type.
        return Conversion(column) if base == "text" else None if is_array else _text(column, base, typmod)
    if source != base and (source, base) not in _CASTS:
        return None
    if base == "numeric":
        held = (int(digits[1]) - int(digits[2]), int(digits[2])) if digits else _DIGITS[source]
        fits = _numeric_takes(held, typmod)
    else:
        fits = _keeps_microseconds(base, typmod)
    return Conversion(column, _CASTS.get((source, base))) if fits else None


def convert(batch: pa.RecordBatch, conversions: Sequence[Conversion]) -> pa.RecordBatch:
    """Return the batch with its values in the table's types; the same batch if there is nothing to cast.

    batch: has the columns that are converted, with values of the dataset's types. Metadata of fields stays. Raises
    pyarrow.ArrowInvalid if a value changed: no value of a dataset's type does. One native call a column.
    """
    for conversion in conversions:
        if conversion.cast is not None:
            position = batch.schema.get_field_index(conversion.column.name)
            field, values = batch.schema.field(position), batch.column(position)
            wanted = pa.list_(conversion.cast) if pa.types.is_list(field.type) else conversion.cast
            batch = batch.set_column(position, field.with_type(wanted), values.cast(wanted, safe=True))
    return batch


def unfit_rows(batch: pa.RecordBatch, conversions: Sequence[Conversion]) -> list[UnfitRows]:
    """Return the rows that are over a limit, by column; nothing for columns without such rows.

    batch: before or after `convert`. The rows are the caller's to reject. Two native calls a column with a limit.
    """
    found = []
    for conversion in conversions:
        if conversion.limit is not None:
            rows = _over(batch.column(conversion.column.name), conversion.limit)
            if rows.any():
                found.append(UnfitRows(conversion.column, rows, _reason(conversion.column, conversion.limit)))
    return found


def over_limits(conversions: Sequence[Conversion]) -> sql.Composed | None:
    """Return the condition of a query that finds, in columns of the dataset's types, what `unfit_rows` finds.

    None if no column has a limit. For the rows of atomic jobs, which were staged before the table was changed.
    """
    conditions: list[sql.Composed] = []
    for conversion in conversions:
        limit, name = conversion.limit, sql.Identifier(conversion.column.name)
        if limit is not None and limit.characters is not None:
            conditions.append(sql.SQL("char_length({}) > {}").format(name, limit.characters))
        if limit is not None and limit.bytes is not None:
            conditions.append(sql.SQL("octet_length({}) > {}").format(name, limit.bytes))
    return sql.SQL(" OR ").join(conditions) if conditions else None


def _text(column: Column, base: str, typmod: int) -> Conversion | None:
    characters = None if typmod < 0 else typmod - 4
    match base:
        case "text":
            return Conversion(column)
        case "varchar":
            return Conversion(column, limit=None if characters is None else TextLimit(characters))
        case "name":
            return Conversion(column, limit=TextLimit(bytes=_NAME_BYTES_MAX))
    # Not character(n): what is read back has blanks that were not sent.
    return None


def _numeric_takes(held: tuple[int, int], typmod: int) -> bool:
    """Return whether a numeric takes all values with so many digits before and after the point."""
    if typmod < 0:
        return True
    precision = (typmod - 4) >> 16
    # 11 bits with a sign: from PostgreSQL 15 on a scale may be below 0.
    scale = (((typmod - 4) & 0x7FF) ^ 0x400) - 0x400
    return precision - scale >= held[0] and scale >= held[1]


def _keeps_microseconds(base: str, typmod: int) -> bool:
    if typmod < 0 or base not in ("timestamptz", "time", "interval"):
        return True
    if base == "interval":
        return typmod >> 16 == _INTERVAL_FULL_RANGE and typmod & 0xFFFF >= _MICROSECONDS
    return typmod >= _MICROSECONDS


def _over(values: pa.Array, limit: TextLimit) -> Mask:
    over = np.zeros(len(values), np.bool_)
    if limit.characters is not None:
        over |= _true(pc.greater(pc.utf8_length(values), limit.characters))
    if limit.bytes is not None:
        over |= _true(pc.greater(pc.binary_length(values), limit.bytes))
    return over


def _true(values: pa.Array) -> Mask:
    return np.asarray(pc.fill_null(values, False).to_numpy(zero_copy_only=False), np.bool_)


def _reason(column: Column, limit: TextLimit) -> str:
    most = f"{limit.bytes} bytes" if limit.characters is None else f"{limit.characters} characters"
    return f"field {column.field or column.name} is longer than the {most} that column {column.name} stores"
