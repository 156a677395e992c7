"""The rejection report: rejected records with their positions in the job and the reasons (`bulkgrpc.rejections`)."""

from __future__ import annotations

import uuid
from typing import Any

import pyarrow as pa
from psycopg import sql
from psycopg_pool import AsyncConnectionPool

from bulkgrpc.ingest.ports import RejectionPosition
from bulkgrpc.limits import REJECTIONS_PAGE_BYTES_MAX
from bulkgrpc.postgres import statements
from bulkgrpc.postgres.connection import Connection
from bulkgrpc.postgres.writers.copy import copy_rows
from bulkgrpc.rejections import Rejection, RejectionCode

_JOBS = statements.family("jobs")


def add(connection: Connection, rows: pa.RecordBatch) -> None:
    """Write the rows that `consume.report` made, by COPY BINARY in the caller's transaction."""
    copy_rows(connection, sql.Identifier("bulk", "rejections"), rows)


async def page(
    pool: AsyncConnectionPool[Any],
    job_id: uuid.UUID,
    page_size: int,
    after: RejectionPosition,
    *,
    include_records: bool,
) -> list[tuple[RejectionPosition, Rejection]]:
    """Return up to `page_size` rejections of a job by position; their records are empty unless `include_records`.

    With records a page ends early at REJECTIONS_PAGE_BYTES_MAX.
    Raises psycopg.Error if PostgreSQL refuses or is unavailable, psycopg_pool.PoolTimeout if no connection is free in
    time.
    """
    values = {
        "job_id": job_id,
        "page_size": page_size,
        "after_sequence": after.sequence,
        "after_index": after.record_index,
        "after_id": after.rejection_id,
        "include_records": include_records,
        "bytes_max": REJECTIONS_PAGE_BYTES_MAX,
    }
    async with pool.connection() as connection:
        cursor = await connection.execute(_JOBS["list_rejections"], values)
        return [
            (
                RejectionPosition(sequence, index, number),
                Rejection(job_id, sequence, index, RejectionCode(code), field, reason, record),
            )
            for number, sequence, index, code, field, reason, record in await cursor.fetchall()
        ]
