"""What a dataset's table is, checked in the transaction that writes it.

The table is locked first, as a writer locks it, and only then compared with what is known of it: so it stays what was
checked until the transaction ends. The comparison is one text; the table is described again only where that differs.
"""

from __future__ import annotations

import time
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import psycopg
from psycopg import sql
from psycopg.pq import TransactionStatus

from bulkgrpc import limits
from bulkgrpc.datasets.ddl import table as table_of
from bulkgrpc.datasets.definition import Dataset
from bulkgrpc.datasets.table_description import Table, parse_table
from bulkgrpc.datasets.table_fit import Fit, Misfit, MisfitCode, TableMisfit, fit
from bulkgrpc.postgres import rows_time, statements
from bulkgrpc.postgres.connection import RESTORE
from bulkgrpc.postgres.pooler import local_settings
from bulkgrpc.postgres.writers import savepoint

Connection = psycopg.Connection[tuple[Any, ...]]
_SQL = statements.family("table_contract")

LOCK_TIMEOUT_MS = 500
"""A chunk waits so long for a table that is being changed; the other tables of the chunk wait with it."""

TABLES_TIME = 2
"""All tables of a transaction together may take so many times as long as one."""

# One round trip. An error at COMMIT would be about no row: let it come with the row, also that of a table to which a
# trigger writes. ONLY: a session that attaches a partition locks the default one, and chunks must not wait for it.
_LOCK = sql.SQL(
    "SET CONSTRAINTS ALL IMMEDIATE; SET LOCAL lock_timeout = {timeout}; LOCK TABLE ONLY {table} IN ROW EXCLUSIVE MODE; "
    "SET LOCAL lock_timeout = DEFAULT; SELECT bulk.table_fingerprint({name}::regclass) "
    # A pooler's connection may be to another server after a fail-over.
    "|| pg_postmaster_start_time()"
)


@dataclass(frozen=True, slots=True)
class _Known:
    """A fit, and the fingerprint that its table had."""

    fingerprint: str
    fit: Fit


@dataclass(slots=True)
class _Session:
    """What is known on one connection of dataset versions: their fits, and the statements that lock their tables.

    bounded: whether the time limit of the rows, and what triggers set, apply to the transaction's statements.
    in_savepoint: whether the savepoint of the rows is open.
    """

    fits: dict[tuple[str, int], _Known] = field(default_factory=dict)
    locks: dict[tuple[str, int], bytes] = field(default_factory=dict)
    bounded: bool = False
    in_savepoint: bool = False


class TableContracts:
    """Checks tables and remembers what they were, by connection. Not thread-safe.

    A fingerprint is never compared across connections: after a fail-over the same numbers may mean other changes.
    rows_s: the time that the rows of a table may take in a transaction, from its first check on.
    """

    def __init__(self, rows_s: float = limits.STATEMENT_TIMEOUT_S) -> None:
        self._rows_s = rows_s
        self._ends_at_s: dict[str, float] | None = None  # by table, in `one_transaction`
        self._all_end_at_s = 0.0
        self._sessions = weakref.WeakKeyDictionary[Connection, _Session]()

    @contextmanager
    def one_transaction(self, connection: Connection) -> Iterator[None]:
        """Count the time of a table that is checked again inside, and of all tables, together."""
        self._ends_at_s, self._all_end_at_s = {}, time.monotonic() + TABLES_TIME * self._rows_s
        session = self._session(connection)
        session.bounded = session.in_savepoint = False
        try:
            yield
        finally:
            self._ends_at_s = None

    def end_rows(self, connection: Connection) -> None:
        """Release the savepoint of the rows, and give the statements that follow the session as it was; if need be."""
        if statements := self.take_end(connection):
            connection.execute("; ".join(statements).encode(), prepare=False)

    def take_end(self, connection: Connection) -> Sequence[str]:
        """Return the statements that `end_rows` executes. They have no results; the caller sends them before others."""
        session = self._session(connection)
        ending = [savepoint.RELEASE.rstrip(";")] * session.in_savepoint
        if session.bounded:
            ending += [*RESTORE, *filter(None, [local_settings(connection)])]
        session.bounded = session.in_savepoint = False
        return ending

    def check(self, connection: Connection, dataset: Dataset, *, opens_savepoint: bool = False) -> Fit:
        """Lock a dataset's table for writing until the transaction ends, and return how its rows are written.

        connection: in a READ COMMITTED transaction and not in a pipeline, best in a savepoint: whatever is raised, the
        caller rolls back. opens_savepoint: afterwards, for `savepoint.in_opened_savepoint`.
        Raises TableMisfit if the rows cannot be written, psycopg.errors.UndefinedTable if there is no table,
        LockNotAvailable if it is being changed, InsufficientPrivilege if the role has no right on it,
        QueryCanceled if no time is left for its rows. The transaction's lock_timeout is the connection's default
        afterwards.
        Cost: one round trip, about 0.3 ms; a second one, about 3 ms, where the table changed.
        """
        if connection.info.transaction_status is not TransactionStatus.INTRANS:
            raise RuntimeError("a table is checked in the transaction that writes it")
        session = self._session(connection)
        rows_time.begin(connection, self._left_s(dataset.name))
        if self._ends_at_s is None:
            # Of an earlier transaction.
            session.in_savepoint = False
        fingerprint = _lock(connection, dataset, session, opens_savepoint=opens_savepoint)
        known = session.fits.get((dataset.name, dataset.version))
        if known is not None and known.fingerprint == fingerprint:
            return known.fit
        # Only what fits is remembered: what does not is read again each time, however it was repaired.
        session.fits.pop((dataset.name, dataset.version), None)
        found = describe(connection, dataset)
        if found is None:
            raise RuntimeError(f"table {dataset.name} is locked, and is not there")
        fitted = fit(dataset, found)
        if isinstance(fitted, Misfit):
            raise TableMisfit(fitted)
        session.fits[dataset.name, dataset.version] = _Known(fingerprint, fitted)
        return fitted

    def _session(self, connection: Connection) -> _Session:
        session = self._sessions.get(connection)
        if session is None:
            session = self._sessions[connection] = _Session()
        return session

    def _left_s(self, table: str) -> float:
        if self._ends_at_s is None:
            return self._rows_s
        now_s = time.monotonic()
        return min(self._ends_at_s.setdefault(table, now_s + self._rows_s), self._all_end_at_s) - now_s


def describe(connection: Connection, dataset: Dataset) -> Table | None:
    """Return what a dataset's table is, or None if nothing has its name."""
    return _describe(connection, table_of(dataset))


def find_table(connection: Connection, name: str) -> tuple[str, str, Table] | None:
    """Return the schema, the name and the description of a table, or None if nothing has the name.

    name: as in SQL, with quotes where it needs them. Raises psycopg.Error if it is no name.
    """
    row = connection.execute(_SQL["find"], {"table": name}).fetchone()
    if row is None:
        return None
    found = _describe(connection, sql.Identifier(*row))
    return None if found is None else (row[0], row[1], found)


def _describe(connection: Connection, table: sql.Identifier) -> Table | None:
    row = connection.execute(_SQL["describe"], _values(table)).fetchone()
    return None if row is None else parse_table(row[0])


async def describe_for_registration(
    connection: psycopg.AsyncConnection[tuple[Any, ...]], dataset: Dataset
) -> Table | None:
    """Return what `describe` does, on the connection of a server."""
    row = await (await connection.execute(_SQL["describe"], _values(table_of(dataset)))).fetchone()
    return None if row is None else parse_table(row[0])


def _lock(connection: Connection, dataset: Dataset, session: _Session, *, opens_savepoint: bool) -> str:
    """Lock a table and return its fingerprint. A savepoint that was opened before is released first."""
    # By version: a dataset that was deleted may have been bound to another table since.
    version = dataset.name, dataset.version
    statement = session.locks.get(version)
    if statement is None:
        table = table_of(dataset)
        composed = _LOCK.format(
            timeout=LOCK_TIMEOUT_MS,
            table=table,
            name=table.as_string(connection),
        )
        statement = session.locks[version] = composed.as_bytes(connection)
    try:
        before = savepoint.RELEASE * session.in_savepoint + rows_time.restore(connection)
        after = ";" + savepoint.OPEN if opens_savepoint else ""
        cursor = connection.execute(before.encode() + statement + after.encode(), prepare=False)
    except psycopg.errors.WrongObjectType as error:
        raise TableMisfit(
            Misfit(
                MisfitCode.NOT_A_TABLE,
                f"{error.diag.message_primary}: put the table back in its place",
            )
        ) from error
    session.bounded, session.in_savepoint = True, opens_savepoint
    row = None
    while cursor.nextset():
        if cursor.description is not None:
            row = cursor.fetchone()
    if row is None or row[0] is None:
        raise RuntimeError("the transaction is not READ COMMITTED: it might see the table as it was before the lock")
    return str(row[0])


def _values(table: sql.Identifier) -> dict[str, str]:
    return {"table": table.as_string(None)}
