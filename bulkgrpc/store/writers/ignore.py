"""Conflict policy `ignore`: straight COPY while keys are new; on a conflict staging, for this chunk and some more.

A row that the table refuses (a constraint, a trigger, a value) is found, left out and reported; the others are written.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import psycopg

from bulkgrpc.datasets.rows import Integers, Rows
from bulkgrpc.store.writers import direct, staged
from bulkgrpc.store.writers.copy import Connection, line_of

STAGED_CHUNKS = 16
"""Chunks of a dataset that go by staging after a conflict, before straight COPY is tried again."""

# What says "this row", not "this server": everything else goes up to whoever can retry. A program limit is for instance
# a key that is too long for an index; it would fail for ever.
ROW_ERRORS = (
    psycopg.errors.DataError,
    psycopg.errors.IntegrityError,
    psycopg.errors.RaiseException,
    psycopg.errors.ProgramLimitExceeded,
)

Way = Callable[[Connection, Rows, Integers], Integers]


@dataclass(frozen=True, slots=True)
class RefusedRow:
    """A row that PostgreSQL refused: its position in the rows, and why."""

    row: int
    reason: str


@dataclass(frozen=True, slots=True)
class Written:
    """What became of rows. written: how many of each job; refused: the rows that the table does not take."""

    written: Integers
    refused: tuple[RefusedRow, ...]


@dataclass(slots=True)
class IgnoreWriter:
    """Writes rows under the policy `ignore`. Remembers which datasets had conflicts lately."""

    _staged_left: dict[str, int] = field(default_factory=dict)

    def write(self, connection: Connection, rows: Rows, owner: Integers) -> Written:
        """Write rows in the caller's transaction; a row whose key is there counts as neither written nor refused.

        Raises what PostgreSQL says if it is not about a row; the caller rolls back then.
        """
        name, jobs = rows.dataset.name, int(owner.max(initial=0)) + 1
        if rows.table.num_rows == 0:
            return Written(np.zeros(jobs, np.int32), ())
        left = self._staged_left.get(name, 0)
        if left == 0:
            try:
                return Written(_attempt(connection, direct.write, rows, owner), ())
            except psycopg.errors.UniqueViolation:
                self._staged_left[name] = left = STAGED_CHUNKS
            except ROW_ERRORS as error:
                return _write_around(connection, rows, owner, error)
        self._staged_left[name] = left - 1
        try:
            return Written(_attempt(connection, staged.write, rows, owner), ())
        except ROW_ERRORS as error:
            return _write_around(connection, rows, owner, error)


def _attempt(connection: Connection, way: Way, rows: Rows, owner: Integers) -> Integers:
    with connection.transaction():
        return way(connection, rows, owner)


def _write_around(connection: Connection, rows: Rows, owner: Integers, error: psycopg.Error) -> Written:
    """Write all rows but those that the table refuses, the first attempt having ended with `error`.

    Spans of rows wait in a stack. A span that fails at a row that the error names is cut there in three: before, the
    row, after; one whose error names none is cut in halves. So each row is sent about twice, however many are bad.
    """
    written = np.zeros(int(owner.max(initial=0)) + 1, np.int32)
    refused: list[RefusedRow] = []
    waiting = _cut(0, rows.table.num_rows, error, refused)
    while waiting:
        start, stop = waiting.pop()
        mask = np.zeros(rows.table.num_rows, dtype=np.bool_)
        mask[start:stop] = True
        span, owners = rows.keep(mask), owner[start:stop]
        for way in (direct.write, staged.write):
            try:
                counts = _attempt(connection, way, span, owners)
                written[: len(counts)] += counts
            except psycopg.errors.UniqueViolation:
                continue
            except ROW_ERRORS as cause:
                waiting += _cut(start, stop, cause, refused)
            break
    return Written(written, tuple(refused))


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
    refused.append(RefusedRow(bad, error.diag.message_primary or str(error)))
    return [span for span in ((bad + 1, stop), (start, bad)) if span[0] < span[1]]
