"""Why columns or values cannot become records, as one line that names row, column and value."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

_VALUE_CHARS_MAX = 60
ROW_NOTE = "(the first record is row 1)"


class NotRecords(Exception):
    """Columns or values cannot become records. `str()` is one line: row, column, value, and what the field needs."""


class UnsuitableValue(ValueError):
    """At least one value of an array cannot be converted. The exception does not say which."""


@dataclass(frozen=True, slots=True)
class InvalidValue(Exception):
    """A value that its field does not accept.

    row: index in the converted block. column: its name in the file. needed: description of the values that the field
    accepts. hint: the way out, "" if the value itself shows it. others: returns all invalid values of the block, found
    on demand.
    """

    row: int
    column: str
    value: object
    needed: str
    hint: str = ""
    others: Callable[[], Iterable[InvalidValue]] | None = None

    def all(self) -> list[InvalidValue]:
        """Return all invalid values of the block that are known, at least this one."""
        return (list(self.others()) if self.others is not None else []) or [self]

    def numbered(self, number: int) -> NotRecords:
        """Return the error with its row and column. number: of the row, 1 for the first record."""
        return replace(self, row=number - 1).located(0)

    @property
    def reason(self) -> str:
        """What is wrong with the value, and the way out."""
        hint = f": {self.hint}" if self.hint else ""
        if self.value is None:
            return f"the value is missing, and the field needs {self.needed}{hint}"
        return f"{shown(self.value)} is not {self.needed}{hint}"

    def located(self, rows_before: int) -> NotRecords:
        """Return the error with its row and column. rows_before: rows before the block."""
        number = rows_before + self.row + 1
        place = f"row {number:,} {ROW_NOTE}, column {self.column}"
        return NotRecords(f"{place}: {self.reason}")


def shown(value: object) -> str:
    """Return a value's `repr`, cut to 60 characters."""
    text = repr(value)
    return text if len(text) <= _VALUE_CHARS_MAX else text[: _VALUE_CHARS_MAX - 1] + "…"
