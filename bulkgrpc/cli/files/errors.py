"""Errors in a file, as one line that names file, row, column and value."""

from __future__ import annotations

from bulkgrpc.tabular.errors import NotRecords


class FileError(NotRecords):
    """A file cannot be submitted. `str()` is one line: file, row, column, value, and what the field needs."""


def one_line(error: Exception) -> str:
    """Return an exception's text as one line."""
    return " ".join(str(error).split())
