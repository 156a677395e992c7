"""Finds the type of a column of text: the narrowest whose values give the same text back. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation

import pyarrow as pa
import pyarrow.compute as pc

from bulkgrpc.datasets.overrides import DECIMAL_DIGITS_MAX

DATE, UUID, NUMERIC, TIMESTAMP = "date", "uuid", "numeric", "google.protobuf.Timestamp"
"""Types beside Protobuf's scalars. The first three are `string` fields with a column of this type."""
_SAMPLE_ROWS = 1000
_BOOL = r"^(?i:true|false)$"
_LETTERS = r"^[tf]$"
_INTEGER = r"^(?:0|-?[1-9]\d{0,37})$"
_DECIMAL = r"^-?(?:0|[1-9]\d*)(?:\.\d+)?$"
# An exponent needs a sign, a fraction or a small e: 12E4 is an article's number.
_FLOAT = r"^-?(?:0|[1-9]\d*)(?:(?:\.\d+)?(?:e[+-]?\d+|E[+-]\d+)?|\.\d+E\d+)$"
_DATE = r"^[0-9]{4}-(?:0[1-9]|1[0-2])-(?:0[1-9]|[12]\d|3[01])$"
_TIME = (
    r"^\d{4}-(?:0[1-9]|1[0-2])-(?:0[1-9]|[12]\d|3[01])[T ](?:[01]\d|2[0-3]):[0-5]\d(?::[0-5]\d(?:\.\d+)?)?"
    r" ?(?:[Zz]|UTC|[+-]\d{2}(?::?\d{2})?)?$"
)
_UUID = r"^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$"
_INT32, _INT64, _UINT64 = (-(2**31), 2**31 - 1), (-(2**63), 2**63 - 1), (0, 2**64 - 1)


@dataclass(frozen=True, slots=True)
class Found:
    """A type. precision, scale: of NUMERIC. remarks: what a person should know, one sentence each."""

    type: str
    precision: int = 0
    scale: int = 0
    remarks: tuple[str, ...] = ()


def text_type(name: str, values: pa.Array, *, numbers: bool = True) -> Found:  # noqa: PLR0911 — one for each kind
    """Return the type of a column of text. name: of the column. values: without nulls. numbers: whether one may be."""
    if len(values) == 0:
        return Found("string", remarks=("no row has a value",))
    if numbers:
        # PostgreSQL's text. A single letter may be anything.
        if _like(values, _BOOL) or (_like(values, _LETTERS) and len(pc.unique(values)) == 2):
            return Found("bool")
        if _like(values, _INTEGER):
            return integer_type(name, values)
        if _like(values, _FLOAT):
            return _fraction(values)
    if _like(values, _UUID):
        return Found(UUID)
    if _like(values, _DATE):
        return Found(DATE) if _days_exist(values) else Found("string")
    if _like(values, _TIME) and _days_exist(values):
        precise = pc.any(pc.match_substring_regex(values, r"\.\d{6}\d*[1-9]")).as_py()
        remark = "has nanoseconds, which load refuses: make it a string to keep them"
        return Found(TIMESTAMP, remarks=(remark,) if precise else ())
    if _like(values, r"^\d{1,2}[./]\d{1,2}[./]\d{4}$"):
        return Found("string", remarks=("dates in a form of their own are kept as text: see --time-format",))
    if _like(values, r"^[+-]?[\d.]*,\d+$"):
        return Found("string", remarks=("numbers with a decimal comma are kept as text: see --decimal",))
    return Found("string")


def integer_type(name: str, values: pa.Array) -> Found:
    """Return the narrowest type of whole numbers, written in decimal digits."""
    # The longest are the largest, but for their sign.
    lengths = pc.utf8_length(values)
    longest = values.filter(pc.greater_equal(lengths, pc.subtract(pc.max(lengths), 1)))
    numbers = [0, *map(int, pc.unique(longest).to_pylist())]
    least, most = min(numbers), max(numbers)
    remarks = _epoch(name, least, most)
    for kind, (low, high) in (("int32", _INT32), ("int64", _INT64), ("uint64", _UINT64)):
        if low <= least and most <= high:
            return Found(kind, remarks=remarks)
    return Found(NUMERIC, DECIMAL_DIGITS_MAX, 0)


def _epoch(name: str, least: int, most: int) -> tuple[str, ...]:
    if re.search(r"(?i)(time|date|_at|_ts|epoch)$|^(ts|at)$", name):
        for unit, scale in (("s", 1), ("ms", 10**3), ("us", 10**6), ("ns", 10**9)):
            # Between 2001 and 2100.
            if 10**9 * scale <= most <= 4_102_444_800 * scale and least >= 0:
                return (f"looks like a time: make it a google.protobuf.Timestamp and load it with --epoch {unit}",)
    return ()


def _fraction(values: pa.Array) -> Found:
    """Return `double` if it gives every text back, otherwise NUMERIC with the digits that the values have."""
    distinct = pc.unique(values)
    shown = distinct.cast(pa.float64()).cast(pa.string())
    differs = pc.not_equal(_bare(shown), _bare(distinct))
    changed = [text for text in distinct.filter(differs).to_pylist() if not _survives(text)]
    if not changed:
        return Found("double")
    if any(re.search("[eE]", text) and abs(float(text)) == float("inf") for text in changed):
        return Found("double", remarks=("has a number beyond double, which load refuses: make it a string to keep it",))
    if not _like(values, _DECIMAL):
        return Found("string", remarks=("numbers that a double would change are kept as text",))
    whole = pc.max(pc.utf8_length(pc.replace_substring_regex(distinct, r"^-|\..*$", ""))).as_py()
    scale = pc.max(pc.utf8_length(pc.replace_substring_regex(distinct, r"^[^.]*\.?", ""))).as_py()
    if whole + scale > DECIMAL_DIGITS_MAX:
        return Found("string", remarks=("numbers with too many digits for NUMERIC are kept as text",))
    return Found(NUMERIC, min(DECIMAL_DIGITS_MAX, max(18, whole + scale + 2)), scale)


def _bare(texts: pa.Array) -> pa.Array:
    return pc.replace_substring_regex(texts, r"\.0$", "")


def _survives(text: str) -> bool:
    """Return whether a double has a number's digits, and its text no zeros at its end that a double would drop."""
    try:
        same = Decimal(repr(float(text))) == Decimal(text)
    except InvalidOperation:
        return False
    return same and (bool(re.search("[eE]", text)) or "." not in text or not text.endswith("0") or text.endswith(".0"))


def _like(values: pa.Array, pattern: str) -> bool:
    # The first values rule out most types.
    return all(
        pc.all(pc.match_substring_regex(some, pattern)).as_py() for some in (values.slice(0, _SAMPLE_ROWS), values)
    )


def _days_exist(values: pa.Array) -> bool:
    """Return whether all days exist: the pattern of a date also matches February 30."""
    try:
        pc.utf8_slice_codeunits(values, 0, 10).cast(pa.date32())
    except pa.ArrowInvalid:
        return False
    return True
