"""Converts a file's column to a field's Arrow type: vectorized, without loss, and reports the first invalid value."""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json as pj

from bulkgrpc.tabular import text_values as text
from bulkgrpc.tabular.errors import InvalidValue, UnsuitableValue
from bulkgrpc.tabular.fields import Leaf
from bulkgrpc.tabular.json_cells import Cells, exact_double
from bulkgrpc.tabular.nested import is_map, keeps_values, loses_entries
from bulkgrpc.tabular.rules import TextForms

Convert = Callable[[pa.Array], pa.Array]
_WHOLE_MAX = 2**53
"""Beyond it a double does not have every whole number, so that one in a file may have lost digits."""
_NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"
_UNFIT = (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowTypeError, UnsuitableValue)


def read_cells(column: pa.Array, leaf: Leaf, name: str, cells: Cells) -> pa.Array:
    """Read a column of JSON texts; see `Cells.read`. Raises InvalidValue for the first invalid value."""
    return _converted(column, partial(cells.read, path=leaf.path), leaf, name)


def convert(column: pa.Array, leaf: Leaf, name: str, forms: TextForms) -> pa.Array:
    """Convert a column to a leaf's type. Nulls stay nulls.

    Text is parsed as the field's type: numbers, `true` and `false`, ISO 8601 times (UTC if they name no time zone),
    names or numbers of enum values, base64 for bytes, a JSON array for a list. Other types are cast without loss. name:
    the column's name in the file. Raises InvalidValue for the first invalid value.
    """
    column = plain(column)
    as_it_is = not (leaf.enum or leaf.json or leaf.contains_itself or leaf.column in {"numeric", "date"})
    if column.type.equals(leaf.type) and as_it_is:
        return column
    return _converted(column, _converter(column.type, leaf, forms), leaf, name)


def _converted(column: pa.Array, how: Convert, leaf: Leaf, name: str) -> pa.Array:
    try:
        return how(column)
    except _UNFIT:

        def invalid(row: int) -> InvalidValue:
            value = _shown(column, row)
            return InvalidValue(row, name, value, leaf.needed, hint_for(column.type, value, leaf))

        first = invalid(_first_unfit(column, how))
        raise replace(first, others=lambda: map(invalid, _unfit_rows(column, how))) from None


def plain(column: pa.Array) -> pa.Array:
    """Return a column in its plain form: without dictionary encoding, text as `string`, bytes as `binary`.

    Half-precision numbers become `float`, which has all of them: Arrow has no comparison for them.
    """
    if isinstance(column, pa.ExtensionArray):
        column = column.storage
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if pa.types.is_large_string(column.type) or pa.types.is_string_view(column.type):
        return column.cast(pa.string())
    if pa.types.is_float16(column.type):
        return column.cast(pa.float32())
    kinds = (pa.types.is_large_binary, pa.types.is_binary_view, pa.types.is_fixed_size_binary)
    return column.cast(pa.binary()) if any(is_kind(column.type) for is_kind in kinds) else column


def _shown(column: pa.Array, row: int) -> object:
    try:
        return column[row].as_py()
    except (ValueError, ImportError, OverflowError):
        # Python's types have no nanoseconds, and no year 10,000.
        try:
            return column.slice(row, 1).cast(pa.string())[0].as_py()
        except pa.ArrowInvalid:
            return column.slice(row, 1).cast(pa.int64())[0].as_py()


def hint_for(source: pa.DataType, value: object, leaf: Leaf) -> str:  # noqa: PLR0911 — one for each kind of value
    """Return the way out for a value, "" if there is no other than to correct it."""
    shown = str(value)
    if value is None:
        return ""
    if leaf.json and re.search(r"\d{16,}", shown):
        return "a number has more digits than a double: write it as text"
    if pa.types.is_timestamp(leaf.type):
        if pa.types.is_integer(source) or re.fullmatch(r"\d{9,19}", shown):
            return "a number has no unit: name it with --epoch s|ms|us|ns"
        if re.search(r"\.\d{7,}", shown):
            return "it has nanoseconds, and the table keeps microseconds: round it, or make the field a string"
        if re.match(r"\d{1,2}[./-]\d{1,2}[./-]\d{2,4}", shown):
            return "name its form, for example --time-format %d.%m.%Y"
    if pa.types.is_string(leaf.type) and pa.types.is_binary(source):
        return "bytes have no encoding: write them as text, or make the field bytes"
    if pa.types.is_timestamp(source) and (pa.types.is_date(leaf.type) or pa.types.is_string(leaf.type)):
        return "its time of day would be lost: make the field a google.protobuf.Timestamp"
    if pa.types.is_string(leaf.type) and (pa.types.is_integer(source) or pa.types.is_floating(source)):
        return "a number may have lost leading zeros or digits: write it as text"
    return _hint_for_number(source, shown, leaf)


def _hint_for_number(source: pa.DataType, shown: str, leaf: Leaf) -> str:
    floating, whole = pa.types.is_floating(leaf.type), pa.types.is_integer(leaf.type)
    if pa.types.is_floating(source) and (floating or whole):
        return "it would lose digits: make the field a double, or round it"
    if floating and (_is_number(source) or re.fullmatch(_NUMBER, shown)):
        return "it would lose digits, or be infinite or zero: make the field a string with COLUMN_TYPE_NUMERIC"
    if (leaf.column == "numeric" or whole or floating) and re.fullmatch(r"[+-]?[\d.]*,\d+", shown):
        return "read a decimal comma with --decimal , and marks of thousands with --thousands"
    return ""


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_decimal(kind))


def _first_unfit(column: pa.Array, how: Convert) -> int:
    """Return the row of the first invalid value, by log2(rows) conversions of parts of the column."""
    fits, unfit = 0, len(column)
    while unfit - fits > 1:
        middle = (fits + unfit) // 2
        try:
            how(column.slice(fits, middle - fits))
            fits = middle
        except _UNFIT:
            unfit = middle
    return fits


def _unfit_rows(column: pa.Array, how: Convert) -> Iterator[int]:
    """Yield the rows of all invalid values in order, by up to log2(rows) conversions of parts for each."""
    parts = [(0, len(column))]
    while parts:
        start, stop = parts.pop()
        try:
            how(column.slice(start, stop - start))
        except _UNFIT:
            if stop - start == 1:
                yield start
            else:
                middle = (start + stop) // 2
                parts += [(middle, stop), (start, middle)]


def _converter(source: pa.DataType, leaf: Leaf, forms: TextForms) -> Convert:  # noqa: PLR0911 — one for each kind
    is_text = pa.types.is_string(source)
    if leaf.contains_itself:
        # The codec would lose values.
        return partial(_reject_values, kind=leaf.type)
    if pa.types.is_null(source):
        return lambda column: pa.nulls(len(column), leaf.type)
    if pa.types.is_list(leaf.type):
        return lambda column: _lists(_parsed_lists(column, leaf) if is_text else column, leaf, forms)
    if leaf.enum:
        return lambda column: _enum_names(column, leaf)
    if is_text:
        return _from_text(leaf, forms)
    if pa.types.is_timestamp(leaf.type) and pa.types.is_integer(source) and forms.epoch:
        return lambda column: text.epochs(column.cast(pa.int64()), forms.epoch)
    found = next((read for is_kind, read in _TYPED if is_kind(leaf.type)), None)
    return (lambda column: found(column, leaf)) if found else lambda column: _nested(column, leaf)


def _nested(column: pa.Array, leaf: Leaf) -> pa.Array:
    """Return maps, or the messages of lists, of types that lose nothing. Names of enums are checked in text only."""
    if leaf.enum_within or not keeps_values(column.type, leaf.type) or (is_map(column.type) and loses_entries(column)):
        return _reject_values(column, leaf.type)
    return column.cast(leaf.type)


def _from_text(leaf: Leaf, forms: TextForms) -> Convert:
    kind = leaf.type
    if pa.types.is_string(kind):
        if leaf.column == "numeric":
            return partial(text.decimals, forms=forms)
        if leaf.column == "date" and forms.time_format:
            return lambda column: text.dates(column, forms).cast(pa.string())
        return lambda column: column
    readers: tuple[tuple[Callable[[pa.DataType], bool], Convert], ...] = (
        (pa.types.is_integer, partial(text.integers, kind=kind, forms=forms)),
        (pa.types.is_floating, partial(text.floats, kind=kind, forms=forms)),
        (pa.types.is_timestamp, partial(text.times, forms=forms)),
        (pa.types.is_date, partial(text.dates, forms=forms)),
        (pa.types.is_boolean, text.booleans),
        (pa.types.is_time, text.times_of_day),
        (pa.types.is_duration, text.durations),
        (pa.types.is_binary, text.from_base64),
    )
    return next((read for is_kind, read in readers if is_kind(kind)), partial(_reject_values, kind=kind))


def is_text_in_json(kind: pa.DataType) -> bool:
    """Return whether JSON represents values of a type as text."""
    return bool(pa.types.is_temporal(kind) or pa.types.is_binary(kind) or pa.types.is_string(kind))


def _reject_values(column: pa.Array, kind: pa.DataType) -> pa.Array:
    if column.null_count < len(column):
        raise UnsuitableValue
    return pa.nulls(len(column), kind)


def _to_text(column: pa.Array, leaf: Leaf) -> pa.Array:
    kind = column.type
    if pa.types.is_decimal(kind):
        # Arrow writes small decimals with an exponent.
        return text.decimals(column.cast(pa.string()), TextForms())
    if pa.types.is_date(kind) or (pa.types.is_integer(kind) and leaf.column == "numeric"):
        return column.cast(pa.date32()).cast(pa.string()) if pa.types.is_date(kind) else column.cast(pa.string())
    if pa.types.is_binary(kind) and leaf.column == "uuid":
        return uuid_texts(column)
    # A number for a text field may have lost leading zeros in the file already.
    return _reject_values(column, leaf.type)


def uuid_texts(column: pa.Array) -> pa.Array:
    """Return UUIDs of 16 bytes as text. Raises UnsuitableValue for another length."""
    if pc.any(pc.not_equal(pc.binary_length(column), 16)).as_py():
        raise UnsuitableValue
    # Arrow has no such kernel.
    return pa.array(
        [None if value is None else str(uuid.UUID(bytes=value)) for value in column.to_pylist()], pa.string()
    )


def _to_integer(column: pa.Array, leaf: Leaf) -> pa.Array:
    kind = column.type
    if pa.types.is_floating(kind) and pc.any(pc.greater(pc.abs(column), float(_WHOLE_MAX))).as_py():
        raise UnsuitableValue
    numbers = pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)
    return column.cast(leaf.type) if numbers else _reject_values(column, leaf.type)


def _to_float(column: pa.Array, leaf: Leaf) -> pa.Array:
    kind = column.type
    if pa.types.is_integer(kind):
        if pa.types.is_float32(leaf.type):
            return _same_after(column, column.cast(leaf.type, safe=False))
        return column.cast(leaf.type)
    if pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        return _same_after(column, column.cast(leaf.type, safe=False))
    return _reject_values(column, leaf.type)


def _same_after(column: pa.Array, converted: pa.Array) -> pa.Array:
    """Return converted values if they have the digits of a column. NaN is the same as NaN."""
    if pa.types.is_floating(column.type):
        differs = pc.and_(pc.not_equal(converted.cast(column.type), column), pc.invert(pc.is_nan(column)))
    else:
        differs = pc.not_equal(converted.cast(column.type), column)
    if pc.any(differs).as_py():
        raise UnsuitableValue
    return converted


def _to_time(column: pa.Array, leaf: Leaf) -> pa.Array:
    kind = column.type
    if pa.types.is_date(kind):
        return column.cast(pa.date32()).cast(pa.timestamp("us")).cast(leaf.type)
    return column.cast(leaf.type) if pa.types.is_timestamp(kind) else _reject_values(column, leaf.type)


def _to_date(column: pa.Array, leaf: Leaf) -> pa.Array:
    kind = column.type
    if pa.types.is_timestamp(kind) and kind.tz is None:
        days = column.cast(pa.date32(), safe=False)
        if pc.any(pc.not_equal(days.cast(kind), column)).as_py():
            raise UnsuitableValue
        return days
    return column.cast(leaf.type) if pa.types.is_date(kind) else _reject_values(column, leaf.type)


def _to_bytes(column: pa.Array, leaf: Leaf) -> pa.Array:
    return column.cast(leaf.type) if pa.types.is_binary(column.type) else _reject_values(column, leaf.type)


def _same_kind(column: pa.Array, leaf: Leaf) -> pa.Array:
    """Cast between units of times of day or of durations; anything else has no unit, or is no truth value."""
    kinds = (pa.types.is_time, pa.types.is_duration, pa.types.is_boolean)
    same = any(is_kind(column.type) and is_kind(leaf.type) for is_kind in kinds)
    return column.cast(leaf.type) if same else _reject_values(column, leaf.type)


_TYPED: tuple[tuple[Callable[[pa.DataType], bool], Callable[[pa.Array, Leaf], pa.Array]], ...] = (
    (pa.types.is_string, _to_text),
    (pa.types.is_integer, _to_integer),
    (pa.types.is_floating, _to_float),
    (pa.types.is_timestamp, _to_time),
    (pa.types.is_date, _to_date),
    (pa.types.is_binary, _to_bytes),
    (pa.types.is_time, _same_kind),
    (pa.types.is_duration, _same_kind),
    (pa.types.is_boolean, _same_kind),
)


def _enum_names(column: pa.Array, leaf: Leaf) -> pa.Array:
    names = [name for _, name in leaf.enum]
    numbers = [number for number, _ in leaf.enum]
    known = pa.array(names + [str(number) for number in numbers])
    found = pc.index_in(column.cast(pa.string()), known)
    if found.null_count != column.null_count:
        raise UnsuitableValue
    # A field whose enum is stored as a number is a number in the codec too.
    values = pa.array(names + names) if pa.types.is_string(leaf.type) else pa.array(numbers + numbers, leaf.type)
    return values.take(found)


def _parsed_lists(column: pa.Array, leaf: Leaf) -> pa.Array:
    """Parse each text as a JSON array."""
    if pc.any(pc.match_substring(column, "\n")).as_py():
        raise UnsuitableValue
    if pa.types.is_floating(leaf.type.value_type):
        return _parsed_numbers(column)
    inner = pa.string() if leaf.enum or is_text_in_json(leaf.type.value_type) else leaf.type.value_type
    schema = pa.schema([pa.field("v", pa.list_(inner))])
    lines = pc.binary_join_element_wise('{"v":', pc.fill_null(column, "null"), "}", "")
    document = "\n".join(lines.to_pylist()).encode() + b"\n"
    table = pj.read_json(
        pa.BufferReader(document),
        pj.ReadOptions(use_threads=False, block_size=len(document) + 1),
        pj.ParseOptions(explicit_schema=schema, unexpected_field_behavior="error"),
    )
    if len(table) != len(column):
        raise UnsuitableValue
    return table.column("v").combine_chunks()


def _parsed_numbers(column: pa.Array) -> pa.Array:
    """Parse each text as a JSON array of numbers. Python for each: Arrow's reader of JSON rounds them in silence."""
    try:
        found = [
            None if one is None else json.loads(one, parse_int=exact_double, parse_float=exact_double)
            for one in column.to_pylist()
        ]
        return pa.array(found, pa.list_(pa.float64()))
    except (ValueError, RecursionError, pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise UnsuitableValue from error


def _lists(column: pa.Array, leaf: Leaf, forms: TextForms) -> pa.Array:
    """Convert the values of lists. A null list becomes an empty one."""
    lengths = pc.fill_null(pc.list_value_length(column), 0).cast(pa.int32())
    offsets = pa.concat_arrays([pa.array([0], pa.int32()), pc.cumulative_sum(lengths).cast(pa.int32())])
    values = pc.list_flatten(column)
    if values.null_count:
        raise UnsuitableValue
    element = replace(leaf, type=leaf.type.value_type)
    try:
        converted = convert(values, element, leaf.name, forms)
    except InvalidValue as error:
        raise UnsuitableValue from error
    return pa.ListArray.from_arrays(offsets, converted, type=leaf.type)
