"""What becomes of a column of a table that a dataset is bound to: what a server reports, and a client shows. Pure."""

from __future__ import annotations

import enum
from dataclasses import dataclass


class Verdict(enum.StrEnum):
    """What is done with a column. Stable; programs may branch on it."""

    FITS = "fits"
    """Values are stored as they are."""
    CONVERTED = "converted"
    """Values are converted; a record whose value has no exact counterpart is rejected."""
    REFUSED = "refused"
    """The records cannot be written."""
    LEFT_TO_POSTGRES = "left to PostgreSQL"
    """The message has no field for the column."""


@dataclass(frozen=True, slots=True)
class ColumnFit:
    """What becomes of a column.

    field: path of the message's field, "" for the tenant's column and for columns without a field. written_type: of the
    values that the dataset writes, "" without a field. table_type: "" if the table lacks the column. note: what is
    converted, or why it is refused.
    """

    column: str
    field: str
    written_type: str
    table_type: str
    verdict: Verdict
    note: str = ""
