"""The rejection report: where a bad record ends, with its place in its job and why (codes: `bulkgrpc.rejections`)."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from datetime import date
from typing import Any

import psycopg
from psycopg_pool import AsyncConnectionPool

from bulkgrpc.ingest.ports import RejectionPosition
from bulkgrpc.limits import REJECTIONS_PAGE_BYTES_MAX
from bulkgrpc.postgres import statements
from bulkgrpc.rejections import Rejection, RejectionCode

_SQL = statements.family("ledger")
_JOBS = statements.family("jobs")


def add(
    connection: psycopg.Connection[tuple[Any, ...]],
    rejections: Sequence[Rejection],
    create_days: Mapping[uuid.UUID, date],
) -> None:
    """Write rejections in the caller's transaction. create_days: of each job, the day under which it is kept."""
    values = {
        "create_days": [create_days[rejection.job_id] for rejection in rejections],
        "job_ids": [rejection.job_id for rejection in rejections],
        "sequences": [rejection.sequence for rejection in rejections],
        "record_indices": [rejection.record_index for rejection in rejections],
        "codes": [rejection.code.value for rejection in rejections],
        "fields": [rejection.field for rejection in rejections],
        # PostgreSQL's text takes no U+0000, and a reason may quote the record.
        "reasons": [rejection.reason.replace("\0", "\\0") for rejection in rejections],
        "records": [rejection.record for rejection in rejections],
    }
    connection.execute(_SQL["add_rejections"], values)


async def page(
    pool: AsyncConnectionPool[Any], job_id: uuid.UUID, page_size: int, after: RejectionPosition, *, with_records: bool
) -> list[tuple[RejectionPosition, Rejection]]:
    """Return up to `page_size` rejections of a job by position; their records are empty unless `with_records`.

    With records a page ends early at REJECTIONS_PAGE_BYTES_MAX.
    Raises psycopg.Error if PostgreSQL refuses or is away, psycopg_pool.PoolTimeout if no connection comes free in time.
    """
    values = {
        "job_id": job_id,
        "page_size": page_size,
        "after_sequence": after.sequence,
        "after_index": after.record_index,
        "after_id": after.rejection_id,
        "with_records": with_records,
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
