"""The columns of a file of rejected records that are no fields of the dataset, but say why. Pure."""

from __future__ import annotations

REMARKS = ("_sequence", "_record_index", "_code", "_field", "_reason")
BYTES_COLUMN = "record_base64"
"""The bytes of a record that is no message at all, so that nothing is lost."""


def is_remark(column: str) -> bool:
    """Tell whether a column of a mended file is one of those, unless a field has its name."""
    return column.startswith("_") or column == BYTES_COLUMN
