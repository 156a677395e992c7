"""Connections to PostgreSQL: deadlines against hung servers and networks, and the session settings that we rely on.

Every connection of the service gets its settings here, whatever the role's, the database's or the server's defaults
are. Some defaults stay: `TimeZone` and `search_path`, because every statement of ours names zone and schema, and the
functions of a user's triggers may rely on them; `default_transaction_read_only`, with which an operator stops writes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Self

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.pq import TransactionStatus

from bulkgrpc import limits
from bulkgrpc.postgres import pooler
from bulkgrpc.postgres.pooler import PooledConnection, WorkerConnection

Connection = psycopg.Connection[tuple[Any, ...]]
"""A connection of a worker."""

CONNECT_TIMEOUT_S = 5

SESSION = {
    # A statement sees what was committed before it began: the ledger's locks rely on that.
    "default_transaction_isolation": "read committed",
    "default_transaction_deferrable": "off",
    # A commit that is reported is durable.
    "synchronous_commit": "on",
    # A refused row rolls back to a savepoint; the session continues.
    "exit_on_error": "off",
    # The forms in which psycopg reads and writes values, and the statements of `bulkgrpc.datasets.ddl` their literals.
    "DateStyle": "ISO",
    "IntervalStyle": "postgres",
    "bytea_output": "hex",
    "extra_float_digits": "1",
    "standard_conforming_strings": "on",
    "array_nulls": "on",
    # Names of types in the catalog are compared with ours.
    "quote_all_identifiers": "off",
    # An idle connection of a pool stays; a lock is waited for until the statement's deadline, where no code says less.
    "idle_session_timeout": "0",
    "lock_timeout": "0",
}
"""What the service relies on. Each may be set by any role."""

RESTORE = ("RESET SESSION AUTHORIZATION", "RESET ROLE", "RESET ALL", "UNLISTEN *")
"""Undo what a trigger of a user's table did to the session: a plain SET in its function lasts, for other tables too."""


@dataclass(frozen=True, slots=True)
class Deadlines:
    """Seconds after which PostgreSQL ends a statement, an idle transaction, a whole transaction; 0 for no limit.

    tcp_user_s: how long sent data may stay unacknowledged before the connection counts as broken.
    """

    statement_s: float = 0.0
    idle_in_transaction_s: float = 0.0
    transaction_s: float = 0.0
    tcp_user_s: float = limits.TCP_USER_TIMEOUT_S


UNLIMITED = Deadlines()
"""For migrations and tools: their statements take as long as they take."""


def conninfo(
    postgres: str, name: str, deadlines: Deadlines | None = None, more: Mapping[str, str] = MappingProxyType({})
) -> str:
    """Return the connection string with our deadlines and settings added. name: shows in pg_stat_activity.

    deadlines: default: a worker's. more: settings beside ours. Options in `postgres` stay, except where ours set the
    same.
    """
    deadlines = deadlines or of_worker()
    settings = {
        **SESSION,
        **more,
        "statement_timeout": f"{deadlines.statement_s * 1000:.0f}",
        "idle_in_transaction_session_timeout": f"{deadlines.idle_in_transaction_s * 1000:.0f}",
        "transaction_timeout": f"{deadlines.transaction_s * 1000:.0f}",
        pooler.MARK: pooler.MARKED[0],
    }
    theirs = str(conninfo_to_dict(postgres).get("options") or "")
    ours = [f"-c {setting}={value.replace(' ', chr(92) + ' ')}" for setting, value in settings.items()]
    return make_conninfo(
        postgres,
        application_name=name,
        client_encoding="UTF8",
        connect_timeout=CONNECT_TIMEOUT_S,
        tcp_user_timeout=int(deadlines.tcp_user_s * 1000),
        keepalives_idle=5,
        keepalives_interval=2,
        keepalives_count=3,
        options=" ".join([theirs, *ours]).strip(),
    )


def of_worker() -> Deadlines:
    """Return the deadlines of a worker's connections."""
    return Deadlines(limits.STATEMENT_TIMEOUT_S, limits.IDLE_IN_TRANSACTION_S, limits.CHUNK_TRANSACTION_S_MAX)


def connect(
    postgres: str, name: str, deadlines: Deadlines | None = None, more: Mapping[str, str] = MappingProxyType({})
) -> Connection:
    """Open a connection in autocommit mode: the code opens each transaction explicitly.

    deadlines, more: as for `conninfo`. Raises psycopg.OperationalError if the server cannot be reached within
    CONNECT_TIMEOUT_S.
    """
    target = conninfo(postgres, name, deadlines, more)
    while True:
        try:
            connection = WorkerConnection.connect(fit(target), autocommit=True)
        except psycopg.OperationalError as error:
            if not learned(target, error):
                raise
            continue
        if _has_pooler(target):
            pooler.settle(connection, target, LATER, _parameters(target))
        elif connection.execute(pooler.READ_MARK).fetchone() != pooler.MARKED:
            _poolers.add(_server(target))
            connection.close()
            continue
        return connection


class ServerConnection(PooledConnection):
    """A connection of a pool to a server of any release, or to a pooler before it."""

    @classmethod
    async def connect(cls, conninfo: str = "", **options: Any) -> Self:
        """Open a connection. Raises psycopg.OperationalError."""
        while True:
            try:
                connection = await super().connect(fit(conninfo), **options)
            except psycopg.OperationalError as error:
                if not learned(conninfo, error):
                    raise
                continue
            if _has_pooler(conninfo):
                pooler.settle(connection, conninfo, LATER, _parameters(conninfo))
            elif await (await connection.execute(pooler.READ_MARK)).fetchone() != pooler.MARKED:
                _poolers.add(_server(conninfo))
                await connection.close()
                continue
            return connection


LATER = {"idle_session_timeout": 14, "transaction_timeout": 17}
"""Settings that servers before these releases do not know: idle sessions stay there, and the deadlines of statements
and of idle transactions have to do."""
_UNKNOWN = re.compile(r'unrecognized configuration parameter "(\w+)"')
_lacking: dict[str, set[str]] = {}  # by server
_poolers: set[str] = set()  # the servers that are poolers, once a connection has shown it


def learned(target: str, error: psycopg.OperationalError) -> bool:
    """Return whether a connection failed because of a setting, or of settings, that `fit` leaves out from now on."""
    if pooler.refuses_options(error) and not _has_pooler(target):
        _poolers.add(_server(target))
        return True
    names = set(_UNKNOWN.findall(str(error))) & LATER.keys()
    lacking = _lacking.setdefault(_server(target), set())
    new = names - lacking
    lacking |= new
    return bool(new)


def fit(target: str) -> str:
    """Return a connection string without the settings that its server is known to lack; without any to a pooler."""
    if _has_pooler(target):
        return pooler.without_options(target)
    lacking = _lacking.get(_server(target))
    if not lacking:
        return target
    options = str(conninfo_to_dict(target).get("options") or "")
    return make_conninfo(target, options=re.sub(rf" *-c ({'|'.join(sorted(lacking))})=\d+", "", options))


def _has_pooler(target: str) -> bool:
    """Return whether a connection has shown that a pooler answers. Each of the others asks: one may come in between."""
    return _server(target) in _poolers


def _parameters(target: str) -> dict[str, str]:
    """Return what `RESET ALL` takes from a session of a pooler, which has the parameters of another client."""
    name = conninfo_to_dict(target).get("application_name")
    return {"application_name": str(name or ""), "client_encoding": "UTF8"}


def _server(target: str) -> str:
    found = conninfo_to_dict(target)
    return " ".join(str(found.get(name)) for name in ("service", "host", "hostaddr", "port"))


@contextmanager
def rolled_back_after_a_failure(connection: Connection) -> Iterator[None]:
    """Roll back what the block began and did not commit, if it fails. Raises RuntimeError in a transaction."""
    if connection.info.transaction_status is not TransactionStatus.IDLE:
        raise RuntimeError("the block is a transaction of its own")
    try:
        yield
    except BaseException:
        with suppress(psycopg.Error):
            connection.rollback()
        raise


@contextmanager
def meanwhile(connection: Connection, work: Callable[[], object]) -> Iterator[None]:
    """Call `work` once while the next statement in the block waits for PostgreSQL.

    Only on a worker's connection; else, and if no statement has to wait, it is not called. What it raises, the
    statement raises, once PostgreSQL has answered.
    """
    if not isinstance(connection, WorkerConnection):
        yield
        return
    connection.while_waiting = work
    try:
        yield
    finally:
        connection.while_waiting = None
