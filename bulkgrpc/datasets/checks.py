"""Which values a table cannot hold: the faults of rows, by their place. All vectorized, but for what is at fault."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from bulkgrpc.datasets.columns import Column, Kind
from bulkgrpc.datasets.documents import DURATION_US_MAX, NUL, TIMESTAMP_US_MAX, TIMESTAMP_US_MIN, UNFIT
from bulkgrpc.rejections import RejectionCode

Faults = dict[int, tuple[RejectionCode, str, str]]
"""Of each row that is at fault: code, field and reason of its first fault."""


def refuse(faults: Faults, mask: Any, code: RejectionCode, column: Column, reason: str) -> None:
    """Note a fault of each row for which the mask, of Arrow or numpy, is true."""
    where = mask if isinstance(mask, np.ndarray) else mask.to_numpy(zero_copy_only=False)
    for row in np.flatnonzero(where):
        faults.setdefault(int(row), (code, column.field, reason))


def check(column: Column, values: pa.Array, faults: Faults, *, key: bool) -> None:
    """Note the faults of a column's values. key: whether the column is part of the table's key."""
    if values.null_count and (key or not column.nullable):
        code = RejectionCode.NULL_IN_KEY if key else RejectionCode.NULL_VALUE
        what = "key field" if key else "field"
        refuse(faults, values.is_null(), code, column, f"{what} {column.field} is not set")
    kind = values.type
    if pa.types.is_string(kind):
        _check_text(column, values, faults)
    elif pa.types.is_timestamp(kind):
        _refuse_any(faults, _outside(values, TIMESTAMP_US_MIN, TIMESTAMP_US_MAX), column, _CALENDAR)
    elif pa.types.is_duration(kind):
        _refuse_any(faults, _outside(values, -DURATION_US_MAX, DURATION_US_MAX), column, _TEN_MILLENNIA)
    elif pa.types.is_list(kind):
        _check_list(column, values, faults)


_CALENDAR = "is outside 0001-01-01 to 9999-12-31"
_TEN_MILLENNIA = "is outside -315576000000 to 315576000000 seconds"


def _refuse_any(faults: Faults, mask: pa.Array, column: Column, reason: str) -> None:
    if pc.any(mask).as_py():
        refuse(faults, mask, RejectionCode.OUT_OF_RANGE, column, f"field {column.field} {reason}")


def _check_text(column: Column, values: pa.Array, faults: Faults) -> None:
    mask = _has(values, NUL)
    if pc.any(mask).as_py():
        reason = f"field {column.field} has the character U+0000"
        refuse(faults, mask, RejectionCode.NUL_IN_TEXT, column, reason)
    if column.kind is Kind.JSON:
        reason = "has a value that JSON cannot hold: a time or duration out of its range, a number that is not finite"
        _refuse_any(faults, _has(values, UNFIT), column, reason)


def _check_list(column: Column, values: pa.ListArray, faults: Faults) -> None:
    elements = values.flatten()
    if not pa.types.is_string(elements.type):
        return
    hits = np.flatnonzero(_has(elements, NUL).to_numpy(zero_copy_only=False))
    mask = np.zeros(len(values), dtype=np.bool_)
    mask[pc.list_parent_indices(values).to_numpy()[hits]] = True
    refuse(faults, mask, RejectionCode.NUL_IN_TEXT, column, f"field {column.field} has the character U+0000")


def _has(values: pa.Array, text: str) -> pa.Array:
    return pc.fill_null(pc.match_substring(values, text), False)


def _outside(values: pa.Array, least: int, most: int) -> pa.Array:
    us = values.cast(pa.int64())
    return pc.fill_null(pc.or_(pc.less(us, least), pc.greater(us, most)), False)
