"""Errors in a file, as one line that names file, row, column and value."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

_VALUE_CHARS_MAX = 60


class FileError(Exception):
    """A file cannot be submitted. `str()` is one line: file, row, column, value, and what the field needs."""


class UnsuitableValue(ValueError):
    """At least one value of an array cannot be converted. The exception does not say which."""


@dataclass(frozen=True, slots=True)
class InvalidValue(Exception):
    """A value that its field does not accept.

    row: index in the converted block. column: its name in the file. needed: description of the values that the field
    accepts.
    """

    row: int
    column: str
    value: object
    needed: str

    def located(self, path: Path, rows_before: int) -> FileError:
        """Return the error with its place in the file. rows_before: rows before the block. Rows count from 1."""
        number = rows_before + self.row + 1
        place = f"{path.name}: row {number:,} (the first record is row 1), column {self.column}"
        if self.value is None:
            return FileError(f"{place}: the value is missing, and the field needs {self.needed}")
        return FileError(f"{place}: {shown(self.value)} is not {self.needed}")


def shown(value: object) -> str:
    """Return a value's `repr`, cut to 60 characters."""
    text = repr(value)
    return text if len(text) <= _VALUE_CHARS_MAX else text[: _VALUE_CHARS_MAX - 1] + "…"
