"""The server's connection pool, and deadlines for its calls: a hung PostgreSQL never holds up a caller for longer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from functools import wraps
from typing import Any, Final, ParamSpec, TypeVar

import psycopg
import structlog
from psycopg_pool import AsyncConnectionPool

from bulkgrpc.ingest.ports import LockTimeout, PostgresUnavailable

STREAM_DEADLINE_S: Final = 1.0
"""A stream waits no longer than this; it continues without PostgreSQL."""
CALL_DEADLINE_S: Final = 5.0
CONNECTIONS_MAX: Final = 8

_log = structlog.get_logger()
_abandoned: set[asyncio.Task[Any]] = set()
P = ParamSpec("P")
T = TypeVar("T")


def make_pool(postgres: str) -> AsyncConnectionPool[Any]:
    """Return a pool, not opened yet, whose connections detect a dead or stopped server within seconds."""
    return AsyncConnectionPool(
        postgres,
        open=False,
        min_size=1,
        max_size=CONNECTIONS_MAX,
        timeout=STREAM_DEADLINE_S,
        max_waiting=1000,
        reconnect_timeout=10.0,
        check=AsyncConnectionPool.check_connection,
        kwargs={
            "autocommit": True,
            "connect_timeout": 5,
            "tcp_user_timeout": 5000,
            "application_name": "bulkgrpc-server",
            "options": "-c statement_timeout=10s -c idle_in_transaction_session_timeout=20s",
        },
    )


def within(
    deadline_s: float,
) -> Callable[[Callable[P, Coroutine[Any, Any, T]]], Callable[P, Coroutine[Any, Any, T]]]:
    """Give a coroutine function a deadline, and exceptions without a driver.

    The function then raises LockTimeout, or PostgresUnavailable if PostgreSQL does not answer by the deadline. Any
    other error of PostgreSQL is a defect of ours and stays as it is.
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
            except psycopg.errors.LockNotAvailable as error:
                raise LockTimeout(f"PostgreSQL: {error}") from error
            except (psycopg.OperationalError, psycopg.InterfaceError) as error:
                raise PostgresUnavailable(f"PostgreSQL: {error}") from error

        return call

    return bounded


def _abandon(task: asyncio.Task[Any]) -> None:
    _abandoned.add(task)
    task.add_done_callback(_forget)
    task.cancel()


def _forget(task: asyncio.Task[Any]) -> None:
    _abandoned.discard(task)
    if not task.cancelled() and (error := task.exception()) is not None:
        _log.debug("abandoned_query_failed", error=str(error))
