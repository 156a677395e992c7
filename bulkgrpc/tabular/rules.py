"""How columns and values become fields. Without Arrow, so that importing it costs nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class TextForms:
    """How a file writes numbers and times.

    decimal, thousands: the marks in numbers; no thousands mark if "". time_format: of times and dates, as Python's
    `strptime` reads it; ISO 8601 if "". epoch: unit of times that are numbers, s, ms, us or ns; refused if "".
    """

    decimal: str = "."
    thousands: str = ""
    time_format: str = ""
    epoch: str = ""


@dataclass(frozen=True, slots=True)
class Rules:
    """How to read missing values and unknown columns.

    missing_is_default: whether a missing value of a field that is not nullable means the default value (Protobuf JSON
    omits defaults) instead of an error. ignore_unknown: drop columns that match no field. corrected: drop the columns
    with the reasons in a file of rejected records. forms: how text writes values. renames: names of columns to replace,
    and the fields' names for them.
    """

    missing_is_default: bool = False
    ignore_unknown: bool = False
    corrected: bool = False
    forms: TextForms = field(default_factory=TextForms)
    renames: Mapping[str, str] = field(default_factory=dict)
