"""Creates the partitions of tables that are partitioned by time: ahead of time, and for rows in the default partition.

A row never waits for its partition: rows without one go to the default partition. Creating one blocks no writer for
long: a table is created and then attached, which locks out writers of the default partition only, while PostgreSQL
scans it. If that lock is not free at once, the partition is left for the next round.
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
from bulkgrpc.postgres.connection import Connection

DEFAULT_BYTES_MAX = 1 << 30
"""Size of a default partition that may be scanned under its lock: that takes about a second."""
MOVED_PERIODS_PER_ROUND_MAX = 8

_SQL = statements.family("partitions")
_RETRY_LATER = (
    psycopg.errors.LockNotAvailable,
    psycopg.errors.DeadlockDetected,
    # A row of the period was written to the default partition while those before it were moved.
    psycopg.errors.CheckViolation,
)
_EXISTS = (psycopg.errors.DuplicateTable, psycopg.errors.InvalidObjectDefinition)
"""A table of that name, or a partition of an overlapping period, which a user created."""


@dataclass(frozen=True, slots=True)
class Round:
    """What a round did. created: how many partitions. not_created: what could not be done now, one line each."""

    created: int
    not_created: tuple[str, ...]


def maintain_partitions(connection: Connection, today: date) -> Round:
    """Create the partitions that are needed next, and those of rows in default partitions.

    Raises psycopg.Error if PostgreSQL is unavailable.
    """
    created, not_created = 0, list[str]()
    for descriptors, message_type, version in connection.execute(_SQL["time_partitioned"]).fetchall():
        try:
            work = _TableMaintenance(connection, define(descriptors, message_type, version), today)
            work.run()
        except (InvalidDataset, psycopg.Error) as error:
            if connection.closed:
                raise
            # Whatever the error is: the partitions of other tables do not depend on it.
            not_created.append(f"partitions of {message_type}: {' '.join(str(error).split())}")
        else:
            created += work.created
            not_created += work.not_created
    return Round(created, tuple(not_created))


class _TableMaintenance:
    """Maintains the partitions of one dataset's table, once."""

    def __init__(self, connection: Connection, dataset: Dataset, today: date) -> None:
        assert dataset.time_partitions is not None  # noqa: S101 — the statement selects no other
        self._connection = connection
        self._dataset = dataset
        self._by = dataset.time_partitions
        self._periods = periods_around(today, self._by.period)
        self._table = ddl.table(dataset)
        self._default = ddl.other_times(dataset)
        self.created = 0
        self.not_created: list[str] = []

    def run(self) -> None:
        names = [_text(ddl.of_period(self._dataset, period)) for period in self._periods]
        missing = [
            self._periods[position - 1] for (position,) in self._connection.execute(_SQL["missing"], {"names": names})
        ]
        values = {"table": _text(self._table), "default": _text(self._default)}
        row = self._connection.execute(_SQL["partitions"], values).fetchone()
        assert row is not None  # noqa: S101 — a query without FROM returns a row
        count, default_bytes, may_move = row
        if default_bytes > DEFAULT_BYTES_MAX:
            self.not_created.append(
                f"the default partition of {self._dataset.name} has {default_bytes} bytes, over {DEFAULT_BYTES_MAX}: "
                f"create partitions for its rows and move them there"
            )
            return
        for period in missing:
            self._create(period, may_move=may_move)
        if may_move:
            self._create_for_default_rows(limits.TIME_PARTITIONS_MAX - count - len(missing))

    def _create_for_default_rows(self, most: int) -> None:
        for _ in range(min(most, MOVED_PERIODS_PER_ROUND_MAX)):
            day = self._day_in_default()
            if day is None or not self._create(period_of(day, self._by.period), may_move=True):
                return

    def _day_in_default(self) -> date | None:
        """Return the day of a row in the default partition that is not later than the partitions created ahead."""
        known = Period(date.min, self._periods[-1].until)
        first, until = ddl.bounds(self._dataset, known)
        column = sql.Identifier(self._by.column)
        # Of a date this is the date, whatever the session's time zone.
        day = sql.SQL("({} AT TIME ZONE 'UTC')::date" if ddl.is_time(self._dataset) else "{}").format(column)
        statement = "SELECT {day} FROM {default} WHERE {column} >= {first} AND {column} < {until} LIMIT 1"
        parts = {"day": day, "default": self._default, "column": column, "first": first, "until": until}
        row = self._connection.execute(sql.SQL(statement).format(**parts)).fetchone()
        return None if row is None else row[0]

    def _create(self, period: Period, *, may_move: bool) -> bool:
        """Create a period's partition and move its rows there, all or nothing; return whether that succeeded."""
        made, (first, until) = ddl.of_period(self._dataset, period), ddl.bounds(self._dataset, period)
        parts: dict[str, sql.Composable] = {"table": self._table, "made": made, "first": first, "until": until}
        parts |= {"default": self._default, "column": sql.Identifier(self._by.column)}
        try:
            with self._connection.transaction():
                self._connection.execute(_SQL["set_lock_timeout"])
                self._connection.execute(sql.SQL("CREATE TABLE {made} (LIKE {table} INCLUDING ALL)").format(**parts))
                if may_move:
                    self._move(parts)
                attach = "ALTER TABLE {table} ATTACH PARTITION {made} FOR VALUES FROM ({first}) TO ({until})"
                self._connection.execute(sql.SQL(attach).format(**parts))
        except _EXISTS:
            return False
        except _RETRY_LATER as error:
            what = f"the partition of {self._dataset.name} from {period.first} on"
            self.not_created.append(f"{what}: {error.diag.message_primary}")
            return False
        self.created += 1
        return True

    def _move(self, parts: dict[str, sql.Composable]) -> None:
        found = self._connection.execute(_SQL["column_names"], {"table": _text(self._table)}).fetchall()
        columns = sql.SQL(", ").join(sql.Identifier(name) for (name,) in found)
        move = (
            "WITH moved AS "
            "(DELETE FROM {default} WHERE {column} >= {first} AND {column} < {until} RETURNING {columns}) "
            "INSERT INTO {made} ({columns}) SELECT {columns} FROM moved"
        )
        self._connection.execute(sql.SQL(move).format(**parts, columns=columns))


def _text(name: sql.Identifier) -> str:
    return name.as_string(None)
