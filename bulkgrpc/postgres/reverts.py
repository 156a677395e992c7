"""Removes the rows that a job wrote, part by part: adapter of the port `bulkgrpc.ingest.reverts.RowsOfJobs`.

A part is a range of pages, of every partition the same: PostgreSQL reads each page once, whatever the table's size and
indexes. Each range is a transaction of its own, so no lock and no snapshot lasts longer than a second or two.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import psycopg
from psycopg import sql
from psycopg_pool import AsyncConnectionPool

from bulkgrpc.datasets.ddl import table as table_of
from bulkgrpc.datasets.definition import Dataset
from bulkgrpc.ingest.ports import LockTimeout
from bulkgrpc.ingest.reverts import JobNotEnded, Part, RowsRefused
from bulkgrpc.limits import CALL_DEADLINE_S
from bulkgrpc.model import JobKey
from bulkgrpc.postgres import statements
from bulkgrpc.postgres.connection import RESTORE
from bulkgrpc.postgres.deadlines import within
from bulkgrpc.postgres.unavailable import Meaning, meaning_of

PAGES_MIN, PAGES = 8, 512
"""Of the first transaction of a call, and at most: 64 KiB and 4 MiB. A page has up to a few hundred rows."""
QUICK_S = 0.2
"""After a transaction that was quicker, the next one has twice as many pages."""
PART_S = 1.5
"""No transaction of a part begins later."""
AT_ONCE = 2
"""Parts at the same time: each holds a connection of the pool, which all tenants share."""
WAIT_S = 2.0
TID_RANGES = 140_000
"""The first version of the server that reads a range of pages without reading the table."""
_LOCK_TIMEOUT = "SET LOCAL lock_timeout = '2s'"
_SQL = statements.family("reverts")
_COUNT = sql.SQL("SELECT count(*) FROM {table} WHERE ctid >= {begin}::tid AND ctid < {end}::tid AND {job} = {job_id}")
_DELETE = sql.SQL("DELETE FROM {table} WHERE ctid >= {begin}::tid AND ctid < {end}::tid AND {job} = {job_id}")


class RowsOfJobs:
    """Counts and removes rows through a pool that the process owns."""

    def __init__(self, pool: AsyncConnectionPool[Any]) -> None:
        self._pool = pool
        self._turns = asyncio.Semaphore(AT_ONCE)

    @within(CALL_DEADLINE_S)
    async def part(self, key: JobKey, dataset: Dataset, from_page: int, *, removes: bool) -> Part:
        """See the port."""
        try:
            async with asyncio.timeout(WAIT_S):
                await self._turns.acquire()
        except TimeoutError as error:
            raise LockTimeout("other jobs are being reverted") from error
        try:
            async with self._pool.connection() as connection, _as_it_was(connection):
                return await _part(connection, key, dataset, from_page, removes=removes)
        except psycopg.errors.InsufficientPrivilege as error:
            said = error.diag.message_primary or str(error)
            raise RowsRefused(f"{said}: run GRANT SELECT, DELETE ON {dataset.table} TO the server's role") from error
        except psycopg.Error as error:
            # A table of a publication without a replica identity cannot delete rows: no retry helps.
            if meaning_of(error) is not Meaning.OTHER and error.sqlstate != "55000":
                raise
            # A foreign key of another table, a trigger, a table that was dropped or changed.
            raise RowsRefused(error.diag.message_primary or str(error)) from error
        finally:
            self._turns.release()


@asynccontextmanager
async def _as_it_was(connection: psycopg.AsyncConnection[Any]) -> AsyncIterator[None]:
    """Undo what triggers do to the session: others use it next. After a failure, close it."""
    try:
        yield
        await connection.execute("; ".join(RESTORE).encode(), prepare=False)
    except RowsRefused:
        # Before any row was removed: no trigger has run.
        raise
    except BaseException:
        await connection.close()
        raise


async def _part(
    connection: psycopg.AsyncConnection[Any], key: JobKey, dataset: Dataset, from_page: int, *, removes: bool
) -> Part:
    if dataset.provenance is None:
        raise ValueError(f"dataset {dataset.name} does not store which job wrote a row")
    table, ends_s = table_of(dataset), time.monotonic() + PART_S
    async with connection.transaction():
        await connection.execute(_LOCK_TIMEOUT)
        cursor = await connection.execute(_SQL["extent"], {"table": table.as_string(None)})
        tables, pages, cascading = await cursor.fetchone() or (1, 0, None)
    if cascading is not None:
        raise RowsRefused(f"foreign key {cascading} would delete or change other rows with them")
    by_pages = connection.info.server_version >= TID_RANGES
    step, most = (max(1, PAGES_MIN // tables), max(1, PAGES // tables)) if by_pages else (max(pages, 1),) * 2
    rows = 0
    while from_page < pages:
        statement = (_DELETE if removes else _COUNT).format(
            table=table,
            job=sql.Identifier(dataset.provenance.job),
            job_id=sql.Literal(str(key.job_id)),
            begin=sql.Literal(f"({from_page},0)"),
            end=sql.Literal(f"({from_page + step},0)"),
        )
        begun_s = time.monotonic()
        async with connection.transaction():
            await connection.execute(_LOCK_TIMEOUT)
            rows += await (_remove(connection, key, statement) if removes else _count(connection, statement))
        from_page += step
        now_s = time.monotonic()
        if now_s >= ends_s:
            break
        if now_s - begun_s < QUICK_S:
            step = min(2 * step, most)
    return Part(rows, from_page if from_page < pages else 0)


async def _count(connection: psycopg.AsyncConnection[Any], statement: sql.Composed) -> int:
    row = await (await connection.execute(statement, prepare=False)).fetchone()
    return 0 if row is None else int(row[0])


async def _remove(connection: psycopg.AsyncConnection[Any], key: JobKey, statement: sql.Composed) -> int:
    """Remove rows of a job in the caller's transaction; until its end the job stays as it is. Raises JobNotEnded."""
    job = {"job_id": key.job_id, "tenant": key.tenant}
    if not (await connection.execute(_SQL["hold"], job)).rowcount:
        raise JobNotEnded(key.name)
    removed = (await connection.execute(statement, prepare=False)).rowcount
    if removed:
        await connection.execute(_SQL["refuse_again"], job)
    return removed
