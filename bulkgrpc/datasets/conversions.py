"""Exact conversions from a dataset's column type to the type that the table's column has. Pure, vectorized.

A conversion is exact if the value that is read back equals the value that was sent. Where that depends on the value
(a text and `character varying(20)`), the conversion has a limit, and `unfit_rows` returns the rows that are over it.
PostgreSQL alone would not do: it drops the trailing spaces of a text that is too long.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

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
    """What is done to the values of one column before COPY; nothing, if only the column is set.

    cast: Arrow type of the values, or of a list's elements. limit: of the texts. The others are only of tables that
    exist (`bound_conversions`). bounds: the smallest and the largest integer that the column stores. blanks: whether
    blanks at the end of a text mean nothing, so that they are cut. utc: whether a time is stored as the clock shows it
    in UTC. reading: how PostgreSQL reads the texts, None if it need not.
    """

    column: Column
    cast: pa.DataType | None = None
    limit: TextLimit | None = None
    bounds: tuple[int, int] | None = None
    blanks: bool = False
    utc: bool = False
    reading: Reading | None = None

    @property
    def does_something(self) -> bool:
        """Whether the values are checked or converted."""
        return self != Conversion(self.column)

    def expression(self, row: str = "") -> sql.Composable:
        """Return the value in the table's type, of a column of the dataset's type, as SQL: for rows that are staged.

        row: alias of the table of the column, "" for none.
        """
        name = sql.Identifier(row, self.column.name) if row else sql.Identifier(self.column.name)
        if self.reading is not None:
            return sql.SQL("CAST({} AS {})").format(name, sql.SQL(self.reading.type))
        if self.utc:
            return sql.SQL("({} AT TIME ZONE 'UTC')").format(name)
        return sql.SQL("rtrim({}, ' ')").format(name) if self.blanks else name


@dataclass(frozen=True, slots=True)
class Reading:
    """How PostgreSQL reads the texts of a column: by the input function of the type.

    type: as SQL, without a length. send: the function that returns a value in binary form. textual: whether that form
    is a text. excludes: a pattern of texts that are no constants for PostgreSQL, "" if there are none.
    """

    type: str
    send: str
    textual: bool
    excludes: str = ""


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
        fits = keeps_microseconds(base, typmod)
    return Conversion(column, _CASTS.get((source, base))) if fits else None


def convert(batch: pa.RecordBatch, conversions: Sequence[Conversion]) -> pa.RecordBatch:
    """Return the batch with its values in the table's types; the same batch if there is nothing to cast.

    batch: has the columns that are converted, with values of the dataset's types, none of them in `unfit_rows`.
    Metadata of fields stays. Raises pyarrow.ArrowInvalid if a value changed: no value of a dataset's type does. One
    native call a column.
    """
    for conversion in conversions:
        if conversion.cast is not None:
            position = batch.schema.get_field_index(conversion.column.name)
            field, values = batch.schema.field(position), batch.column(position)
            wanted = pa.list_(conversion.cast) if pa.types.is_list(field.type) else conversion.cast
            batch = batch.set_column(position, field.with_type(wanted), values.cast(wanted, safe=True))
        if conversion.blanks:
            position = batch.schema.get_field_index(conversion.column.name)
            trimmed = pc.utf8_rtrim(batch.column(position), " ")
            batch = batch.set_column(position, batch.schema.field(position), trimmed)
    return batch


def unfit_rows(batch: pa.RecordBatch, conversions: Sequence[Conversion]) -> list[UnfitRows]:
    """Return the rows that are over a limit, by column; nothing for columns without such rows.

    batch: before or after `convert`. The rows are the caller's to reject. Two native calls a column with a limit.
    """
    found = []
    for conversion in conversions:
        column, values = conversion.column, batch.column(conversion.column.name)
        if conversion.limit is not None:
            texts = pc.utf8_rtrim(values, " ") if conversion.blanks else values
            rows = _of_any_element(texts, partial(_over, limit=conversion.limit))
            if rows.any():
                found.append(UnfitRows(column, rows, _reason(column, conversion.limit)))
        if conversion.bounds is not None:
            rows = _of_any_element(values, partial(_outside, bounds=conversion.bounds))
            if rows.any():
                least, most = conversion.bounds
                where = f"outside {least} to {most}, which column {column.name} stores"
                found.append(UnfitRows(column, rows, f"field {column.field or column.name} is {where}"))
        if conversion.reading is not None and conversion.reading.excludes:
            rows = _of_any_element(values, partial(_matches, pattern=conversion.reading.excludes))
            if rows.any():
                found.append(UnfitRows(column, rows, f"field {column.field or column.name} is not a constant"))
    return found


def over_limits(conversions: Sequence[Conversion]) -> sql.Composed | None:
    """Return the condition of a query that finds, in columns of the dataset's types, what `unfit_rows` finds.

    None if no column has a limit. For the rows of atomic jobs, which were staged before the table was changed.
    """
    conditions = [condition for conversion in conversions for condition in _over_limits(conversion)]
    return sql.SQL(" OR ").join(conditions) if conditions else None


def _over_limits(conversion: Conversion) -> Iterator[sql.Composed]:
    limit, name = conversion.limit, sql.Identifier(conversion.column.name)
    each, is_list = sql.Identifier("bulkgrpc_element"), conversion.column.type.endswith("[]")
    value: sql.Composable = each if is_list else sql.SQL("rtrim({}, ' ')").format(name) if conversion.blanks else name
    conditions = []
    if limit is not None and limit.characters is not None:
        conditions.append(sql.SQL("char_length({}) > {}").format(value, limit.characters))
    if limit is not None and limit.bytes is not None:
        conditions.append(sql.SQL("octet_length({}) > {}").format(value, limit.bytes))
    if conversion.reading is not None and conversion.reading.excludes:
        conditions.append(sql.SQL("{} ~ {}").format(value, conversion.reading.excludes.replace(r"\b", r"\y")))
    for condition in conditions:
        of_any = sql.SQL("EXISTS (SELECT FROM unnest({}) AS bulkgrpc_unnested ({}) WHERE {})")
        yield of_any.format(name, each, condition) if is_list else condition


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


def keeps_microseconds(base: str, typmod: int) -> bool:
    """Return whether a type keeps all digits of a time. base: pg_type's name of it. typmod: of it, -1 if none."""
    if typmod < 0 or base not in ("timestamptz", "timestamp", "time", "interval"):
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


def _outside(values: pa.Array, bounds: tuple[int, int]) -> Mask:
    least, most = (pa.scalar(bound, pa.int64()) for bound in bounds)
    if pa.types.is_uint64(values.type):
        # No value is below 0, and a bound above 0 has the same type.
        return _true(pc.greater(values, pa.scalar(bounds[1], pa.uint64())))
    wide = values.cast(pa.int64())
    return _true(pc.or_(pc.less(wide, least), pc.greater(wide, most)))


def _matches(values: pa.Array, pattern: str) -> Mask:
    return _true(pc.match_substring_regex(values, pattern))


def _of_any_element(values: pa.Array, unfit: Callable[[pa.Array], Mask]) -> Mask:
    """Return which values are unfit; of lists, which have an element that is."""
    if not pa.types.is_list(values.type):
        return unfit(values)
    rows = np.zeros(len(values), np.bool_)
    rows[pc.list_parent_indices(values).to_numpy()[np.flatnonzero(unfit(values.flatten()))]] = True
    return rows


def _true(values: pa.Array) -> Mask:
    return np.asarray(pc.fill_null(values, False).to_numpy(zero_copy_only=False), np.bool_)


def _reason(column: Column, limit: TextLimit) -> str:
    most = f"{limit.bytes} bytes" if limit.characters is None else f"{limit.characters} characters"
    return f"field {column.field or column.name} is longer than the {most} that column {column.name} stores"
