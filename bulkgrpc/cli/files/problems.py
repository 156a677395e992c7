"""What can be wrong with a file, as one line that names the place."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

_VALUE_CHARS_MAX = 60


class FileProblem(Exception):
    """A file cannot be submitted. `str()` is one line: file, row, column, value, and what is needed."""


class UnfitValue(ValueError):
    """At least one value of an array does not fit; which one is not known."""


@dataclass(frozen=True, slots=True)
class BadValue(Exception):
    """A value that its field does not take.

    row: from 0, within what was converted. column: as the file names it. needed: what the field takes, for people.
    """

    row: int
    column: str
    value: object
    needed: str

    def problem(self, path: Path, rows_before: int) -> FileProblem:
        """Return the line for people, who count rows from 1 and do not count a header."""
        number = rows_before + self.row + 1
        place = f"{path.name}: row {number:,} (the first record is row 1), column {self.column}"
        if self.value is None:
            return FileProblem(f"{place}: no value, but the field needs {self.needed}")
        return FileProblem(f"{place}: {shown(self.value)} is not {self.needed}")


def shown(value: object) -> str:
    """Return a value as it fits into a line."""
    text = repr(value)
    return text if len(text) <= _VALUE_CHARS_MAX else text[: _VALUE_CHARS_MAX - 1] + "…"
