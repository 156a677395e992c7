"""Converts a file's column to a field's Arrow type: vectorized, without loss, and reports the first invalid value."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable
from dataclasses import replace
from decimal import Decimal
from functools import partial

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json as pj

from bulkgrpc.cli.files.errors import InvalidValue, UnsuitableValue
from bulkgrpc.cli.files.fields import Leaf
from bulkgrpc.cli.files.json_cells import Cells

Convert = Callable[[pa.Array], pa.Array]
_UTC = pa.timestamp("us", "UTC")
_ZONE = r"(?:[Zz]|[+-]\d{2}:?\d{2})$"
_DATE = r"^\d{4}-\d{2}-\d{2}$"
_TIME_OF_DAY = r"^(?:[01]\d|2[0-3]):[0-5]\d(?::[0-5]\d(?:\.\d{1,6})?)?$"
_DURATION = r"^-?\d{1,12}(?:\.\d{1,6})?s$"


def read_cells(column: pa.Array, leaf: Leaf, name: str, cells: Cells) -> pa.Array:
    """Read a column of JSON texts; see `Cells.read`. Raises InvalidValue for the first invalid value."""
    return _converted(column, partial(cells.read, path=leaf.path), leaf, name)


def convert(column: pa.Array, leaf: Leaf, name: str) -> pa.Array:
    """Convert a column to a leaf's type. Nulls stay nulls.

    Text is parsed as the field's type: numbers, `true` and `false`, ISO 8601 times (UTC if they name no time zone),
    names or numbers of enum values, base64 for bytes, a JSON array for a list. Other types are cast without loss. name:
    the column's name in the file. Raises InvalidValue for the first invalid value.
    """
    column = plain(column)
    if column.type.equals(leaf.type) and not (leaf.enum or leaf.contains_itself):
        return column
    return _converted(column, _converter(column.type, leaf), leaf, name)


def _converted(column: pa.Array, how: Convert, leaf: Leaf, name: str) -> pa.Array:
    try:
        return how(column)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowTypeError, UnsuitableValue):
        row = _first_unfit(column, how)
        raise InvalidValue(row, name, column[row].as_py(), leaf.needed) from None


def plain(column: pa.Array) -> pa.Array:
    """Return a column in its plain form: without dictionary encoding, text as `string`."""
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if pa.types.is_large_string(column.type) or pa.types.is_string_view(column.type):
        return column.cast(pa.string())
    return column


def _first_unfit(column: pa.Array, how: Convert) -> int:
    """Return the row of the first invalid value, by log2(rows) conversions of parts of the column."""
    fits, unfit = 0, len(column)
    while unfit - fits > 1:
        middle = (fits + unfit) // 2
        try:
            how(column.slice(fits, middle - fits))
            fits = middle
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowTypeError, UnsuitableValue):
            unfit = middle
    return fits


def _converter(source: pa.DataType, leaf: Leaf) -> Convert:
    text = pa.types.is_string(source)
    foreign = pa.types.is_duration(leaf.type) or pa.types.is_time(leaf.type)
    if leaf.contains_itself or (foreign and not (text or pa.types.is_temporal(source))):
        # The codec would lose values, or a number has no unit.
        return partial(_reject_values, kind=leaf.type)
    if pa.types.is_list(leaf.type):
        return lambda column: _lists(_parsed_lists(column, leaf) if text else column, leaf)
    if leaf.enum:
        return lambda column: _enum_names(column, leaf)
    reads = next((read for is_kind, read in _READ_TEXT if text and is_kind(leaf.type)), None)
    if reads is not None:
        return reads
    if pa.types.is_string(leaf.type) and not (pa.types.is_date32(source) or pa.types.is_decimal(source)):
        # A number for a text field may have lost leading zeros in the file already.
        return partial(_reject_values, kind=leaf.type)
    return lambda column: column.cast(leaf.type)


def is_text_in_json(kind: pa.DataType) -> bool:
    """Return whether JSON represents values of a type as text."""
    return bool(pa.types.is_temporal(kind) or pa.types.is_binary(kind) or pa.types.is_string(kind))


def _reject_values(column: pa.Array, kind: pa.DataType) -> pa.Array:
    if column.null_count < len(column):
        raise UnsuitableValue
    return pa.nulls(len(column), kind)


def _times(column: pa.Array) -> pa.Array:
    dates = pc.match_substring_regex(column, _DATE)
    column = pc.if_else(dates, pc.binary_join_element_wise(column, "T00:00:00Z", ""), column)
    zoned = pc.match_substring_regex(column, _ZONE)
    return pc.if_else(zoned, column, pc.binary_join_element_wise(column, "Z", "")).cast(_UTC)


def _times_of_day(column: pa.Array) -> pa.Array:
    if not _all_like(column, _TIME_OF_DAY):
        raise UnsuitableValue
    moments = pc.binary_join_element_wise("1970-01-01T", column, "Z", "").cast(_UTC)
    return moments.cast(pa.int64()).cast(pa.time64("us"))


def _durations(column: pa.Array) -> pa.Array:
    if not _all_like(column, _DURATION):
        raise UnsuitableValue
    seconds = pc.utf8_rtrim(column, "s").cast(pa.decimal128(24, 6))
    return pc.multiply(seconds, pa.scalar(Decimal(1_000_000))).cast(pa.int64()).cast(pa.duration("us"))


def _all_like(column: pa.Array, pattern: str) -> bool:
    return bool(pc.all(pc.fill_null(pc.match_substring_regex(column, pattern), True)).as_py())


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


def _from_base64(column: pa.Array) -> pa.Array:
    # Arrow has no base64 kernel: this is the only conversion that runs Python for each value.
    try:
        return pa.array(
            [None if value is None else base64.b64decode(value, validate=True) for value in column.to_pylist()],
            pa.binary(),
        )
    except (binascii.Error, ValueError) as error:
        raise UnsuitableValue from error


_READ_TEXT: tuple[tuple[Callable[[pa.DataType], bool], Convert], ...] = (
    (pa.types.is_timestamp, _times),
    (pa.types.is_time, _times_of_day),
    (pa.types.is_duration, _durations),
    (pa.types.is_binary, _from_base64),
)


def _parsed_lists(column: pa.Array, leaf: Leaf) -> pa.Array:
    """Parse each text as a JSON array."""
    if pc.any(pc.match_substring(column, "\n")).as_py():
        raise UnsuitableValue
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


def _lists(column: pa.Array, leaf: Leaf) -> pa.Array:
    """Convert the values of lists. A null list becomes an empty one."""
    if pa.types.is_null(column.type):
        column = pa.nulls(len(column), leaf.type)
    lengths = pc.fill_null(pc.list_value_length(column), 0).cast(pa.int32())
    offsets = pa.concat_arrays([pa.array([0], pa.int32()), pc.cumulative_sum(lengths).cast(pa.int32())])
    values = pc.list_flatten(column)
    if values.null_count:
        raise UnsuitableValue
    element = replace(leaf, type=leaf.type.value_type)
    try:
        converted = convert(values, element, leaf.name)
    except InvalidValue as error:
        raise UnsuitableValue from error
    return pa.ListArray.from_arrays(offsets, converted, type=leaf.type)
