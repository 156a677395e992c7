"""JobService: what became of jobs, from PostgreSQL brought forward by Redis."""

from __future__ import annotations

from bulkgrpc.cache.job import LiveJob, overlay
from bulkgrpc.cache.live import CacheUnavailable, LiveJobs
from bulkgrpc.errors import Invalid, NotFound, Reason
from bulkgrpc.server.caller import READ, Callers
from bulkgrpc.server.guard import Context, metadata_of
from bulkgrpc.server.paging import job_page_start, page_size, token_after_job
from bulkgrpc.server.storage import Storage, StoreAway, store_unavailable
from bulkgrpc.server.translate import to_job
from bulkgrpc.v1 import jobs_pb2
from bulkgrpc.words import JobKey, is_tenant

PARENT_PREFIX = "tenants/"


class JobService:
    """Both RPCs; see `jobs.proto`."""

    def __init__(self, callers: Callers, storage: Storage, live: LiveJobs) -> None:
        self._callers = callers
        self._storage = storage
        self._live = live

    async def get_job(self, request: jobs_pb2.GetJobRequest, context: Context) -> jobs_pb2.GetJobResponse:
        """Return one job."""
        caller = await self._callers.identify(metadata_of(context))
        caller.require(READ)
        key = JobKey.parse(request.name)
        if key is None:
            raise Invalid(
                Reason.INVALID_FIELD,
                f"name {request.name[:200]!r} is not of the form tenants/TENANT/jobs/JOB",
                field="name",
            )
        if key.tenant != caller.tenant:
            # Not PERMISSION_DENIED: whether a foreign job exists is nobody's business.
            raise _not_found(key)
        live = await self._known(key)
        try:
            row = await self._storage.get_job(key)
        except StoreAway as error:
            if live is None:
                raise store_unavailable() from error
            return jobs_pb2.GetJobResponse(job=to_job(live.as_job()))
        if row is not None:
            return jobs_pb2.GetJobResponse(job=to_job(overlay(row, live)))
        if live is None:
            raise _not_found(key)
        return jobs_pb2.GetJobResponse(job=to_job(live.as_job()))

    async def list_jobs(self, request: jobs_pb2.ListJobsRequest, context: Context) -> jobs_pb2.ListJobsResponse:
        """Return a page of the caller's jobs."""
        caller = await self._callers.identify(metadata_of(context))
        caller.require(READ)
        caller.require_tenant(_tenant(request.parent) or caller.tenant)
        size, after = page_size(request.page_size), job_page_start(request.page_token)
        try:
            # One more than asked tells whether there is a next page.
            rows = await self._storage.list_jobs(caller.tenant, size + 1, after)
        except StoreAway as error:
            raise store_unavailable() from error
        token = token_after_job(rows[size - 1]) if len(rows) > size else ""
        return jobs_pb2.ListJobsResponse(jobs=[to_job(row) for row in rows[:size]], next_page_token=token)

    async def _known(self, key: JobKey) -> LiveJob | None:
        try:
            return await self._live.get(key)
        except CacheUnavailable:
            return None


def _tenant(parent: str) -> str:
    tenant = parent.removeprefix(PARENT_PREFIX)
    if parent and not (parent.startswith(PARENT_PREFIX) and is_tenant(tenant)):
        raise Invalid(
            Reason.INVALID_FIELD, f"parent {parent[:200]!r} is not of the form tenants/TENANT", field="parent"
        )
    return tenant


def _not_found(key: JobKey) -> NotFound:
    return NotFound(
        Reason.JOB_NOT_FOUND, f"there is no job {key.name}: check the name, and whose token this is", field="name"
    )
