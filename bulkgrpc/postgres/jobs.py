"""Job rows as the server sees them: opened, sealed, read. The workers' part is in `bulkgrpc.postgres.ledger`."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import psycopg
from psycopg.rows import dict_row
from psycopg.types.json import Jsonb
from psycopg_pool import AsyncConnectionPool

from bulkgrpc.model import Job, JobCounts, JobKey, JobOptions, JobSpec, JobState
from bulkgrpc.postgres import statements
from bulkgrpc.postgres.rejections import Place, page
from bulkgrpc.postgres.staged import StagedTable, discard
from bulkgrpc.rejections import Rejection

_SQL = statements.family("jobs")


@dataclass(frozen=True, slots=True)
class PageStart:
    """Where a page starts: after the job with this time and id."""

    create_time: datetime
    job_id: uuid.UUID


class DatasetDeleted(Exception):
    """A job cannot be opened: its dataset's version was deleted."""


class JobStore:
    """Reads and writes job rows through a pool that somebody else owns.

    Every method raises psycopg.Error if PostgreSQL refuses or is away, psycopg_pool.PoolTimeout if no connection comes
    free in time; deadlines are the caller's.
    """

    def __init__(self, pool: AsyncConnectionPool[Any]) -> None:
        self._pool = pool

    async def open_job(
        self, spec: JobSpec, partitions: Sequence[int], create_time: datetime, *, of_deleted: bool = False
    ) -> Job:
        """Return the job of `spec.key`, created from `spec` if it was not there; if it was, it may differ from `spec`.

        of_deleted: whether to create it of a dataset that was deleted too. Raises DatasetDeleted.
        """
        values = open_values(spec, partitions, create_time, of_deleted=of_deleted)
        async with self._cursor() as cursor, cursor.connection.transaction():
            await cursor.execute(_SQL["get_job"], values)
            row = await cursor.fetchone()
            if row is None:
                await cursor.execute(_SQL["lock_job"], values)
                await cursor.execute(_SQL["open_job"], values)
                await cursor.execute(_SQL["get_job"], values)
                row = await cursor.fetchone()
        if row is None:
            raise DatasetDeleted(f"dataset {spec.dataset} version {spec.dataset_version} was deleted")
        return _job(row)

    async def get_job(self, key: JobKey) -> Job | None:
        """Return a job, or None if there is none of this tenant and id."""
        async with self._cursor() as cursor:
            await cursor.execute(_SQL["get_job"], {"job_id": key.job_id, "tenant": key.tenant})
            row = await cursor.fetchone()
        return None if row is None else _job(row)

    async def seal_job(self, key: JobKey, seal_time: datetime) -> Job | None:
        """Mark a job sealed, unless it has ended, and return it as it stands then; None if it has no row."""
        async with self._cursor() as cursor:
            await cursor.execute(_SQL["seal_job"], {"job_id": key.job_id, "seal_time": seal_time})
            await cursor.execute(_SQL["get_job"], {"job_id": key.job_id, "tenant": key.tenant})
            row = await cursor.fetchone()
        return None if row is None else _job(row)

    async def cancel_job(self, key: JobKey) -> Job | None:
        """End a job as CANCELLED unless it has ended, and return it as it stands then; None if it has no row.

        Waits for the worker that writes for it now; of a job with several lanes, the workers that do find it ended and
        take back what they wrote. Once this returns, nothing more is written for it.
        """
        values = {"job_id": key.job_id, "tenant": key.tenant, "state": JobState.CANCELLED.value}
        async with self._cursor() as cursor, cursor.connection.transaction():
            await cursor.execute(_SQL["await_writer"], values)
            await cursor.execute(_SQL["end_job"], values)
            await cursor.execute(_SQL["get_job"], values)
            row = await cursor.fetchone()
        return None if row is None else _job(row)

    async def delete_job(self, key: JobKey) -> bool:
        """Delete a job that has ended and whose seal was applied, on every lane; tell whether it is gone.

        Another stays: messages of it may still come from Kafka, and would begin it anew.
        """
        values = {"job_id": key.job_id, "tenant": key.tenant}
        async with self._cursor() as cursor, cursor.connection.transaction():
            await cursor.execute(_SQL["hold_job"], values)
            held = await cursor.fetchone()
            if held is None:
                return True
            if held["state"] < JobState.SUCCEEDED or not held["sealed"]:
                return False
            if held["atomic"] and not held["deleted"]:
                await cursor.execute(discard(StagedTable(held["dataset"], held["dataset_version"])), values)
            await cursor.execute(_SQL["delete_job"], values)
        return True

    async def get_jobs(self, job_ids: Sequence[uuid.UUID]) -> Sequence[Job]:
        """Return those of these jobs that have a row, in no order: one query for all watchers of a process."""
        async with self._cursor() as cursor:
            await cursor.execute(_SQL["get_jobs"], {"job_ids": list(job_ids)})
            return [_job(row) for row in await cursor.fetchall()]

    async def digests(self, key: JobKey, from_sequence: int, page_size: int) -> dict[int, bytes]:
        """Return the digests of up to `page_size` applied batches by sequence, from `from_sequence` on."""
        values = {"job_id": key.job_id, "from_sequence": from_sequence, "page_size": page_size}
        async with self._cursor() as cursor:
            await cursor.execute(_SQL["digests"], values)
            return {row["sequence"]: row["digest"] for row in await cursor.fetchall()}

    async def rejections(
        self, job_id: uuid.UUID, page_size: int, after: Place, *, with_records: bool
    ) -> list[tuple[Place, Rejection]]:
        """See `rejections.page`."""
        return await page(self._pool, job_id, page_size, after, with_records=with_records)

    async def list_jobs(self, tenant: str, page_size: int, after: PageStart | None) -> Sequence[Job]:
        """Return up to `page_size` jobs of a tenant, newest first."""
        values = {
            "tenant": tenant,
            "page_size": page_size,
            "after_time": None if after is None else after.create_time,
            "after_id": None if after is None else after.job_id,
        }
        async with self._cursor() as cursor:
            await cursor.execute(_SQL["list_jobs"], values)
            return [_job(row) for row in await cursor.fetchall()]

    @asynccontextmanager
    async def _cursor(self) -> AsyncIterator[psycopg.AsyncCursor[dict[str, Any]]]:
        async with self._pool.connection() as connection, connection.cursor(row_factory=dict_row) as cursor:
            yield cursor


def open_values(spec: JobSpec, partitions: Sequence[int], create_time: datetime, *, of_deleted: bool) -> dict[str, Any]:
    """Return the values of the statements `lock_job`, `open_job` and `get_job`."""
    return {
        "job_id": spec.key.job_id,
        "tenant": spec.key.tenant,
        "idempotency_key": spec.idempotency_key,
        "dataset": spec.dataset,
        "dataset_version": spec.dataset_version,
        "labels": Jsonb(spec.labels),
        "atomic": spec.options.atomic,
        "rejections_max": spec.options.rejections_max,
        "time_to_live_s": spec.options.time_to_live_s,
        "partitions": list(partitions),
        "create_time": create_time,
        "of_deleted": of_deleted,
    }


def _job(row: dict[str, Any]) -> Job:
    return Job(
        spec=JobSpec(
            JobKey(row["tenant"], row["job_id"]),
            row["idempotency_key"],
            row["dataset"],
            row["dataset_version"],
            row["labels"],
            JobOptions(row["atomic"], row["rejections_max"], row["time_to_live_s"]),
        ),
        partitions=tuple(row["partitions"]),
        state=JobState(row["state"]),
        counts=JobCounts(row["accepted"], row["written"], row["duplicate"], row["rejected"], row["expired"]),
        next_sequence=row["next_sequence"],
        create_time=row["create_time"],
        seal_time=row["seal_time"],
        end_time=row["end_time"],
        failure=row["failure"],
    )
