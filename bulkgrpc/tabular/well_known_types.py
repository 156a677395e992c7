"""Converts dates, times of day and decimals: one value in a file, a message with several fields in the codec. Pure."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc

_TIME = pa.time64("us")
_VALUES = {"google.type.Date": pa.date32(), "google.type.TimeOfDay": _TIME, "google.type.Decimal": pa.string()}


def file_type(message: str, kind: pa.DataType) -> pa.DataType:
    """Return the file's Arrow type for a field of a message type. kind: the codec's type."""
    if pa.types.is_list(kind):
        return pa.list_(file_type(message, kind.value_type))
    return _VALUES.get(message, kind) if pa.types.is_struct(kind) else kind


def for_codec(values: pa.Array, kind: pa.DataType) -> pa.Array:
    """Convert values of a file's type to the codec's type."""
    if values.type.equals(kind):
        return values
    if pa.types.is_list(kind):
        return pa.ListArray.from_arrays(values.offsets, for_codec(values.values, kind.value_type), type=kind)
    if pa.types.is_date32(values.type):
        parts = [pc.year(values), pc.month(values), pc.day(values)]
    elif pa.types.is_time(values.type):
        us = values.cast(pa.int64())
        seconds = pc.divide(us, 1_000_000)
        parts = [pc.divide(seconds, 3600), _rest(pc.divide(seconds, 60), 60), _rest(seconds, 60)]
        parts.append(pc.multiply(_rest(us, 1_000_000), 1000))
    else:
        parts = [values]
    zero = pa.scalar("" if pa.types.is_string(values.type) else 0)
    children = [
        pc.fill_null(part, zero.cast(part.type)).cast(field.type) for part, field in zip(parts, kind, strict=True)
    ]
    return pa.StructArray.from_arrays(children, fields=list(kind), mask=values.is_null())


def _rest(values: pa.Array, divisor: int) -> pa.Array:
    return pc.subtract(values, pc.multiply(pc.divide(values, divisor), divisor))
