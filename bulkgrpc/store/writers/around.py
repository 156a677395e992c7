"""Around the rows that the table refuses: all others are written, the refused ones are reported."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import psycopg

from bulkgrpc.datasets.rows import Integers, Rows
from bulkgrpc.errors import Rejected
from bulkgrpc.store.writers.copy import Connection, line_of
from bulkgrpc.store.writers.written import RefusedRow, Written

# What says "this row", not "this server": everything else goes up to whoever can retry. A program limit is for instance
# a key that is too long for an index; it would fail for ever.
ROW_ERRORS = (
    psycopg.errors.DataError,
    psycopg.errors.IntegrityError,
    psycopg.errors.RaiseException,
    psycopg.errors.ProgramLimitExceeded,
)

LINE_CUTS_MAX = 256
"""Rows that are found one by one, by the line that the error names; after that spans are halved."""

Way = Callable[[Connection, Rows, Integers], Written]


def attempt(connection: Connection, way: Way, rows: Rows, owner: Integers) -> Written:
    """Write rows in a way of their own savepoint: what it raises leaves nothing of it behind."""
    with connection.transaction():
        return way(connection, rows, owner)


def write_around(
    connection: Connection, ways: Sequence[Way], rows: Rows, owner: Integers, error: psycopg.Error
) -> Written:
    """Write all rows but those that the table refuses, the first attempt having ended with `error`.

    ways: to be tried in turn where a key conflicts. Spans of rows wait in a stack. A span that fails at a row that the
    error names is cut there in three: before, the row, after; so each row is sent about twice. A span whose error names
    none, and every span once LINE_CUTS_MAX rows were found, is cut in halves: where most rows are bad, sending the rest
    again after each would take a time that grows with the square of their number.
    """
    table = rows.dataset.name
    written = np.zeros(int(owner.max(initial=0)) + 1, np.int32)
    refused: list[RefusedRow] = []
    waiting = _cut(0, rows.table.num_rows, _Cause(error, table), refused)
    while waiting:
        start, stop = waiting.pop()
        mask = np.zeros(rows.table.num_rows, dtype=np.bool_)
        mask[start:stop] = True
        span, owners = rows.keep(mask), owner[start:stop]
        for way in ways:
            try:
                done = attempt(connection, way, span, owners)
                written[: len(done.written)] += done.written
                refused += [RefusedRow(start + found.row, found.code, found.reason) for found in done.refused]
            except psycopg.errors.UniqueViolation as conflict:
                if way is ways[-1]:
                    waiting += _cut(start, stop, _Cause(conflict, table), refused)
                continue
            except ROW_ERRORS as cause:
                waiting += _cut(start, stop, _Cause(cause, table), refused)
            break
    return Written(written, tuple(sorted(refused, key=lambda found: found.row)))


@dataclass(frozen=True, slots=True)
class _Cause:
    """What a span failed with, and the table that it was for."""

    error: psycopg.Error
    table: str

    @property
    def line(self) -> int | None:
        """The row that is at fault, if the error is of a COPY into the table itself: staging has other rows."""
        return line_of(self.error, self.table)


def _cut(start: int, stop: int, cause: _Cause, refused: list[RefusedRow]) -> list[tuple[int, int]]:
    """Return the spans to try after [start, stop) failed; a row that is known to be at fault joins `refused`."""
    line = cause.line if len(refused) < LINE_CUTS_MAX else None
    if stop - start == 1:
        bad = start
    elif line is not None and start + line < stop:
        bad = start + line
    else:
        middle = (start + stop) // 2
        return [(middle, stop), (start, middle)]
    reason = cause.error.diag.message_primary or str(cause.error)
    refused.append(RefusedRow(bad, Rejected.REFUSED_BY_TABLE, reason))
    return [span for span in ((bad + 1, stop), (start, bad)) if span[0] < span[1]]
