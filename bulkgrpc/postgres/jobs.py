"""The job rows for the server: adapter of the port `bulkgrpc.ingest.ports.JobStore`. Workers use `ledger`."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import datetime
from typing import Any

import psycopg
from psycopg.rows import dict_row
from psycopg.types.json import Jsonb
from psycopg_pool import AsyncConnectionPool

from bulkgrpc.ingest.ports import DatasetDeleted, JobPosition, Opening, RejectionPosition
from bulkgrpc.limits import CALL_DEADLINE_S, LEASE_TTL_S, STREAM_DEADLINE_S
from bulkgrpc.model import ApplyProgress, BlockedBy, Job, JobBlock, JobCounts, JobKey, JobOptions, JobSpec, JobState
from bulkgrpc.postgres import statements
from bulkgrpc.postgres.deadlines import within
from bulkgrpc.postgres.pooler import settled
from bulkgrpc.postgres.rejections import page
from bulkgrpc.postgres.staged import StagedTable, any_of_job, discard
from bulkgrpc.rejections import Rejection

_SQL = statements.family("jobs")
WRITER_WAIT = "1s"
"""How long a cancellation waits for a worker before it interrupts a drain."""


class JobStore:
    """Reads and writes job rows through a pool that the process owns.

    Every method raises PostgresUnavailable after its deadline, the one of a stream or of a call. See the port for what
    each method promises.
    """

    def __init__(self, pool: AsyncConnectionPool[Any]) -> None:
        self._pool = pool

    @within(STREAM_DEADLINE_S)
    async def open_job(
        self, spec: JobSpec, partitions: Sequence[int], create_time: datetime, *, of_deleted: bool = False
    ) -> Job:
        """Return the job of `spec.key`, created from `spec` if it does not exist. Raises DatasetDeleted."""
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

    @within(STREAM_DEADLINE_S)
    async def open_stream(
        self, spec: JobSpec, partitions: Sequence[int], create_time: datetime, session_id: str, released_epoch: int
    ) -> Opening:
        """As `open_job`, with a lease epoch above that of every earlier stream. Raises DatasetDeleted.

        Cost: as many round trips as `open_job`.
        """
        values = open_values(spec, partitions, create_time, of_deleted=False)
        values.update(
            lease_epoch=1, lease_session=session_id, released_epoch=released_epoch, lease_ttl_s=float(LEASE_TTL_S)
        )
        created = False
        async with self._cursor() as cursor, cursor.connection.transaction():
            await cursor.execute(_SQL["open_stream"], values)
            row = await cursor.fetchone()
            if row is None:
                await cursor.execute(_SQL["lock_job"], values)
                await cursor.execute(_SQL["open_job"], values)
                created = cursor.rowcount == 1
                await cursor.execute(_SQL["get_job" if created else "open_stream"], values)
                row = await cursor.fetchone()
            elif row["raised_epoch"] is None and row["state"] == JobState.OPEN:
                # The request differs, or the job was sealed or ended meanwhile.
                await cursor.execute(_SQL["get_job"], values)
                row = await cursor.fetchone()
        if row is None:
            raise DatasetDeleted(f"dataset {spec.dataset} version {spec.dataset_version} was deleted")
        if created:
            return Opening(_job(row), 1, 0.0)
        epoch = row.get("raised_epoch") or 0
        job = _job(row)
        return Opening(replace(job, lease_epoch=epoch or job.lease_epoch), epoch, row.get("seal_wait_s") or 0.0)

    @within(STREAM_DEADLINE_S)
    async def get_job(self, key: JobKey) -> Job | None:
        """Return a job, or None if the tenant has none of this ID."""
        async with self._cursor() as cursor:
            await cursor.execute(_SQL["get_job"], {"job_id": key.job_id, "tenant": key.tenant})
            row = await cursor.fetchone()
        return None if row is None else _job(row)

    @within(STREAM_DEADLINE_S)
    async def open_again(self, key: JobKey) -> bool:
        """Open a job again that failed because Kafka lost batches of it; False: it still has staged rows."""
        values = {"job_id": key.job_id, "tenant": key.tenant}
        async with self._cursor() as cursor, cursor.connection.transaction():
            await cursor.execute(_SQL["lock_job_row"], values)
            row = await cursor.fetchone()
            if row is not None and row["atomic"] and not row["deleted"]:
                staged = any_of_job(StagedTable(row["dataset"], row["dataset_version"]))
                await cursor.execute(staged, values)
                if await cursor.fetchone() is not None:
                    return False
            await cursor.execute(_SQL["open_again"], values)
        return True

    @within(STREAM_DEADLINE_S)
    async def seal_job(self, key: JobKey, seal_time: datetime, attempt: int = 0) -> Job | None:
        """Mark a job sealed unless it has ended or has another attempt, and return it; None if it has no row."""
        async with self._cursor() as cursor:
            values = {"job_id": key.job_id, "seal_time": seal_time, "attempt": attempt}
            await cursor.execute(_SQL["seal_job"], values)
            await cursor.execute(_SQL["get_job"], {"job_id": key.job_id, "tenant": key.tenant})
            row = await cursor.fetchone()
        return None if row is None else _job(row)

    @within(CALL_DEADLINE_S)
    async def cancel_job(self, key: JobKey) -> Job | None:
        """End a job as CANCELLED unless it has ended, and return it; None if it has no row.

        Waits for the worker that writes for the job now; interrupts a drain that takes long with a batch of the job,
        and a worker that applies its staged rows, unless that is about to commit: then the job has ended before.
        Workers that write for a job with several lanes find it ended and roll back instead.
        """
        values = {"job_id": key.job_id, "tenant": key.tenant, "state": JobState.CANCELLED.value}
        async with self._cursor() as cursor, cursor.connection.transaction():
            await _await_writer(cursor, values)
            for statement in ("end_job", "interrupt_apply"):
                await cursor.execute(_SQL[statement], values)
            return await _get_job(cursor, values)

    @within(CALL_DEADLINE_S)
    async def discard_job(self, key: JobKey, reason: str) -> Job | None:
        """Let workers reject what is not applied of a sealed job that is blocked; return it, None if it has no row.

        A job whose staged rows are all that is left is FAILED afterwards; it is returned as it was before.
        """
        why = f"discarded by an operator: {reason}" if reason else "discarded by an operator"
        values = {"job_id": key.job_id, "tenant": key.tenant, "reason": why.replace("\0", "\\0")}
        async with self._cursor() as cursor, cursor.connection.transaction():
            await _await_writer(cursor, values)
            await cursor.execute(_SQL["discard_job"], values)
            job = await _get_job(cursor, values)
            for statement in ("discard_task", "interrupt_apply"):
                await cursor.execute(_SQL[statement], values)
        return job

    @within(CALL_DEADLINE_S)
    async def delete_job(self, key: JobKey) -> bool:
        """Delete a job that has ended, if everything of it up to its seal is applied; return whether it is gone."""
        values = {"job_id": key.job_id, "tenant": key.tenant}
        async with self._cursor() as cursor, cursor.connection.transaction():
            await cursor.execute(_SQL["lock_job_row"], values)
            row = await cursor.fetchone()
            if row is None:
                return True
            if row["state"] < JobState.SUCCEEDED or not row["applied"]:
                return False
            if row["atomic"] and not row["deleted"]:
                await cursor.execute(discard(StagedTable(row["dataset"], row["dataset_version"])), values)
            await cursor.execute(_SQL["delete_job"], values)
        return True

    @within(STREAM_DEADLINE_S)
    async def get_jobs(self, job_ids: Sequence[uuid.UUID]) -> Sequence[Job]:
        """Return the jobs that have a row, in any order."""
        async with self._cursor() as cursor:
            await cursor.execute(_SQL["get_jobs"], {"job_ids": list(job_ids)})
            return [_job(row) for row in await cursor.fetchall()]

    @within(STREAM_DEADLINE_S)
    async def digests(self, key: JobKey, from_sequence: int, page_size: int) -> dict[int, bytes]:
        """Return the digests of up to `page_size` applied batches by sequence, starting at `from_sequence`."""
        values = {"job_id": key.job_id, "from_sequence": from_sequence, "page_size": page_size}
        async with self._cursor() as cursor:
            await cursor.execute(_SQL["digests"], values)
            return {row["sequence"]: row["digest"] for row in await cursor.fetchall()}

    @within(CALL_DEADLINE_S)
    async def rejections(
        self, job_id: uuid.UUID, page_size: int, after: RejectionPosition, *, include_records: bool
    ) -> list[tuple[RejectionPosition, Rejection]]:
        """See `rejections.page`."""
        return await page(self._pool, job_id, page_size, after, include_records=include_records)

    @within(CALL_DEADLINE_S)
    async def list_jobs(self, tenant: str, page_size: int, after: JobPosition | None) -> Sequence[Job]:
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
        async with (
            self._pool.connection() as connection,
            settled(connection),
            connection.cursor(row_factory=dict_row) as cursor,
        ):
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
        "lease_epoch": 0,
        "lease_session": "",
    }


async def _await_writer(cursor: psycopg.AsyncCursor[Any], values: Mapping[str, object]) -> None:
    """Wait for the worker that writes for a job; interrupt a drain that takes long."""
    if not await _writer_ended(cursor, values):
        await cursor.execute(_SQL["interrupt_drain"], values)
        await cursor.execute(_SQL["await_writer"], values)


async def _get_job(cursor: psycopg.AsyncCursor[dict[str, Any]], values: Mapping[str, object]) -> Job | None:
    await cursor.execute(_SQL["get_job"], values)
    row = await cursor.fetchone()
    return None if row is None else _job(row)


async def _writer_ended(cursor: psycopg.AsyncCursor[Any], values: Mapping[str, object]) -> bool:
    """Wait for the worker that writes for a job; return False if that takes longer than WRITER_WAIT."""
    try:
        async with cursor.connection.transaction():
            await cursor.execute("SELECT set_config('lock_timeout', %s, true)", [WRITER_WAIT])
            await cursor.execute(_SQL["await_writer"], values)
            await cursor.execute("SET LOCAL lock_timeout = DEFAULT")
    except psycopg.errors.LockNotAvailable:
        return False
    return True


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
        counts=JobCounts(
            row["accepted"], row["written"], row["duplicate"], row["rejected"], row["expired"], row["skipped"]
        ),
        # Nothing of an atomic job is kept that lost batches.
        next_sequence=0 if row["lost"] and row["atomic"] else row["next_sequence"],
        create_time=row["create_time"],
        seal_time=row["seal_time"],
        end_time=row["end_time"],
        failure_reason=row["failure_reason"],
        block=_block(row),
        discard_reason=row["discard_reason"],
        late_batches=row["late_batches"],
        lease_epoch=row["lease_epoch"],
        lease_session=row["lease_session"],
        lost=row["lost"],
        attempt=row["attempt"],
        apply_progress=None if row["task_rows"] is None else ApplyProgress(row["task_rows"], row["task_rows_applied"]),
    )


def _block(row: dict[str, Any]) -> JobBlock | None:
    if row["block_cause"] is None:
        return None
    return JobBlock(BlockedBy(row["block_cause"]), row["block_reason"], row["block_time"])
