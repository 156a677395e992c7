"""Job rows as the server sees them: opened, sealed, read. The workers' part is in `bulkgrpc.store.ledger`."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from psycopg.rows import dict_row
from psycopg.types.json import Jsonb
from psycopg_pool import AsyncConnectionPool

from bulkgrpc.store import statements
from bulkgrpc.words import Job, JobCounts, JobKey, JobSpec, JobState

_SQL = statements.family("jobs")


@dataclass(frozen=True, slots=True)
class PageStart:
    """Where a page starts: after the job with this time and id."""

    create_time: datetime
    job_id: uuid.UUID


class JobStore:
    """Reads and writes job rows through a pool that somebody else owns.

    Every method raises psycopg.Error if PostgreSQL refuses or is away, psycopg_pool.PoolTimeout if no connection comes
    free in time; deadlines are the caller's.
    """

    def __init__(self, pool: AsyncConnectionPool[Any]) -> None:
        self._pool = pool

    async def open_job(self, spec: JobSpec, partition: int) -> Job:
        """Return the job of `spec.key`, created from `spec` if it was not there; then it may differ from `spec`."""
        values = {
            "job_id": spec.key.job_id,
            "tenant": spec.key.tenant,
            "idempotency_key": spec.idempotency_key,
            "dataset": spec.dataset,
            "dataset_version": spec.dataset_version,
            "labels": Jsonb(spec.labels),
            "partition": partition,
        }
        async with self._pool.connection() as connection, connection.cursor(row_factory=dict_row) as cursor:
            await cursor.execute(_SQL["open_job"], values)
            await cursor.execute(_SQL["get_job"], values)
            row = await cursor.fetchone()
        assert row is not None, "a job row of this id belongs to another tenant"  # noqa: S101 — ids derive from tenants
        return _job(row)

    async def get_job(self, key: JobKey) -> Job | None:
        """Return a job, or None if there is none of this tenant and id."""
        async with self._pool.connection() as connection, connection.cursor(row_factory=dict_row) as cursor:
            await cursor.execute(_SQL["get_job"], {"job_id": key.job_id, "tenant": key.tenant})
            row = await cursor.fetchone()
        return None if row is None else _job(row)

    async def seal_job(self, key: JobKey, seal_time: datetime) -> Job | None:
        """Mark a job sealed, unless it has ended, and return it as it stands then; None if it has no row."""
        async with self._pool.connection() as connection, connection.cursor(row_factory=dict_row) as cursor:
            await cursor.execute(_SQL["seal_job"], {"job_id": key.job_id, "seal_time": seal_time})
            await cursor.execute(_SQL["get_job"], {"job_id": key.job_id, "tenant": key.tenant})
            row = await cursor.fetchone()
        return None if row is None else _job(row)

    async def list_jobs(self, tenant: str, page_size: int, after: PageStart | None) -> Sequence[Job]:
        """Return up to `page_size` jobs of a tenant, newest first."""
        values = {
            "tenant": tenant,
            "page_size": page_size,
            "after_time": None if after is None else after.create_time,
            "after_id": None if after is None else after.job_id,
        }
        async with self._pool.connection() as connection, connection.cursor(row_factory=dict_row) as cursor:
            await cursor.execute(_SQL["list_jobs"], values)
            return [_job(row) for row in await cursor.fetchall()]


def _job(row: dict[str, Any]) -> Job:
    return Job(
        spec=JobSpec(
            JobKey(row["tenant"], row["job_id"]),
            row["idempotency_key"],
            row["dataset"],
            row["dataset_version"],
            row["labels"],
        ),
        partition=row["partition"],
        state=JobState(row["state"]),
        counts=JobCounts(row["accepted"], row["written"], row["duplicate"], row["rejected"]),
        next_sequence=row["next_sequence"],
        create_time=row["create_time"],
        seal_time=row["seal_time"],
        end_time=row["end_time"],
    )
