"""Jobs as callers see them: read, listed, watched, cancelled, discarded, deleted, with their rejections."""

from __future__ import annotations

import uuid
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass

from bulkgrpc.errors import NotNow, Reason
from bulkgrpc.ingest.identity import Caller
from bulkgrpc.ingest.job_view import JobViews
from bulkgrpc.ingest.job_watch import JobWatch
from bulkgrpc.ingest.lease import LeaseStores, leased
from bulkgrpc.ingest.live_job import LiveJob
from bulkgrpc.ingest.paging import (
    job_page_start,
    page_size,
    rejection_page_start,
    token_after_job,
    token_after_rejection,
)
from bulkgrpc.ingest.ports import JobStore, LeaseHolder, LiveJobs, PostgresUnavailable, RedisUnavailable
from bulkgrpc.ingest.refusals import invalid_field, job_not_found, postgres_unavailable, redis_unavailable
from bulkgrpc.limits import REASON_CHARS_MAX, REJECTIONS_PAGE_BYTES_MAX
from bulkgrpc.model import BlockedBy, Job, JobKey, JobState, is_tenant
from bulkgrpc.rejections import Rejection

PARENT_PREFIX = "tenants/"


@dataclass(frozen=True, slots=True)
class PageRequest:
    """A page that a caller requests: its size (0: the default) and its token ("": the first page)."""

    size: int
    token: str


@dataclass(frozen=True, slots=True)
class JobPage:
    """A page of jobs, newest first. next_page_token: "" on the last page."""

    jobs: Sequence[Job]
    next_page_token: str


@dataclass(frozen=True, slots=True)
class RejectionPage:
    """A page of a job's rejections, by position. next_page_token: "" on the last page."""

    rejections: Sequence[Rejection]
    next_page_token: str


class Jobs:
    """What a caller may do with its tenant's jobs.

    Every method raises Invalid for a wrong name, page size or token; NotFound (JOB_NOT_FOUND) for a job that does not
    exist or belongs to another tenant; Unavailable (POSTGRES_UNAVAILABLE).
    """

    def __init__(self, store: JobStore, live_jobs: LiveJobs, watch: JobWatch) -> None:
        self._store = store
        self._live_jobs = live_jobs
        self._views = JobViews(store, live_jobs)
        self._watch = watch

    async def get(self, caller: Caller, name: str) -> Job:
        """Return a job."""
        return await self._find(own_key(caller, name, "name"))

    async def list(self, caller: Caller, parent: str, page: PageRequest) -> JobPage:
        """Return a page of the caller's jobs. Raises Denied (FOREIGN_TENANT) for another tenant's."""
        caller.require_tenant(_tenant(parent) or caller.tenant)
        size, after = page_size(page.size), job_page_start(page.token)
        try:
            # One more than requested shows whether there is a next page.
            rows = await self._store.list_jobs(caller.tenant, size + 1, after)
        except PostgresUnavailable as error:
            raise postgres_unavailable(error) from error
        token = token_after_job(rows[size - 1]) if len(rows) > size else ""
        return JobPage(await self._views.merge_rows(rows[:size]), token)

    async def watch(self, caller: Caller, name: str) -> AsyncGenerator[Job, None]:
        """Yield a job, then again after each change, until it has ended.

        Raises TooMuch (TOO_MANY_STREAMS) if too many jobs are watched.
        """
        key = own_key(caller, name, "name")
        job: Job | None = await self._find(key)
        assert job is not None  # noqa: S101 — narrows the type: `next_change` may return None
        with self._watch.watching(job) as watched:
            while True:
                if job is None:
                    raise job_not_found(key)
                yield job
                if job.state.ended:
                    return
                job = await watched.next_change()

    async def cancel(self, caller: Caller, name: str) -> Job:
        """End a job as CANCELLED and return it. Raises NotNow (JOB_ENDED) if it has ended otherwise."""
        key = own_key(caller, name, "name")
        try:
            job = await self._store.cancel_job(key) or await self._cancel_without_row(key)
        except PostgresUnavailable as error:
            raise postgres_unavailable(error) from error
        if job.state is not JobState.CANCELLED:
            raise NotNow(Reason.JOB_ENDED, f"{key.name} has ended as {job.state.name} and cannot be cancelled")
        await self._save_end(job)
        self._watch.publish(job)
        return job

    async def discard(self, caller: Caller, name: str, reason: str) -> Job:
        """Let the records of a sealed job that is blocked be rejected, and return the job.

        Raises NotNow (JOB_ENDED, JOB_NOT_BLOCKED).
        """
        key = own_key(caller, name, "name")
        if len(reason) > REASON_CHARS_MAX:
            raise invalid_field("reason", f"a reason of {len(reason)} characters; at most {REASON_CHARS_MAX}")
        try:
            job = await self._store.discard_job(key, reason)
        except PostgresUnavailable as error:
            raise postgres_unavailable(error) from error
        if job is None:
            job = await self._find(key)
        if job.state.ended:
            raise NotNow(Reason.JOB_ENDED, f"{key.name} has ended as {job.state.name} and cannot be discarded")
        blocked = job.block is not None and job.block.cause is BlockedBy.JOB
        if job.state is not JobState.SEALED or not blocked:
            way_out = "cancel it" if job.state is JobState.OPEN else "it is applied once what it waits for is over"
            raise NotNow(
                Reason.JOB_NOT_BLOCKED,
                f"{key.name} is {job.state.name} and "
                + (f"{job.block}" if job.block else "is not blocked")
                + ": only a "
                f"sealed job that a message of its own blocks can be discarded; {way_out}",
                field="name",
            )
        return job

    async def delete(self, caller: Caller, name: str) -> None:
        """Delete a job that has ended. Raises NotNow (JOB_NOT_ENDED), Busy (JOB_BUSY), Unavailable."""
        key = own_key(caller, name, "name")
        # Leased meanwhile: no stream may save the job's progress after Redis has deleted it, or the next job of its
        # idempotency key would be taken for this one.
        holder = LeaseHolder(uuid.uuid4().hex, uuid.uuid4().hex)
        async with leased(LeaseStores(self._live_jobs, self._store), key, holder, required=True):
            # A job without a row has not ended, but it may exist.
            job = await self._row(key) or await self._find(key)
            if not job.state.ended:
                raise NotNow(
                    Reason.JOB_NOT_ENDED,
                    f"{key.name} is {job.state.name}: cancel it first, or wait until it has ended",
                )
            try:
                await self._live_jobs.delete(key)
                deleted = await self._store.delete_job(key)
            except RedisUnavailable as error:
                raise redis_unavailable(error) from error
            except PostgresUnavailable as error:
                raise postgres_unavailable(error) from error
            if not deleted:
                raise NotNow(
                    Reason.JOB_NOT_ENDED,
                    f"the seal of {key.name} is not applied: messages of it may still come; seal it, or leave it to be "
                    "deleted when its retention ends",
                )

    async def rejections(
        self, caller: Caller, parent: str, page: PageRequest, *, include_records: bool
    ) -> RejectionPage:
        """Return a page of a job's rejections. include_records: with their bytes; the page may then end early."""
        key = own_key(caller, parent, "parent")
        size, after = page_size(page.size), rejection_page_start(page.token)
        if await self._row(key) is None:
            # A job without a row has no rejections, but it may exist.
            await self._find(key)
        try:
            found = await self._store.rejections(key.job_id, size + 1, after, include_records=include_records)
        except PostgresUnavailable as error:
            raise postgres_unavailable(error) from error
        shown = found[:size]
        cut = include_records and sum(len(one.record) for _, one in shown) >= REJECTIONS_PAGE_BYTES_MAX
        token = token_after_rejection(shown[-1][0]) if len(found) > size or cut else ""
        return RejectionPage([rejection for _, rejection in shown], token)

    async def _row(self, key: JobKey) -> Job | None:
        try:
            return await self._store.get_job(key)
        except PostgresUnavailable as error:
            raise postgres_unavailable(error) from error

    async def _find(self, key: JobKey) -> Job:
        try:
            job = await self._views.get(key)
        except PostgresUnavailable as error:
            raise postgres_unavailable(error) from error
        if job is None:
            raise job_not_found(key)
        return job

    async def _cancel_without_row(self, key: JobKey) -> Job:
        """Cancel a job that only Redis knows, because PostgreSQL was unavailable when it was opened."""
        live = await self._views.progress(key)
        if live is None:
            raise job_not_found(key)
        await self._store.open_job(live.spec, live.partitions, live.create_time, of_deleted=True)
        job = await self._store.cancel_job(key)
        if job is None:
            raise job_not_found(key)
        return job

    async def _save_end(self, job: Job) -> None:
        """Save in Redis that a job was cancelled, for the time when PostgreSQL is unavailable."""
        try:
            await self._live_jobs.save(LiveJob.of(job))
        except RedisUnavailable:
            return


def own_key(caller: Caller, name: str, field: str) -> JobKey:
    """Parse a job's name, which must be the caller's. Raises Invalid naming the field, or NotFound."""
    key = JobKey.parse(name)
    if key is None:
        raise invalid_field(field, f"{field} {name[:200]!r} is not of the form tenants/TENANT/jobs/JOB")
    if key.tenant != caller.tenant:
        # Not PERMISSION_DENIED: that would reveal which jobs another tenant has.
        raise job_not_found(key, field)
    return key


def _tenant(parent: str) -> str:
    tenant = parent.removeprefix(PARENT_PREFIX)
    if parent and not (parent.startswith(PARENT_PREFIX) and is_tenant(tenant)):
        raise invalid_field("parent", f"parent {parent[:200]!r} is not of the form tenants/TENANT")
    return tenant
