"""The columns of a file of rejected records that are not fields: position, code and reason of each rejection. Pure."""

from __future__ import annotations

REJECTION_COLUMNS = ("_sequence", "_record_index", "_code", "_field", "_reason")
BYTES_COLUMN = "record_base64"
"""The bytes of a record that cannot be decoded, so that nothing is lost."""


def is_rejection_column(column: str) -> bool:
    """Return whether a column of a corrected file is one of these. A field of the same name takes precedence."""
    return column.startswith("_") or column == BYTES_COLUMN
