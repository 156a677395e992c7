"""Deadlines of PostgreSQL calls, and which of its errors mean that it is unavailable."""

from __future__ import annotations

import asyncio

import psycopg
import pytest

from bulkgrpc.ingest.ports import LockTimeout, PostgresUnavailable
from bulkgrpc.postgres.deadlines import within


async def hang() -> None:
    """Not end when cancelled at first, as a driver does that asks a stopped server to cancel."""
    try:
        await asyncio.sleep(60)
    except asyncio.CancelledError:
        await asyncio.sleep(0.1)


async def test_a_postgresql_that_hangs_costs_its_deadline_and_no_more() -> None:
    async with asyncio.timeout(0.09):
        with pytest.raises(PostgresUnavailable):
            await within(0.02)(hang)()
    await asyncio.sleep(0.15)


@pytest.mark.parametrize(
    ("raised", "expected"),
    [
        (psycopg.OperationalError("unavailable"), PostgresUnavailable),
        (psycopg.InterfaceError("closed"), PostgresUnavailable),
        (psycopg.errors.LockNotAvailable("busy"), LockTimeout),
        (psycopg.ProgrammingError("no such column"), psycopg.ProgrammingError),
    ],
)
async def test_a_defect_of_ours_does_not_count_as_an_unavailable_postgresql(
    raised: Exception, expected: type[Exception]
) -> None:
    @within(1.0)
    async def query() -> None:
        raise raised

    with pytest.raises(expected) as caught:
        await query()
    assert caught.type is expected
