"""Around the rows that the table refuses: all others are written, the refused ones are reported."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import psycopg

from bulkgrpc.datasets.rows import Integers, Rows
from bulkgrpc.postgres.writers import direct
from bulkgrpc.postgres.writers.constraints import breaking_checks
from bulkgrpc.postgres.writers.copy import Connection, line_of
from bulkgrpc.postgres.writers.written import RefusedRow, Written
from bulkgrpc.rejections import RejectionCode

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

T = TypeVar("T")
Way = Callable[[Connection, Rows, Integers], Written]


def attempt(connection: Connection, way: Way, rows: Rows, owner: Integers) -> Written:
    """Write rows in a way of their own savepoint: what it raises leaves nothing of it behind."""
    return unless_partitioned_anew(connection, lambda: way(connection, rows, owner))


def unless_partitioned_anew(connection: Connection, write: Callable[[], T]) -> T:
    """Write in a savepoint, and once more if a partition was attached while rows of its time went to the default one.

    PostgreSQL sees it in time and refuses the row, which is not at fault: it fits the partition that it has now. Other
    checks have names.
    """
    try:
        with connection.transaction():
            return write()
    except psycopg.errors.CheckViolation as error:
        if error.diag.constraint_name is not None:
            raise
    with connection.transaction():
        return write()


@dataclass(frozen=True, slots=True)
class Cause:
    """What the table refused rows with. line: the row that is at fault, if the error tells."""

    reason: str
    line: int | None

    @classmethod
    def of(cls, error: psycopg.Error, way: Way, rows: Rows) -> Cause:
        """Read it from the error of a way that was to write `rows`. Only straight COPY has all of them as its lines."""
        line = line_of(error, rows.dataset.name) if way is direct.write else None
        return cls(error.diag.message_primary or str(error), line)


def write_around(connection: Connection, ways: Sequence[Way], rows: Rows, owner: Integers, cause: Cause) -> Written:
    """Write all rows but those that the table refuses, the first attempt having ended with `cause`.

    ways: to be tried in turn where a key conflicts. Rows that break a check constraint are found by one query, and the
    others are written at once. What refuses rows otherwise shows one at a time. Spans of rows wait in a stack. A span
    that fails at a row that the error names is cut there in three: before, the row, after; so each row is sent about
    twice. A span whose error names none, and every span once LINE_CUTS_MAX rows were found, is cut in halves: where
    most rows are bad, sending the rest again after each would take a time that grows with the square of their number.
    """
    refused = breaking_checks(connection, rows)
    good = np.ones(rows.table.num_rows, dtype=np.bool_)
    good[[found.row for found in refused]] = False
    place = np.flatnonzero(good)
    rows, owners = rows.keep(good), owner[good]
    written = np.zeros(int(owner.max(initial=0)) + 1, np.int32)
    one_by_one: list[RefusedRow] = []
    waiting = [(0, len(place))] if refused else _cut(0, len(place), cause, one_by_one)
    while waiting:
        start, stop = waiting.pop()
        mask = np.zeros(len(place), dtype=np.bool_)
        mask[start:stop] = True
        span = rows.keep(mask)
        for way in ways:
            try:
                done = attempt(connection, way, span, owners[start:stop])
                written[: len(done.written)] += done.written
                one_by_one += [RefusedRow(start + found.row, found.code, found.reason) for found in done.refused]
            except psycopg.errors.UniqueViolation as conflict:
                if way is ways[-1]:
                    waiting += _cut(start, stop, Cause.of(conflict, way, span), one_by_one)
                continue
            except ROW_ERRORS as error:
                waiting += _cut(start, stop, Cause.of(error, way, span), one_by_one)
            break
    refused += [RefusedRow(int(place[found.row]), found.code, found.reason) for found in one_by_one]
    return Written(written, tuple(sorted(refused, key=lambda found: found.row)))


def _cut(start: int, stop: int, cause: Cause, refused: list[RefusedRow]) -> list[tuple[int, int]]:
    """Return the spans to try after [start, stop) failed; a row that is known to be at fault joins `refused`."""
    line = cause.line if len(refused) < LINE_CUTS_MAX else None
    if stop - start == 1:
        bad = start
    elif line is not None and start + line < stop:
        bad = start + line
    else:
        middle = (start + stop) // 2
        return [(middle, stop), (start, middle)]
    refused.append(RefusedRow(bad, RejectionCode.REFUSED_BY_TABLE, cause.reason))
    return [span for span in ((bad + 1, stop), (start, bad)) if span[0] < span[1]]
