"""Around the rows that the table refuses: all others are written, the refused ones are reported."""

from __future__ import annotations

from collections.abc import Callable, Sequence

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
    error names is cut there in three: before, the row, after; one whose error names none is cut in halves. So each row
    is sent about twice, however many are bad.
    """
    written = np.zeros(int(owner.max(initial=0)) + 1, np.int32)
    refused: list[RefusedRow] = []
    waiting = _cut(0, rows.table.num_rows, error, refused)
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
                    waiting += _cut(start, stop, conflict, refused)
                continue
            except ROW_ERRORS as cause:
                waiting += _cut(start, stop, cause, refused)
            break
    return Written(written, tuple(sorted(refused, key=lambda found: found.row)))


def _cut(start: int, stop: int, error: psycopg.Error, refused: list[RefusedRow]) -> list[tuple[int, int]]:
    """Return the spans to try after [start, stop) failed; a row that is known to be at fault joins `refused`."""
    line = line_of(error)
    if stop - start == 1:
        bad = start
    elif line is not None and start + line < stop:
        bad = start + line
    else:
        middle = (start + stop) // 2
        return [(middle, stop), (start, middle)]
    refused.append(RefusedRow(bad, Rejected.REFUSED_BY_TABLE, error.diag.message_primary or str(error)))
    return [span for span in ((bad + 1, stop), (start, bad)) if span[0] < span[1]]
