"""Removes the rows that a job wrote, part by part: adapter of the port `bulkgrpc.ingest.reverts.RowsOfJobs`.

A part is a range of pages, of every partition the same: PostgreSQL reads each page once, whatever the table's size and
indexes. Each range is a transaction of its own, so no lock and no snapshot lasts longer than a second or two.
"""

from __future__ import annotations

import time
from typing import Any

import psycopg
from psycopg import sql
from psycopg_pool import AsyncConnectionPool

from bulkgrpc.datasets.ddl import table as table_of
from bulkgrpc.datasets.definition import Dataset
from bulkgrpc.ingest.reverts import Part, RowsRefused
from bulkgrpc.limits import CALL_DEADLINE_S
from bulkgrpc.model import JobKey
from bulkgrpc.postgres import statements
from bulkgrpc.postgres.deadlines import within
from bulkgrpc.postgres.unavailable import Meaning, meaning_of

PAGES = 512
"""Of a transaction: 4 MiB. A page has up to a few hundred rows."""
PART_S = 1.5
"""No transaction of a part begins later."""
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

    @within(CALL_DEADLINE_S)
    async def keep_ended(self, key: JobKey) -> bool:
        """See the port."""
        async with self._pool.connection() as connection:
            cursor = await connection.execute(_SQL["refuse_again"], {"job_id": key.job_id, "tenant": key.tenant})
            return bool(cursor.rowcount)

    @within(CALL_DEADLINE_S)
    async def part(self, key: JobKey, dataset: Dataset, from_page: int, *, removes: bool) -> Part:
        """See the port."""
        try:
            async with self._pool.connection() as connection:
                return await _part(connection, key, dataset, from_page, removes=removes)
        except psycopg.errors.InsufficientPrivilege as error:
            said = error.diag.message_primary or str(error)
            raise RowsRefused(f"{said}: run GRANT SELECT, DELETE ON {dataset.table} TO the server's role") from error
        except psycopg.Error as error:
            if meaning_of(error) is not Meaning.OTHER:
                raise
            # A foreign key of another table, a trigger, a table that was dropped or changed.
            raise RowsRefused(error.diag.message_primary or str(error)) from error


async def _part(
    connection: psycopg.AsyncConnection[Any], key: JobKey, dataset: Dataset, from_page: int, *, removes: bool
) -> Part:
    if dataset.provenance is None:
        raise ValueError(f"dataset {dataset.name} does not store which job wrote a row")
    table, ends_s = table_of(dataset), time.monotonic() + PART_S
    cursor = await connection.execute(_SQL["extent"], {"table": table.as_string(None)})
    tables, pages = await cursor.fetchone() or (1, 0)
    step = max(1, PAGES // tables) if connection.info.server_version >= TID_RANGES else max(pages, 1)
    rows = 0
    while from_page < pages:
        statement = (_DELETE if removes else _COUNT).format(
            table=table,
            job=sql.Identifier(dataset.provenance.job),
            job_id=sql.Literal(str(key.job_id)),
            begin=sql.Literal(f"({from_page},0)"),
            end=sql.Literal(f"({from_page + step},0)"),
        )
        async with connection.transaction():
            await connection.execute(_LOCK_TIMEOUT)
            cursor = await connection.execute(statement, prepare=False)
            row = None if removes else await cursor.fetchone()
            rows += cursor.rowcount if row is None else row[0]
        from_page += step
        if time.monotonic() >= ends_s:
            break
    return Part(rows, from_page if from_page < pages else 0)
