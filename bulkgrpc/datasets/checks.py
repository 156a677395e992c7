"""Rejects rows with values that their table cannot store. All vectorized."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from bulkgrpc.datasets.columns import Column, Kind
from bulkgrpc.datasets.documents import DURATION_US_MAX, NUL, TIMESTAMP_US_MAX, TIMESTAMP_US_MIN, UNFIT
from bulkgrpc.rejections import Mask, RejectionBuilder, RejectionCode


def check(column: Column, values: pa.Array, rejected: RejectionBuilder, *, key: bool) -> None:
    """Reject the rows whose value a column cannot store. key: whether the column is part of the table's key."""
    if values.null_count and (key or not column.nullable):
        code = RejectionCode.NULL_IN_KEY if key else RejectionCode.NULL_VALUE
        what = "key field" if key else "field"
        rejected.add(_mask(values.is_null()), code, column.field, f"{what} {column.field} is not set")
    kind = values.type
    if pa.types.is_string(kind):
        _check_text(column, values, rejected)
    elif pa.types.is_timestamp(kind):
        _check_range(column, values, rejected, (TIMESTAMP_US_MIN, TIMESTAMP_US_MAX), _CALENDAR)
    elif pa.types.is_duration(kind):
        _check_range(column, values, rejected, (-DURATION_US_MAX, DURATION_US_MAX), _TEN_MILLENNIA)
    elif pa.types.is_list(kind):
        _check_list(column, values, rejected)


_CALENDAR = "is outside 0001-01-01 to 9999-12-31"
_TEN_MILLENNIA = "is outside -315576000000 to 315576000000 seconds"


def _reject_any(rejected: RejectionBuilder, mask: pa.Array, column: Column, reason: str) -> None:
    if pc.any(mask).as_py():
        rejected.add(_mask(mask), RejectionCode.OUT_OF_RANGE, column.field, f"field {column.field} {reason}")


def _check_text(column: Column, values: pa.Array, rejected: RejectionBuilder) -> None:
    mask = _has(values, NUL)
    if pc.any(mask).as_py():
        reason = f"field {column.field} has the character U+0000"
        rejected.add(_mask(mask), RejectionCode.NUL_IN_TEXT, column.field, reason)
    if column.kind is Kind.JSON:
        reason = "has a value that JSON cannot hold: a time or duration out of its range, a number that is not finite"
        _reject_any(rejected, _has(values, UNFIT), column, reason)


def _check_list(column: Column, values: pa.ListArray, rejected: RejectionBuilder) -> None:
    elements = values.flatten()
    if not pa.types.is_string(elements.type):
        return
    hits = np.flatnonzero(_mask(_has(elements, NUL)))
    mask = np.zeros(len(values), dtype=np.bool_)
    mask[pc.list_parent_indices(values).to_numpy()[hits]] = True
    rejected.add(mask, RejectionCode.NUL_IN_TEXT, column.field, f"field {column.field} has the character U+0000")


def _has(values: pa.Array, text: str) -> pa.Array:
    return pc.fill_null(pc.match_substring(values, text), False)


def _check_range(
    column: Column, values: pa.Array, rejected: RejectionBuilder, allowed: tuple[int, int], reason: str
) -> None:
    """Reject the rows whose value, in microseconds, is outside `allowed`, both ends included."""
    us = values.cast(pa.int64())
    least, most = allowed
    # One pass, if all is well. It also spares an import that pyarrow tries, in vain, for each int in an expression.
    found = pc.min_max(us)
    if found["min"].is_valid and (found["min"].as_py() < least or found["max"].as_py() > most):
        outside = pc.fill_null(pc.or_(pc.less(us, least), pc.greater(us, most)), False)
        _reject_any(rejected, outside, column, reason)


def _mask(values: pa.BooleanArray) -> Mask:
    found: Mask = values.to_numpy(zero_copy_only=False)
    return found
