"""The rejection report: where a bad record ends, with its place in its job and why (codes: `bulkgrpc.rejections`)."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any

import psycopg
from psycopg_pool import AsyncConnectionPool

from bulkgrpc.postgres import statements
from bulkgrpc.rejections import Rejection, RejectionCode

PAGE_BYTES_MAX = 2 * 1024 * 1024
"""Bytes of records after which a page ends: with a last record of a megabyte it fits into gRPC's usual 4 MiB."""

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


@dataclass(frozen=True, slots=True)
class Place:
    """Where a page of rejections starts: after the one at this place."""

    sequence: int = -1
    record_index: int = -1
    rejection_id: int = -1


async def page(
    pool: AsyncConnectionPool[Any], job_id: uuid.UUID, page_size: int, after: Place, *, with_records: bool
) -> list[tuple[Place, Rejection]]:
    """Return up to `page_size` rejections of a job by place, with the place of each; records empty unless asked for.

    With records there may be fewer, but for the last page: those that reach PAGE_BYTES_MAX end it.
    Raises psycopg.Error if PostgreSQL refuses or is away, psycopg_pool.PoolTimeout if no connection comes free in time.
    """
    values = {
        "job_id": job_id,
        "page_size": page_size,
        "after_sequence": after.sequence,
        "after_index": after.record_index,
        "after_id": after.rejection_id,
        "with_records": with_records,
        "bytes_max": PAGE_BYTES_MAX,
    }
    async with pool.connection() as connection:
        cursor = await connection.execute(_JOBS["list_rejections"], values)
        return [
            (
                Place(sequence, index, number),
                Rejection(job_id, sequence, index, RejectionCode(code), field, reason, record),
            )
            for number, sequence, index, code, field, reason, record in await cursor.fetchall()
        ]
