"""Converts text to a field's Arrow type. A text that is not exactly such a value raises UnsuitableValue.

Arrow's own casts also accept hexadecimal integers and turn numbers that are too large into infinity, so that every
conversion checks for these, and reads what Arrow does not: other marks, zones and forms.
"""

from __future__ import annotations

import base64
import binascii
from datetime import UTC, datetime
from decimal import Decimal

import pyarrow as pa
import pyarrow.compute as pc

from bulkgrpc.tabular.errors import UnsuitableValue
from bulkgrpc.tabular.rules import TextForms

EPOCH_US = {"s": Decimal(1_000_000), "ms": Decimal(1000), "us": Decimal(1), "ns": Decimal("0.001")}
"""Units of `--epoch`, in microseconds."""
UTC_US = pa.timestamp("us", "UTC")
_INTEGER = r"^[+-]?\d+$"
_FLOAT = r"^[+-]?(?:(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?|(?i:inf|infinity|nan))$"
WHOLE_MAX = {16: 2**11, 32: 2**24, 64: 2**53}
"""By bits of a floating-point type, up to which number it has all whole ones."""
_NOT_FINITE = r"(?i)^[+-]?(?:inf|infinity|nan)$"
_ZERO = r"^[+-]?[0.]+(?:[eE].*)?$"
_DECIMAL = r"^[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d{1,3})?$"
_DATE = r"^\d{4}-\d{2}-\d{2}$"
_TIME = r"^\d{4}-\d{2}-\d{2}[T ]\d{2}:\d{2}(?::\d{2}(?:\.\d{1,6})?)?(?:Z|[+-]\d{2}(?::?\d{2})?)$"
_ZONE = r":\d{2}(?:\.\d+)?(?:Z|[+-]\d{2}(?::?\d{2})?)$"
_TIME_OF_DAY = r"^(?:[01]\d|2[0-3]):[0-5]\d(?::[0-5]\d(?:\.\d{1,6})?)?$"
_DURATION = r"^-?\d{1,12}(?:\.\d{1,6})?s$"


def all_like(column: pa.Array, pattern: str) -> bool:
    """Return whether every value that is not null matches a pattern."""
    return bool(pc.all(pc.fill_null(pc.match_substring_regex(column, pattern), True), min_count=0).as_py())


def integers(column: pa.Array, kind: pa.DataType, forms: TextForms) -> pa.Array:
    """Convert whole numbers, in decimal digits. A fraction of zeros is no fraction."""
    # Arrow reads plain digits, and hexadecimal; a search for its x is cheaper than a pattern.
    values = _cast(column, kind) if _is_plain(forms) else None
    if values is not None and not pc.any(pc.match_substring(column, "x", ignore_case=True)).as_py():
        return values
    column = plain_numbers(column, forms)
    # Programs that have no null for whole numbers, such as pandas, write 7 as 7.0.
    column = pc.replace_substring_regex(column, r"^([+-]?\d+)\.0+$", r"\1")
    _require(column, _INTEGER)
    return pc.utf8_ltrim(column, "+").cast(kind)


def floats(column: pa.Array, kind: pa.DataType, forms: TextForms) -> pa.Array:
    """Convert numbers to the nearest of the type.

    Those that would become infinite or zero are refused, and whole numbers that would become others.
    """
    values = _cast(column, kind) if _is_plain(forms) else None
    if values is None:
        column = plain_numbers(column, forms)
        _require(column, _FLOAT)
        values = pc.utf8_ltrim(column, "+").cast(kind)
    # Arrow reads no other texts than these patterns, but for the size of the number.
    _require(column.filter(pc.invert(pc.is_finite(values))), _NOT_FINITE)
    _require(column.filter(pc.equal(values, pa.scalar(0, kind))), _ZERO)
    large = pc.fill_null(pc.greater_equal(pc.abs(values), pa.scalar(WHOLE_MAX[kind.bit_width], kind)), False)
    if pc.any(large).as_py():
        _require_whole(column.filter(large), values.filter(large))
    return values


def _require_whole(column: pa.Array, values: pa.Array) -> None:
    """Refuse whole numbers that their floating-point values do not equal: they may be identifiers."""
    whole = pc.match_substring_regex(column, _INTEGER)
    texts = pc.utf8_trim_whitespace(column.filter(whole)).to_pylist()
    if any(int(text) != int(value) for text, value in zip(texts, values.filter(whole).to_pylist(), strict=True)):
        raise UnsuitableValue


def decimals(column: pa.Array, forms: TextForms) -> pa.Array:
    """Return decimal numbers without marks and exponents. Other text stays: the server rejects it, or the field has it.

    `1e3` becomes `1000`, `0E-8` becomes `0.00000000`.
    """
    marked = forms != TextForms(time_format=forms.time_format, epoch=forms.epoch)
    column = plain_numbers(column, forms) if marked else column
    scientific = pc.fill_null(
        pc.and_(pc.match_substring_regex(column, "[eE]"), pc.match_substring_regex(column, _DECIMAL)), False
    )
    if not pc.any(scientific).as_py():
        return column
    replaced = [f"{Decimal(text):f}" for text in column.filter(scientific).to_pylist()]
    return pc.replace_with_mask(column, scientific, pa.array(replaced, column.type))


def booleans(column: pa.Array) -> pa.Array:
    """Convert true and false, t and f, 1 and 0, in any case."""
    lower = pc.utf8_lower(pc.utf8_trim_whitespace(column))
    found = pc.index_in(lower, pa.array(["false", "true", "f", "t", "0", "1"]))
    if found.null_count != column.null_count:
        raise UnsuitableValue
    return pa.array([False, True] * 3).take(found)


def times(column: pa.Array, forms: TextForms) -> pa.Array:
    """Convert times to UTC: ISO 8601 or PostgreSQL's text, UTC if they name no zone, or by the file's own form.

    More digits than microseconds are refused, unless they are zeros.
    """
    # Arrow reads ISO 8601 with a zone, as most files have it; a pattern for every variant takes three times as long.
    values = None if forms.time_format or forms.epoch else _cast(column, UTC_US)
    if values is not None:
        return values
    column = pc.utf8_trim_whitespace(column)
    if forms.time_format:
        return _formatted(column, forms.time_format).cast(UTC_US)
    if forms.epoch:
        return epochs(integers(column, pa.int64(), TextForms()), forms.epoch)
    column = pc.replace_substring_regex(column, r"(?i) ?(?:utc|z)$", "Z")
    column = pc.replace_substring_regex(column, r"(\.\d{6})0+", r"\1")
    column = pc.replace_substring_regex(column, r"(:\d{2}(?:\.\d+)?) ([+-]\d{2})", r"\1\2")
    dates = pc.match_substring_regex(column, _DATE)
    column = pc.if_else(dates, pc.binary_join_element_wise(column, "T00:00:00Z", ""), column)
    zoned = pc.match_substring_regex(column, _ZONE)
    column = pc.if_else(zoned, column, pc.binary_join_element_wise(column, "Z", ""))
    _require(column, _TIME)
    return column.cast(UTC_US)


def epochs(column: pa.Array, unit: str) -> pa.Array:
    """Convert numbers of a unit since 1970 to times. Raises UnsuitableValue for nanoseconds below a microsecond."""
    us = EPOCH_US[unit]
    if us >= 1:
        whole = pc.multiply_checked(column, pa.scalar(int(us), pa.int64()))
    else:
        whole = pc.divide(column, 1000)
        if pc.any(pc.not_equal(pc.multiply(whole, 1000), column)).as_py():
            raise UnsuitableValue
    return whole.cast(UTC_US)


def dates(column: pa.Array, forms: TextForms) -> pa.Array:
    """Convert dates: ISO 8601, or by the file's own form if that has no time of day."""
    column = pc.utf8_trim_whitespace(column)
    if forms.time_format:
        moments = _formatted(column, forms.time_format)
        days = moments.cast(pa.date32(), safe=False)
        if pc.any(pc.not_equal(days.cast(pa.timestamp("us")), moments.cast(pa.timestamp("us")))).as_py():
            raise UnsuitableValue
        return days
    _require(column, _DATE)
    return column.cast(pa.date32())


def times_of_day(column: pa.Array) -> pa.Array:
    """Convert times of day: hours, minutes, seconds and up to six digits of a fraction."""
    column = pc.replace_substring_regex(pc.utf8_trim_whitespace(column), r"(\.\d{6})0+$", r"\1")
    _require(column, _TIME_OF_DAY)
    moments = pc.binary_join_element_wise("1970-01-01T", column, "Z", "").cast(UTC_US)
    return moments.cast(pa.int64()).cast(pa.time64("us"))


def durations(column: pa.Array) -> pa.Array:
    """Convert durations as Protobuf JSON writes them: seconds with an `s`."""
    _require(column, _DURATION)
    seconds = pc.utf8_rtrim(column, "s").cast(pa.decimal128(24, 6))
    return pc.multiply(seconds, pa.scalar(Decimal(1_000_000))).cast(pa.int64()).cast(pa.duration("us"))


def from_base64(column: pa.Array) -> pa.Array:
    r"""Convert base64; also PostgreSQL's hexadecimal text `\x0aff`, which base64 cannot contain."""
    # Arrow has no kernel for either: this conversion runs Python for each value.
    try:
        return pa.array([None if value is None else _bytes(value) for value in column.to_pylist()], pa.binary())
    except (binascii.Error, ValueError) as error:
        raise UnsuitableValue from error


def _bytes(text: str) -> bytes:
    return bytes.fromhex(text[2:]) if text.startswith(r"\x") else base64.b64decode(text, validate=True)


def _formatted(column: pa.Array, form: str) -> pa.Array:
    """Parse times with Python, each distinct text once: Arrow's `strptime` accepts days that do not exist."""
    encoded = column.dictionary_encode()
    try:
        parsed = [datetime.strptime(text, form) for text in encoded.dictionary.to_pylist()]
        moments = [moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC) for moment in parsed]
    except (ValueError, OverflowError) as error:
        raise UnsuitableValue from error
    return pa.array(moments, UTC_US).take(encoded.indices)


def plain_numbers(column: pa.Array, forms: TextForms) -> pa.Array:
    """Return numbers without thousands marks, with a point as decimal mark. Nothing that is ambiguous passes."""
    column = pc.utf8_trim_whitespace(column)
    if forms.thousands:
        mark, point = (f"[{one}]" if one not in "^\\" else f"\\{one}" for one in (forms.thousands, forms.decimal))
        grouped = rf"^[+-]?\d{{1,3}}(?:{mark}\d{{3}})+(?:{point}\d+)?$"
        plain = pc.replace_substring(column, forms.thousands, "")
        column = pc.if_else(pc.match_substring_regex(column, grouped), plain, column)
        if pc.any(pc.match_substring(column, forms.thousands)).as_py():
            raise UnsuitableValue
    if forms.decimal != ".":
        if pc.any(pc.match_substring(column, ".")).as_py():
            raise UnsuitableValue
        column = pc.replace_substring(column, forms.decimal, ".", max_replacements=1)
    return column


def _is_plain(forms: TextForms) -> bool:
    return (forms.decimal, forms.thousands) == (".", "")


def _cast(column: pa.Array, kind: pa.DataType) -> pa.Array | None:
    """Return a column's values as Arrow parses them; None if it does not parse all of them."""
    try:
        return column.cast(kind)
    except pa.ArrowInvalid:
        return None


def _require(column: pa.Array, pattern: str) -> None:
    if not all_like(column, pattern):
        raise UnsuitableValue
