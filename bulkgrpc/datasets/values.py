"""From the Arrow values of a field to those of its column, and which of them the column cannot store. Vectorized."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from bulkgrpc.datasets.columns import Column, Kind, default_scalar

Mask = npt.NDArray[np.bool_]
Integers = npt.NDArray[np.int64]

_DIGIT = np.frombuffer(
    bytes(int(chr(c), 16) if chr(c) in "0123456789abcdefABCDEF" else 0 for c in range(256)), np.uint8
)
_DAYS = np.array([0, 31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31])
_UUID = r"^[0-9a-fA-F]{8}-(?:[0-9a-fA-F]{4}-){3}[0-9a-fA-F]{12}$"
_DATE = r"^\d{4}-\d{2}-\d{2}$"
_TIME = r"^\d{4}-\d{2}-\d{2}T(?:[01]\d|2[0-3]):[0-5]\d:[0-5]\d(?:\.\d{1,9})?(?:Z|[+-](?:[01]\d|2[0-3]):[0-5]\d)$"
_NANOS_MAX = 999_999_999


@dataclass(frozen=True, slots=True)
class Converted:
    """A column's values; null with `unfit` where the field's value does not fit. needed: what would fit."""

    values: pa.Array
    unfit: Mask
    needed: str


def convert(column: Column, values: pa.Array) -> Converted:
    """Convert the values of a field that is not Kind.PLAIN or Kind.JSON. Empty text and bytes count as unset."""
    return _CONVERSIONS[column.kind](column, values)


def filled(column: Column, values: pa.Array) -> pa.Array:
    """Return the values with the column's default where they are null."""
    default = default_scalar(column.type, column.default)
    return pc.fill_null(values.cast(default.type), default)


def _set(values: pa.Array) -> pa.Array:
    """Return the values with null for those that are empty."""
    return pc.if_else(pc.equal(pc.binary_length(values), 0), pa.scalar(None, values.type), values)


def _fitting(values: pa.Array, fits: pa.Array) -> tuple[pa.Array, Mask]:
    """Return the values with null for those that do not fit, and where that is."""
    unfit = pc.fill_null(pc.invert(fits), False).to_numpy(zero_copy_only=False)
    return (values if not unfit.any() else pc.if_else(fits, values, pa.scalar(None, values.type))), unfit


def _json_text(_column: Column, values: pa.Array) -> Converted:
    # PostgreSQL checks whether the text is JSON.
    values = _set(values)
    return Converted(values, np.zeros(len(values), np.bool_), "JSON")


def _decimal(_column: Column, values: pa.StructArray) -> Converted:
    return Converted(values.flatten()[0], np.zeros(len(values), np.bool_), "text")


def _numeric(column: Column, values: pa.Array) -> Converted:
    if pa.types.is_struct(values.type):
        values = values.flatten()[0]
    precision, scale = column.digits
    texts = _set(values)
    fraction = rf"\.\d{{0,{scale}}}0*" if scale else r"\.0*"
    fits = pc.and_(
        pc.match_substring_regex(texts, r"^[+-]?\d+(?:\.\d+)?$"),
        pc.match_substring_regex(texts, rf"^[+-]?0*\d{{0,{precision - scale}}}(?:{fraction})?$"),
    )
    texts, unfit = _fitting(texts, fits)
    texts = pc.replace_substring_regex(texts, r"^([+-]?)0+(\d)", r"\1\2")
    texts = pc.replace_substring_regex(texts, rf"^([^.]*\.\d{{{scale}}})0+$", r"\1")
    texts = pc.ascii_ltrim(pc.ascii_rtrim(texts, "."), "+")
    needed = f"a decimal number of up to {precision - scale} digits before the point and {scale} after it"
    return Converted(texts.cast(pa.decimal128(precision, scale)), unfit, needed)


def _uuid_text(_column: Column, values: pa.Array) -> Converted:
    texts, unfit = _fitting(_set(values), pc.match_substring_regex(_set(values), _UUID))
    digits = _DIGIT[_fixed(pc.replace_substring(texts, "-", ""), "0" * 32)].reshape(-1, 2)
    return Converted(_sixteen((digits[:, 0] << 4 | digits[:, 1]).astype(np.uint8), texts), unfit, "a UUID")


def _uuid_bytes(_column: Column, values: pa.Array) -> Converted:
    given = _set(values)
    given, unfit = _fitting(given, pc.equal(pc.binary_length(given), 16))
    return Converted(_sixteen(_fixed(given, bytes(16)), given), unfit, "the 16 bytes of a UUID")


def _fixed(values: pa.Array, absent: str | bytes) -> npt.NDArray[np.uint8]:
    """Return the bytes of values that have all the length of `absent`, which stands for null."""
    whole = pc.fill_null(values, absent)
    joined = pc.binary_join(pa.ListArray.from_arrays(pa.array([0, len(whole)], pa.int32()), whole), type(absent)())
    return np.frombuffer(joined.cast(pa.binary())[0].as_py(), np.uint8)


def _sixteen(data: npt.NDArray[np.uint8], like: pa.Array) -> pa.Array:
    made = pa.FixedSizeBinaryArray.from_buffers(pa.binary(16), len(like), [None, pa.py_buffer(data.tobytes())])
    return made if like.null_count == 0 else pc.if_else(like.is_valid(), made, pa.scalar(None, pa.binary(16)))


def _date(_column: Column, values: pa.StructArray) -> Converted:
    year, month, day = (pc.fill_null(child, 1).to_numpy().astype(np.int64) for child in values.flatten())
    return _dates(year, month, day, values, "a whole date of the years 1 to 9999")


def _date_text(_column: Column, values: pa.Array) -> Converted:
    texts = _set(values)
    texts, malformed = _fitting(texts, pc.match_substring_regex(texts, _DATE))
    found = _dates(*_year_month_day(texts), texts, "a date like 2013-01-31")
    return Converted(found.values, found.unfit | malformed, found.needed)


def _year_month_day(texts: pa.Array) -> tuple[Integers, Integers, Integers]:
    digits = _DIGIT[_fixed(pc.utf8_slice_codeunits(texts, 0, 10), "2000-01-01")].astype(np.int64).reshape(-1, 10)
    return (
        digits[:, :4] @ np.array([1000, 100, 10, 1]),
        digits[:, 5:7] @ np.array([10, 1]),
        digits[:, 8:] @ np.array([10, 1]),
    )


def _calendar(year: Integers, month: Integers, day: Integers) -> Mask:
    leap = (year % 4 == 0) & ((year % 100 != 0) | (year % 400 == 0)) & (month == 2)
    known = (month >= 1) & (month <= 12)
    last = _DAYS[np.where(known, month, 0)] + leap
    found: Mask = (year >= 1) & (year <= 9999) & known & (day >= 1) & (day <= last)
    return found


def _dates(year: Integers, month: Integers, day: Integers, like: pa.Array, needed: str) -> Converted:
    fits = _calendar(year, month, day)
    # Days since 1970 of the proleptic Gregorian calendar, years counted from March.
    year = np.where(fits, year, 1970) - (month <= 2)
    era = year // 400
    of_era = year - era * 400
    of_year = (153 * ((month + 9) % 12) + 2) // 5 + day - 1
    days = era * 146097 + of_era * 365 + of_era // 4 - of_era // 100 + of_year - 719468
    there = like.is_valid().to_numpy(zero_copy_only=False)
    days = np.where(fits, days, 0).astype(np.int32)
    return Converted(pa.array(days, pa.int32(), mask=~(there & fits)).cast(pa.date32()), there & ~fits, needed)


def _time(_column: Column, values: pa.StructArray) -> Converted:
    hours, minutes, seconds, nanos = (pc.fill_null(child, 0).to_numpy().astype(np.int64) for child in values.flatten())
    fits = (minutes >= 0) & (minutes <= 59) & (seconds >= 0) & (seconds <= 59) & (nanos >= 0) & (nanos <= _NANOS_MAX)
    end = (hours == 24) & (minutes == 0) & (seconds == 0) & (nanos == 0)
    fits &= ((hours >= 0) & (hours <= 23)) | end
    us = ((hours * 60 + minutes) * 60 + seconds) * 1_000_000 + nanos // 1000
    there = values.is_valid().to_numpy(zero_copy_only=False)
    times = pa.array(np.where(fits, us, 0), pa.int64(), mask=~(there & fits)).cast(pa.time64("us"))
    return Converted(times, there & ~fits, "a time from 00:00:00 to 24:00:00")


def _timestamp_text(_column: Column, values: pa.Array) -> Converted:
    texts = _set(values)
    texts, malformed = _fitting(texts, pc.match_substring_regex(texts, _TIME))
    texts, no_day = _fitting(texts, pa.array(_calendar(*_year_month_day(texts))))
    texts = pc.replace_substring_regex(texts, r"(\.\d{6})\d+", r"\1")
    needed = "a time like 2013-01-31T06:00:00Z"
    return Converted(texts.cast(pa.timestamp("us", "UTC")), malformed | no_day, needed)


def _bigint(_column: Column, values: pa.Array) -> Converted:
    values, unfit = _fitting(values, pc.less_equal(values, pa.scalar(2**63 - 1, pa.uint64())))
    return Converted(values.cast(pa.int64()), unfit, "at most 9223372036854775807")


_CONVERSIONS: dict[Kind, Callable[[Column, pa.Array], Converted]] = {
    Kind.JSON_TEXT: _json_text,
    Kind.DECIMAL: _decimal,
    Kind.NUMERIC: _numeric,
    Kind.UUID_TEXT: _uuid_text,
    Kind.UUID_BYTES: _uuid_bytes,
    Kind.DATE: _date,
    Kind.DATE_TEXT: _date_text,
    Kind.TIME: _time,
    Kind.TIMESTAMP_TEXT: _timestamp_text,
    Kind.BIGINT: _bigint,
}
