"""Connections through a pooler such as PgBouncer: what a session has elsewhere, each transaction sets for itself.

A pooler gives the sessions of PostgreSQL to its clients in turn, for a transaction at a time. So nothing of a session
is relied on: settings are local to a transaction, temporary tables are dropped at its end, no statement is prepared,
and no lock outlasts it. A pooler drops our `options`, or refuses them: by that it is noticed.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from typing import Any, TypeVar, cast

import psycopg
from psycopg import sql
from psycopg.abc import PQGen
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.pq import TransactionStatus

T = TypeVar("T")

MARK = "bulkgrpc.options"
"""A setting that a session has only if the server got our options."""
MARKED = ("on",)
"""The row of READ_MARK then."""
READ_MARK = f"SELECT current_setting('{MARK}', true)"

_TOKEN = re.compile(r"(?:\\.|\S)+")
_REFUSED = re.compile(r"unsupported startup parameter")


class WorkerConnection(psycopg.Connection[tuple[Any, ...]]):
    """A connection of a worker. local_settings: the statement that begins each transaction behind a pooler; else empty.

    A transaction that is begun by a statement of the caller's begins with `begin_statements`. while_waiting: what is
    called, once, when a statement is sent and its answer not there yet.
    """

    local_settings: str = ""
    while_waiting: Callable[[], object] | None = None

    def wait(self, gen: PQGen[T], interval: float = 0.1, timeout: float | None = None) -> T:
        """Wait for what a generator of psycopg does with the connection, as the base class does."""
        if (work := self.while_waiting) is not None:
            self.while_waiting = None
            gen = _working(gen, work)
        return super().wait(gen, interval, timeout)

    @contextmanager
    def transaction(
        self, savepoint_name: str | None = None, force_rollback: bool = False
    ) -> Iterator[psycopg.Transaction]:
        """Open a transaction or a savepoint, as the base class does."""
        outermost = self.info.transaction_status is TransactionStatus.IDLE
        with super().transaction(savepoint_name, force_rollback) as transaction:
            if outermost and self.local_settings:
                super().execute(self.local_settings.encode())
            yield transaction

    def execute(  # type: ignore[override]  # The base class overloads it for templates, which nothing uses.
        self, query: psycopg.abc.QueryNoTemplate, params: psycopg.abc.Params | None = None, **how: Any
    ) -> psycopg.Cursor[tuple[Any, ...]]:
        """Execute a statement as the base class does; behind a pooler, in a transaction with our settings."""
        if not _alone(self, self.local_settings, query):
            return super().execute(query, params, **how)
        with self.transaction():
            return super().execute(query, params, **how)


class PooledConnection(psycopg.AsyncConnection[Any]):
    """A connection of a server's pool. local_settings: as for `WorkerConnection`."""

    local_settings: str = ""

    @asynccontextmanager
    async def transaction(
        self, savepoint_name: str | None = None, force_rollback: bool = False
    ) -> AsyncIterator[psycopg.AsyncTransaction]:
        """Open a transaction or a savepoint, as the base class does."""
        outermost = self.info.transaction_status is TransactionStatus.IDLE
        async with super().transaction(savepoint_name, force_rollback) as transaction:
            if outermost and self.local_settings:
                await super().execute(self.local_settings.encode())
            yield transaction

    async def execute(  # type: ignore[override]  # As above.
        self, query: psycopg.abc.QueryNoTemplate, params: psycopg.abc.Params | None = None, **how: Any
    ) -> psycopg.AsyncCursor[Any]:
        """Execute a statement as the base class does; behind a pooler, in a transaction with our settings."""
        if not _alone(self, self.local_settings, query):
            return await super().execute(query, params, **how)
        async with self.transaction():
            return await super().execute(query, params, **how)


def local_settings(connection: object) -> str:
    """Return the statement that sets our settings for a transaction; empty if the session has them."""
    return connection.local_settings if isinstance(connection, (WorkerConnection, PooledConnection)) else ""


@asynccontextmanager
async def settled(connection: psycopg.AsyncConnection[Any]) -> AsyncIterator[None]:
    """Give the statements of cursors our settings: behind a pooler, in a transaction."""
    if not local_settings(connection):
        yield
        return
    async with connection.transaction():
        yield


def begin_statements(connection: object) -> tuple[str, ...]:
    """Return the statements that begin a transaction, to be executed by a cursor."""
    settings = local_settings(connection)
    return ("BEGIN", settings) if settings else ("BEGIN",)


def refuses_options(error: psycopg.OperationalError) -> bool:
    """Return whether a connection failed because a pooler takes no `options`."""
    return _REFUSED.search(str(error)) is not None


def without_options(target: str) -> str:
    """Return a connection string without `options`."""
    return make_conninfo(target, options="")


def settle(
    connection: WorkerConnection | PooledConnection, target: str, later: Mapping[str, int], more: Mapping[str, str]
) -> None:
    """Have a connection through a pooler set for each transaction what the options of a connection string say.

    later: settings that releases before these do not know. more: settings that are parameters of a direct connection.
    """
    release = connection.info.server_version // 10000
    settings = {**options_of(str(conninfo_to_dict(target).get("options") or "")), **more}
    settings.pop(MARK, None)
    calls = [
        sql.SQL("set_config({}, {}, true)").format(name, value)
        for name, value in settings.items()
        if release >= later.get(name, 0)
    ]
    connection.local_settings = sql.SQL("SELECT {}").format(sql.SQL(", ").join(calls)).as_string(None)
    # A statement that was prepared in one session is not there in the next one.
    connection.prepare_threshold = None


def options_of(options: str) -> dict[str, str]:
    """Return the settings of the options of a connection: `-c name=value`, `--name=value`; a backslash escapes."""
    tokens = [re.sub(r"\\(.)", r"\1", token) for token in _TOKEN.findall(options)]
    found = dict[str, str]()
    for before, token in zip(["", *tokens], tokens, strict=False):
        setting = token if before == "-c" else token[2:] if token[:2] in ("-c", "--") else ""
        name, given, value = setting.partition("=")
        if given:
            found[name.replace("-", "_")] = value
    return found


def _working(gen: PQGen[T], work: Callable[[], object]) -> PQGen[T]:
    """Call `work` where the generator waits first: then the statement is sent. Raises what it raises, at the end."""
    try:
        state = next(gen)
    except StopIteration as ended:
        return cast(T, ended.value)
    failure: BaseException | None = None
    try:
        work()
    except BaseException as error:  # noqa: BLE001 — raised below: the connection must have its answer first
        failure = error
    while True:
        ready = yield state
        try:
            state = gen.send(ready)
        except StopIteration as ended:
            if failure is not None:
                raise failure from None
            return cast(T, ended.value)


def _alone(connection: Any, settings: str, query: object) -> bool:
    """Return whether a statement would be a transaction of its own, without our settings. Empty ones only ask."""
    if not (settings and query):
        return False
    return bool(connection.autocommit) and connection.info.transaction_status is TransactionStatus.IDLE
