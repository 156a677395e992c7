"""JobService: maps its RPCs to `bulkgrpc.ingest.jobs`."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import aclosing
from datetime import datetime

from bulkgrpc.ingest.admission import Admission
from bulkgrpc.ingest.jobs import Jobs, PageRequest
from bulkgrpc.ingest.reverts import Reverts
from bulkgrpc.model import Job
from bulkgrpc.server.grpc.access import current_caller
from bulkgrpc.server.grpc.conversion import to_job, to_rejection
from bulkgrpc.server.grpc.interceptors import Context
from bulkgrpc.v1 import jobs_pb2, jobs_pb2_grpc


class JobServicer(jobs_pb2_grpc.JobServiceServicer):
    """The RPCs of `jobs.proto`. admission: ends watches when the server drains."""

    def __init__(self, jobs: Jobs, reverts: Reverts, admission: Admission, now: Callable[[], datetime]) -> None:
        self._jobs = jobs
        self._reverts = reverts
        self._admission = admission
        self._now = now

    async def GetJob(self, request: jobs_pb2.GetJobRequest, context: Context) -> jobs_pb2.GetJobResponse:
        """Return one job."""
        return jobs_pb2.GetJobResponse(job=self._public(await self._jobs.get(current_caller(), request.name)))

    async def ListJobs(self, request: jobs_pb2.ListJobsRequest, context: Context) -> jobs_pb2.ListJobsResponse:
        """Return a page of the caller's jobs."""
        page = PageRequest(request.page_size, request.page_token)
        found = await self._jobs.list(current_caller(), request.parent, page)
        return jobs_pb2.ListJobsResponse(
            jobs=[self._public(job) for job in found.jobs], next_page_token=found.next_page_token
        )

    async def WatchJob(self, request: jobs_pb2.WatchJobRequest, context: Context) -> None:
        """Send the job as it is, and after each change, until it has ended."""
        async with asyncio.TaskGroup() as tasks, aclosing(self._jobs.watch(current_caller(), request.name)) as views:
            guard = tasks.create_task(self._admission.until_disconnected())
            async for job in views:
                await context.write(jobs_pb2.WatchJobResponse(job=self._public(job)))
            guard.cancel()

    async def CancelJob(self, request: jobs_pb2.CancelJobRequest, context: Context) -> jobs_pb2.CancelJobResponse:
        """End a job that has not ended."""
        return jobs_pb2.CancelJobResponse(job=self._public(await self._jobs.cancel(current_caller(), request.name)))

    async def DiscardJob(self, request: jobs_pb2.DiscardJobRequest, context: Context) -> jobs_pb2.DiscardJobResponse:
        """Give up a sealed job that is blocked."""
        job = await self._jobs.discard(current_caller(), request.name, request.reason)
        return jobs_pb2.DiscardJobResponse(job=self._public(job))

    async def DeleteJob(self, request: jobs_pb2.DeleteJobRequest, context: Context) -> jobs_pb2.DeleteJobResponse:
        """Delete an ended job."""
        await self._jobs.delete(current_caller(), request.name)
        return jobs_pb2.DeleteJobResponse()

    async def RevertJob(self, request: jobs_pb2.RevertJobRequest, context: Context) -> jobs_pb2.RevertJobResponse:
        """Remove the rows of an ended job from a part of its table."""
        part = await self._reverts.revert(
            current_caller(), request.name, request.page_token, validate_only=request.validate_only
        )
        return jobs_pb2.RevertJobResponse(
            job=self._public(part.job), table=part.table, rows=part.rows, next_page_token=part.next_page_token
        )

    async def ListRejections(
        self, request: jobs_pb2.ListRejectionsRequest, context: Context
    ) -> jobs_pb2.ListRejectionsResponse:
        """Return a page of a job's rejections."""
        page = PageRequest(request.page_size, request.page_token)
        found = await self._jobs.rejections(
            current_caller(), request.parent, page, include_records=request.include_records
        )
        return jobs_pb2.ListRejectionsResponse(
            rejections=[to_rejection(rejection) for rejection in found.rejections],
            next_page_token=found.next_page_token,
        )

    def _public(self, job: Job) -> jobs_pb2.Job:
        return to_job(job, self._now())
