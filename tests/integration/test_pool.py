"""The server's connection pool, while PostgreSQL refuses connections and afterwards."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict
from psycopg_pool import AsyncConnectionPool, PoolTimeout, TooManyRequests

from bulkgrpc.postgres import deadlines
from bulkgrpc.stack import Addresses
from tests.integration.server_peer import eventually


async def test_a_pool_recovers_after_more_calls_than_may_wait_have_given_up(
    database: str, addresses: Addresses, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deadlines, "WAITING_MAX", 3)
    monkeypatch.setattr(deadlines, "RECONNECT_S", 1.0)
    name = str(conninfo_to_dict(database)["dbname"])

    def allow(allowed: bool) -> None:
        with psycopg.connect(addresses.postgres, autocommit=True) as admin:
            statement = sql.SQL("ALTER DATABASE {} ALLOW_CONNECTIONS {}")
            admin.execute(statement.format(sql.Identifier(name), sql.SQL("true" if allowed else "false")))
            admin.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", [name])

    def stat(pool: AsyncConnectionPool[Any], what: str) -> Callable[[], int]:
        return lambda: int(pool.get_stats().get(what, 0))

    async with deadlines.make_pool(database) as pool:
        await pool.wait()
        allow(False)
        refused: list[Exception] = []
        while not any(isinstance(error, TooManyRequests) for error in refused):
            try:
                async with pool.connection(timeout=0.05):
                    pass
            except (PoolTimeout, TooManyRequests) as error:
                refused.append(error)
        failed = stat(pool, "connections_errors")
        before = failed()

        async def gave_up() -> bool:
            # More attempts than one period of reconnecting has, with the pauses that grow.
            return failed() >= before + 8

        await eventually(gave_up)
        allow(True)

        async def served() -> bool:
            try:
                async with pool.connection(timeout=0.5) as connection:
                    await connection.execute("SELECT 1")
                return True
            except (PoolTimeout, TooManyRequests):
                return False

        await eventually(served)
