"""Partitions by time, kept by one worker: made before their time comes; a stray row's when it is found.

A row never waits for its partition: what has none of its own is in the default one. Making one is never on a row's way:
a table is made beside and attached, which locks nobody out but the writers of the default partition, for as long as it
takes to look through that. Who cannot have that lock at once gives up until the next round.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date

import psycopg
from psycopg import sql

from bulkgrpc import limits
from bulkgrpc.datasets import ddl
from bulkgrpc.datasets.definition import Dataset, define
from bulkgrpc.datasets.overrides import InvalidDataset
from bulkgrpc.datasets.periods import Period, period_of, periods_around
from bulkgrpc.postgres import statements
from bulkgrpc.postgres.ledger import Connection

OTHER_BYTES_MAX = 1 << 30
"""Of a default partition that is looked through, under its lock: about a second."""
STRAY_PERIODS_A_ROUND_MAX = 8

_SQL = statements.family("partitions")
_NOT_NOW = (
    psycopg.errors.LockNotAvailable,
    psycopg.errors.DeadlockDetected,
    # A row of the period was written to the default partition while those before it were moved.
    psycopg.errors.CheckViolation,
)
_THERE = (psycopg.errors.DuplicateTable, psycopg.errors.InvalidObjectDefinition)
"""A table of that name, or a partition that somebody made of a time that overlaps."""


@dataclass(frozen=True, slots=True)
class Kept:
    """What a round did. made: how many partitions. not_made: what could not be done now, a line each."""

    made: int
    not_made: tuple[str, ...]


def keep_partitions(connection: Connection, today: date) -> Kept:
    """Make the partitions of the time to come, and those of stray rows. Raises psycopg.Error if PostgreSQL is away."""
    made, not_made = 0, list[str]()
    for descriptors, message_type, version in connection.execute(_SQL["time_partitioned"]).fetchall():
        try:
            keeper = _Keeper(connection, define(descriptors, message_type, version), today)
            keeper.keep()
        except (InvalidDataset, psycopg.Error) as error:
            if connection.closed:
                raise
            # Whatever it is, the partitions of other tables do not wait for it.
            not_made.append(f"partitions of {message_type}: {' '.join(str(error).split())}")
        else:
            made += keeper.made
            not_made += keeper.not_made
    return Kept(made, tuple(not_made))


class _Keeper:
    """Keeps the partitions of one dataset's table, once."""

    def __init__(self, connection: Connection, dataset: Dataset, today: date) -> None:
        assert dataset.time_partitions is not None  # noqa: S101 — the statement gives no other
        self._connection = connection
        self._dataset = dataset
        self._by = dataset.time_partitions
        self._periods = periods_around(today, self._by.every)
        self._table = ddl.table(dataset)
        self._other = ddl.other_times(dataset)
        self.made = 0
        self.not_made: list[str] = []

    def keep(self) -> None:
        names = [_text(ddl.of_period(self._dataset, period)) for period in self._periods]
        missing = [self._periods[place - 1] for (place,) in self._connection.execute(_SQL["missing"], {"names": names})]
        values = {"table": _text(self._table), "other": _text(self._other)}
        row = self._connection.execute(_SQL["partitions"], values).fetchone()
        assert row is not None  # noqa: S101 — a query without FROM gives a row
        count, other_bytes, may_move = row
        if other_bytes > OTHER_BYTES_MAX:
            self.not_made.append(
                f"the default partition of {self._dataset.name} has {other_bytes} bytes, over {OTHER_BYTES_MAX}: "
                f"make partitions for its rows and move them there"
            )
            return
        for period in missing:
            self._make(period, may_move=may_move)
        if may_move:
            self._make_for_strays(limits.TIME_PARTITIONS_MAX - count - len(missing))

    def _make_for_strays(self, most: int) -> None:
        for _ in range(min(most, STRAY_PERIODS_A_ROUND_MAX)):
            stray = self._stray()
            if stray is None or not self._make(period_of(stray, self._by.every), may_move=True):
                return

    def _stray(self) -> date | None:
        """Return the day of a row in the default partition that is not later than the partitions made ahead."""
        known = Period(date.min, self._periods[-1].until)
        first, until = ddl.bounds(self._dataset, known)
        column = sql.Identifier(self._by.column)
        # Of a date this is the date, whatever the session's time zone.
        day = sql.SQL("({} AT TIME ZONE 'UTC')::date" if ddl.is_time(self._dataset) else "{}").format(column)
        statement = "SELECT {day} FROM {other} WHERE {column} >= {first} AND {column} < {until} LIMIT 1"
        parts = {"day": day, "other": self._other, "column": column, "first": first, "until": until}
        row = self._connection.execute(sql.SQL(statement).format(**parts)).fetchone()
        return None if row is None else row[0]

    def _make(self, period: Period, *, may_move: bool) -> bool:
        """Make a period's partition and move its rows there, all or nothing; tell whether it is there."""
        made, (first, until) = ddl.of_period(self._dataset, period), ddl.bounds(self._dataset, period)
        parts: dict[str, sql.Composable] = {"table": self._table, "made": made, "first": first, "until": until}
        parts |= {"other": self._other, "column": sql.Identifier(self._by.column)}
        try:
            with self._connection.transaction():
                self._connection.execute(_SQL["be_brief"])
                self._connection.execute(sql.SQL("CREATE TABLE {made} (LIKE {table} INCLUDING ALL)").format(**parts))
                if may_move:
                    self._move(parts)
                attach = "ALTER TABLE {table} ATTACH PARTITION {made} FOR VALUES FROM ({first}) TO ({until})"
                self._connection.execute(sql.SQL(attach).format(**parts))
        except _THERE:
            return False
        except _NOT_NOW as error:
            what = f"the partition of {self._dataset.name} from {period.first} on"
            self.not_made.append(f"{what}: {error.diag.message_primary}")
            return False
        self.made += 1
        return True

    def _move(self, parts: dict[str, sql.Composable]) -> None:
        found = self._connection.execute(_SQL["column_names"], {"table": _text(self._table)}).fetchall()
        columns = sql.SQL(", ").join(sql.Identifier(name) for (name,) in found)
        move = (
            "WITH moved AS (DELETE FROM {other} WHERE {column} >= {first} AND {column} < {until} RETURNING {columns}) "
            "INSERT INTO {made} ({columns}) SELECT {columns} FROM moved"
        )
        self._connection.execute(sql.SQL(move).format(**parts, columns=columns))


def _text(name: sql.Identifier) -> str:
    return name.as_string(None)
