"""The server's connection pool, and deadlines for its calls: a hung PostgreSQL never holds up a caller for longer."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from functools import wraps
from typing import Any, Final, ParamSpec, TypeVar

import psycopg
import structlog
from psycopg_pool import AsyncConnectionPool

from bulkgrpc.ingest.ports import LockTimeout, PostgresUnavailable
from bulkgrpc.limits import (
    SERVER_IDLE_IN_TRANSACTION_S,
    SERVER_STATEMENT_S,
    SERVER_TCP_USER_TIMEOUT_S,
    SERVER_TRANSACTION_S,
    STREAM_DEADLINE_S,
)
from bulkgrpc.postgres.connection import Deadlines, ServerConnection, conninfo
from bulkgrpc.postgres.outage import explained
from bulkgrpc.postgres.unavailable import Meaning, meaning_of

CONNECTIONS_MAX: Final = 8
WAITING_MAX: Final = 1000
"""Calls that wait for a connection; those that gave up count until the next connection is there."""
RECONNECT_S: Final = 10.0
"""How long the pool tries to connect, ever less often, before it starts again."""
LOG_AGAIN_S: Final = 10.0
"""An unavailable PostgreSQL is logged so often for each reason, not for each call."""
_OF_SERVER: Final = Deadlines(
    SERVER_STATEMENT_S, SERVER_IDLE_IN_TRANSACTION_S, SERVER_TRANSACTION_S, SERVER_TCP_USER_TIMEOUT_S
)

_log = structlog.get_logger()
_abandoned: set[asyncio.Task[Any]] = set()
P = ParamSpec("P")
T = TypeVar("T")


class ConnectionPool(AsyncConnectionPool[Any]):
    """A pool that closes a connection to a server that became read-only: the next one may reach the new primary."""

    @asynccontextmanager
    async def connection(  # noqa: D102 — as the base class documents it
        self,
        timeout: float | None = None,  # noqa: ASYNC109 — the parameter of the base class
    ) -> AsyncIterator[psycopg.AsyncConnection[Any]]:
        async with super().connection(timeout) as connection:
            try:
                yield connection
            except psycopg.errors.ReadOnlySqlTransaction:
                await connection.close()
                raise


def make_pool(postgres: str) -> AsyncConnectionPool[Any]:
    """Return a pool, not opened yet, whose connections detect a dead or stopped server within seconds."""
    return ConnectionPool(
        conninfo(postgres, "bulkgrpc-server", _OF_SERVER),
        open=False,
        min_size=1,
        max_size=CONNECTIONS_MAX,
        timeout=STREAM_DEADLINE_S,
        max_waiting=WAITING_MAX,
        reconnect_timeout=RECONNECT_S,
        # The pool has given up. Once WAITING_MAX calls did so too, no further one would make it connect.
        reconnect_failed=AsyncConnectionPool.check,
        check=AsyncConnectionPool.check_connection,
        kwargs={"autocommit": True},
        connection_class=ServerConnection,
    )


def within(
    deadline_s: float,
) -> Callable[[Callable[P, Coroutine[Any, Any, T]]], Callable[P, Coroutine[Any, Any, T]]]:
    """Give a coroutine function a deadline, and exceptions without a driver.

    The function then raises LockTimeout, or PostgresUnavailable if PostgreSQL does not answer by the deadline, or
    answers that it is unavailable (`bulkgrpc.postgres.unavailable`). Any other error is a defect of ours and stays.
    """

    def bounded(function: Callable[P, Coroutine[Any, Any, T]]) -> Callable[P, Coroutine[Any, Any, T]]:
        @wraps(function)
        async def call(*arguments: P.args, **keywords: P.kwargs) -> T:
            # psycopg ends a cancelled query only after asking the server to cancel it, which a stopped server never
            # answers: the query runs as a task that may be abandoned. The pool bounds how many there are.
            task = asyncio.ensure_future(function(*arguments, **keywords))
            try:
                done, _ = await asyncio.wait({task}, timeout=deadline_s)
            except asyncio.CancelledError:
                _abandon(task)
                raise
            if not done:
                _abandon(task)
                raise PostgresUnavailable(f"PostgreSQL did not answer within {deadline_s:g} s")
            try:
                return task.result()
            except psycopg.Error as error:
                meaning = meaning_of(error)
                if meaning is Meaning.LOCKED:
                    raise LockTimeout(f"PostgreSQL: {error}") from error
                if meaning is Meaning.UNAVAILABLE:
                    _log_unavailable(error)
                    raise PostgresUnavailable(f"PostgreSQL: {error}", error.sqlstate or "") from error
                raise

        return call

    return bounded


_logged_at_s: dict[str, float] = {}


def _log_unavailable(error: psycopg.Error) -> None:
    reason, now_s = error.sqlstate or type(error).__name__, time.monotonic()
    if now_s - _logged_at_s.get(reason, -LOG_AGAIN_S) >= LOG_AGAIN_S:
        _logged_at_s[reason] = now_s
        _log.warning("postgres_unavailable", error=explained(error), sqlstate=error.sqlstate or "")


def _abandon(task: asyncio.Task[Any]) -> None:
    _abandoned.add(task)
    task.add_done_callback(_forget)
    task.cancel()


def _forget(task: asyncio.Task[Any]) -> None:
    _abandoned.discard(task)
    if not task.cancelled() and (error := task.exception()) is not None:
        _log.debug("abandoned_query_failed", error=str(error))
