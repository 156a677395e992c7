"""JobService: what became of jobs, from PostgreSQL brought forward by Redis; and their ends."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime

from bulkgrpc.errors import Invalid, NotFound, NotNow, Reason
from bulkgrpc.model import Job, JobKey, JobState, is_tenant
from bulkgrpc.postgres.rejections import PAGE_BYTES_MAX
from bulkgrpc.redis.job import LiveJob, overlay
from bulkgrpc.redis.live import Holder, LiveJobs, RedisUnavailable
from bulkgrpc.server.caller import READ, WRITE, Caller, Callers
from bulkgrpc.server.gate import Gate
from bulkgrpc.server.guard import Context, metadata_of
from bulkgrpc.server.lease import held
from bulkgrpc.server.paging import (
    job_page_start,
    page_size,
    rejection_page_start,
    token_after_job,
    token_after_rejection,
)
from bulkgrpc.server.storage import PostgresUnavailable, Storage, postgres_unavailable
from bulkgrpc.server.translate import to_job, to_rejection
from bulkgrpc.server.watching import JobWatch
from bulkgrpc.v1 import jobs_pb2

PARENT_PREFIX = "tenants/"


@dataclass(frozen=True, slots=True)
class JobParts:
    """What the service works with; it owns none of them."""

    callers: Callers
    storage: Storage
    live: LiveJobs
    watch: JobWatch
    gate: Gate
    now: Callable[[], datetime]


class JobService:
    """The RPCs of `jobs.proto`."""

    def __init__(self, parts: JobParts) -> None:
        self._parts = parts

    async def get_job(self, request: jobs_pb2.GetJobRequest, context: Context) -> jobs_pb2.GetJobResponse:
        """Return one job."""
        caller = await self._caller(context, READ)
        return jobs_pb2.GetJobResponse(job=self._told(await self._find(_own_key(caller, request.name, "name"))))

    async def list_jobs(self, request: jobs_pb2.ListJobsRequest, context: Context) -> jobs_pb2.ListJobsResponse:
        """Return a page of the caller's jobs."""
        caller = await self._caller(context, READ)
        caller.require_tenant(_tenant(request.parent) or caller.tenant)
        size, after = page_size(request.page_size), job_page_start(request.page_token)
        try:
            # One more than asked tells whether there is a next page.
            rows = await self._parts.storage.list_jobs(caller.tenant, size + 1, after)
        except PostgresUnavailable as error:
            raise postgres_unavailable() from error
        token = token_after_job(rows[size - 1]) if len(rows) > size else ""
        jobs = [self._told(job) for job in await self._brought_forward(rows[:size])]
        return jobs_pb2.ListJobsResponse(jobs=jobs, next_page_token=token)

    async def watch_job(self, request: jobs_pb2.WatchJobRequest, context: Context) -> None:
        """Send the job as it is, and after each change, until it has ended."""
        caller = await self._caller(context, READ)
        key = _own_key(caller, request.name, "name")
        job: Job | None = await self._find(key)
        assert job is not None  # noqa: S101 — for the type: `news` may say None
        with self._parts.watch.watching(job) as watched:
            async with asyncio.TaskGroup() as tasks:
                guard = tasks.create_task(self._parts.gate.until_expelled())
                while True:
                    if job is None:
                        raise _not_found(key)
                    await context.write(jobs_pb2.WatchJobResponse(job=self._told(job)))
                    if job.state.ended:
                        break
                    job = await watched.news()
                guard.cancel()

    async def cancel_job(self, request: jobs_pb2.CancelJobRequest, context: Context) -> jobs_pb2.CancelJobResponse:
        """End a job that has not ended."""
        caller = await self._caller(context, WRITE)
        key = _own_key(caller, request.name, "name")
        try:
            job = await self._parts.storage.cancel_job(key) or await self._cancel_without_row(key)
        except PostgresUnavailable as error:
            raise postgres_unavailable() from error
        if job.state is not JobState.CANCELLED:
            raise NotNow(
                Reason.JOB_ENDED, f"{key.name} has ended as {job.state.name}; only a job that has not can be cancelled"
            )
        await self._remember_end(job)
        self._parts.watch.tell(job)
        return jobs_pb2.CancelJobResponse(job=self._told(job))

    async def delete_job(self, request: jobs_pb2.DeleteJobRequest, context: Context) -> jobs_pb2.DeleteJobResponse:
        """Delete an ended job."""
        caller = await self._caller(context, WRITE)
        key = _own_key(caller, request.name, "name")
        # Held meanwhile: no stream may write down how far the job is after Redis has forgotten it, or the next job of
        # its key would be taken for it.
        async with held(self._parts.live, key, Holder(uuid.uuid4().hex, uuid.uuid4().hex), required=True):
            try:
                # A job without a row has not ended, but it may be there.
                job = await self._parts.storage.get_job(key) or await self._find(key)
                if not job.state.ended:
                    raise NotNow(
                        Reason.JOB_NOT_ENDED,
                        f"{key.name} is {job.state.name}: cancel it first, or wait until it has ended",
                    )
                await self._parts.live.forget(key)
                if not await self._parts.storage.delete_job(key):
                    raise NotNow(
                        Reason.JOB_NOT_ENDED,
                        f"the seal of {key.name} was not applied: messages of it may still come; seal it, or leave it "
                        "to be dropped with its day",
                    )
            except (RedisUnavailable, PostgresUnavailable) as error:
                raise postgres_unavailable() from error
        return jobs_pb2.DeleteJobResponse()

    async def list_rejections(
        self, request: jobs_pb2.ListRejectionsRequest, context: Context
    ) -> jobs_pb2.ListRejectionsResponse:
        """Return a page of a job's rejections."""
        caller = await self._caller(context, READ)
        key = _own_key(caller, request.parent, "parent")
        size, after = page_size(request.page_size), rejection_page_start(request.page_token)
        try:
            if await self._parts.storage.get_job(key) is None:
                # A job without a row has no rejections, but it may be there.
                await self._find(key)
            found = await self._parts.storage.rejections(key.job_id, size + 1, after, with_records=request.with_records)
        except PostgresUnavailable as error:
            raise postgres_unavailable() from error
        page = found[:size]
        cut = request.with_records and sum(len(rejection.record) for _, rejection in page) >= PAGE_BYTES_MAX
        token = token_after_rejection(page[-1][0]) if len(found) > size or cut else ""
        return jobs_pb2.ListRejectionsResponse(
            rejections=[to_rejection(rejection) for _, rejection in page], next_page_token=token
        )

    async def _caller(self, context: Context, scope: str) -> Caller:
        caller = await self._parts.callers.identify(metadata_of(context))
        caller.require(scope)
        return caller

    async def _find(self, key: JobKey) -> Job:
        """Return a job as PostgreSQL and Redis know it. Raises NotFound, Unavailable (POSTGRES_UNAVAILABLE)."""
        live = await self._known(key)
        try:
            row = await self._parts.storage.get_job(key)
        except PostgresUnavailable as error:
            if live is None:
                raise postgres_unavailable() from error
            return live.as_job()
        if row is not None:
            return overlay(row, live)
        if live is None:
            raise _not_found(key)
        return live.as_job()

    async def _brought_forward(self, rows: Sequence[Job]) -> list[Job]:
        open_keys = [row.spec.key for row in rows if not row.state.ended]
        try:
            lives = await self._parts.live.get_many(open_keys)
        except RedisUnavailable:
            return list(rows)
        return [overlay(row, lives.get(row.spec.key)) for row in rows]

    async def _cancel_without_row(self, key: JobKey) -> Job:
        """Cancel a job that only Redis knows, because PostgreSQL was away when it was opened."""
        live = await self._known(key)
        if live is None:
            raise _not_found(key)
        await self._parts.storage.open_job(live.spec, live.partitions, live.create_time, of_deleted=True)
        job = await self._parts.storage.cancel_job(key)
        if job is None:
            raise _not_found(key)
        return job

    async def _remember_end(self, job: Job) -> None:
        """Tell Redis that a job was cancelled, for the time when PostgreSQL cannot; never goes back there."""
        live = LiveJob(
            job.spec, job.partitions, job.next_sequence, job.counts.accepted, job.state, job.create_time, job.seal_time
        )
        try:
            await self._parts.live.remember(live)
        except RedisUnavailable:
            return

    async def _known(self, key: JobKey) -> LiveJob | None:
        try:
            return await self._parts.live.get(key)
        except RedisUnavailable:
            return None

    def _told(self, job: Job) -> jobs_pb2.Job:
        return to_job(job, self._parts.now())


def _own_key(caller: Caller, name: str, field: str) -> JobKey:
    """Read a job's name, which must be the caller's. Raises Invalid naming the field, or NotFound."""
    key = JobKey.parse(name)
    if key is None:
        raise Invalid(
            Reason.INVALID_FIELD, f"{field} {name[:200]!r} is not of the form tenants/TENANT/jobs/JOB", field=field
        )
    if key.tenant != caller.tenant:
        # Not PERMISSION_DENIED: whether a foreign job exists is nobody's business.
        raise _not_found(key, field)
    return key


def _tenant(parent: str) -> str:
    tenant = parent.removeprefix(PARENT_PREFIX)
    if parent and not (parent.startswith(PARENT_PREFIX) and is_tenant(tenant)):
        raise Invalid(
            Reason.INVALID_FIELD, f"parent {parent[:200]!r} is not of the form tenants/TENANT", field="parent"
        )
    return tenant


def _not_found(key: JobKey, field: str = "name") -> NotFound:
    return NotFound(
        Reason.JOB_NOT_FOUND, f"there is no job {key.name}: check the name, and whose token this is", field=field
    )
