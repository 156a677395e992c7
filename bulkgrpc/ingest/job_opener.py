"""Opens a job for a stream: a new one, or an existing one that the stream resumes or finds sealed."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Literal

from bulkgrpc.datasets.definition import Dataset
from bulkgrpc.errors import Busy, Conflict, Denied, NotFound, Reason, Unavailable
from bulkgrpc.ingest.accepted_digests import AcceptedDigests
from bulkgrpc.ingest.dataset_cache import DatasetCache
from bulkgrpc.ingest.deliveries import Deliveries
from bulkgrpc.ingest.job_view import JobViews, merge
from bulkgrpc.ingest.lease import Lease, LeaseStores, clock_s, leased
from bulkgrpc.ingest.live_job import LiveJob
from bulkgrpc.ingest.messages import Header
from bulkgrpc.ingest.parked_limit import ParkedLimit
from bulkgrpc.ingest.ports import (
    DatasetDeleted,
    JobStore,
    LeaseHolder,
    LiveJobs,
    PostgresUnavailable,
    RecordLog,
    RedisUnavailable,
    RegisteredDataset,
)
from bulkgrpc.ingest.refusals import dataset_not_found, job_ended, postgres_unavailable
from bulkgrpc.ingest.topic_guard import TopicGuard
from bulkgrpc.model import Job, JobCounts, JobKey, JobSpec, JobState


@dataclass(frozen=True, slots=True)
class OpenJob:
    """A job as a stream found it, with the stream's lease and the digests of the job's accepted batches.

    spec: the job's, with the dataset version of the stream's batches. time_to_live_s: of its batches; 0 is none.
    schema: digest of the definition of that version if it is the newest one; else empty.
    """

    job: Job
    lease: Lease
    accepted: AcceptedDigests
    spec: JobSpec
    time_to_live_s: float
    schema: bytes

    @property
    def replayed(self) -> bool:
        """Whether the job was sealed before, or has ended."""
        return self.job.state is not JobState.OPEN

    def progress(self, deliveries: Deliveries, seal_time: datetime | None = None) -> LiveJob:
        """Return the job's progress, with the digests that were not recorded yet."""
        return LiveJob(
            self.job.spec,
            self.job.partitions,
            deliveries.next_sequence,
            deliveries.accepted,
            JobState.OPEN if seal_time is None else JobState.SEALED,
            self.job.create_time,
            seal_time,
            deliveries.take_digests(),
            attempt=self.job.attempt,
        )


@dataclass(frozen=True, slots=True)
class OpenerStores:
    """The stores that jobs are opened from; the opener owns none of them."""

    jobs: JobStore
    live_jobs: LiveJobs
    datasets: DatasetCache
    log: RecordLog
    parked: ParkedLimit
    topic: TopicGuard


class JobOpener:
    """Opens jobs. when_redis_is_down: whether to accept or to refuse streams that cannot lease their job."""

    def __init__(
        self, stores: OpenerStores, when_redis_is_down: Literal["accept", "refuse"], now: Callable[[], datetime]
    ) -> None:
        self._stores = stores
        self._views = JobViews(stores.jobs, stores.live_jobs)
        self._lease_required = when_redis_is_down == "refuse"
        self._now = now

    @asynccontextmanager
    async def open(self, tenant: str, header: Header) -> AsyncIterator[OpenJob]:
        """Open the job of a header and lease it while the context lasts.

        A job that failed because Kafka lost batches of it is opened again, unless the client no longer has them.
        Raises NotFound (DATASET_NOT_FOUND, DATASET_VERSION_NOT_FOUND), Conflict (IDEMPOTENCY_CONFLICT), Denied
        (WRONG_TENANT), Busy (JOB_BUSY), NotNow (JOB_ENDED: such a job), Unavailable (RESUME_NOT_READY,
        POSTGRES_UNAVAILABLE, REDIS_UNAVAILABLE, TOPIC_REPLACED, TOPIC_MISSING), TooMuch (DATASET_BLOCKED).
        """
        key = JobKey.derive(tenant, header.idempotency_key)
        dataset = await self._dataset(header)
        check_tenant(tenant, dataset)
        await self._check_accepted(key, header.dataset)
        version = header.dataset_version or dataset.version
        spec = JobSpec(key, header.idempotency_key, header.dataset, version, header.labels, header.options)
        holder = LeaseHolder(header.session_id or uuid.uuid4().hex, uuid.uuid4().hex)
        stores = self._stores
        try:
            leases = LeaseStores(stores.live_jobs, stores.jobs)
            async with leased(leases, key, holder, required=self._lease_required) as lease:
                job = await self._open(spec, header, dataset, lease)
                if job.lost:
                    await self._open_again(job, header.first_sequence)
                    job = await self._open(spec, header, dataset, lease)
                check_resume(job, header.first_sequence)
                check_version(job, header.dataset_version)
                of_stream = replace(job.spec, dataset_version=header.dataset_version or job.spec.dataset_version)
                # Not an option of the job: options are compared when it is opened again, and a dataset's may change.
                time_to_live_s = job.spec.options.time_to_live_s or dataset.time_to_live_s
                accepted = AcceptedDigests(key, stores.jobs, stores.live_jobs)
                schema = dataset.schema_digest if of_stream.dataset_version == dataset.version else b""
                yield OpenJob(job, lease, accepted, of_stream, time_to_live_s, schema)
        except Busy as busy:
            # A different request with the key of a leased job can never succeed: refuse it as a conflict instead.
            live = await self._views.progress(key)
            if live is not None:
                check_same(spec, live.spec)
            raise busy

    async def _check_accepted(self, key: JobKey, dataset: str) -> None:
        """Refuse a job without an acknowledged batch, so that it is not created.

        While too much is parked of its dataset, or its batches would be refused because of the topic.
        """
        refusal = self._stores.topic.refusal() or self._stores.parked.refusal_of_job(dataset, key.tenant)
        if refusal is None:
            return
        try:
            job = await self._views.get(key)
        except PostgresUnavailable:
            return
        if job is None or (job.state is JobState.OPEN and job.next_sequence == 0):
            raise refusal

    async def _dataset(self, header: Header) -> Dataset:
        """Return the newest version of a header's dataset; checks that the version that the header names exists."""
        name, version = header.dataset, header.dataset_version
        try:
            registered = await self._stores.datasets.get(name, version)
        except PostgresUnavailable as error:
            raise postgres_unavailable(error) from error
        if registered is None:
            raise dataset_not_found(name, "header.dataset")
        if version and not registered.first_version <= version <= registered.dataset.version:
            raise _no_version(registered, version)
        return registered.dataset

    async def _open(self, spec: JobSpec, header: Header, dataset: Dataset, lease: Lease) -> Job:
        """Return the job of a spec; if the cached dataset was deleted meanwhile, of the dataset as registered now."""
        try:
            return await self._find_or_create(spec, lanes_for(spec.dataset_version, dataset), lease)
        except DatasetDeleted:
            self._stores.datasets.forget(spec.dataset)
        dataset = await self._dataset(header)
        # It was registered again meanwhile, and may be bound to another table.
        check_tenant(spec.key.tenant, dataset)
        try:
            version = header.dataset_version or dataset.version
            spec = replace(spec, dataset_version=version)
            return await self._find_or_create(spec, lanes_for(version, dataset), lease)
        except DatasetDeleted as error:
            raise dataset_not_found(spec.dataset, "header.dataset") from error

    async def _open_again(self, job: Job, first_sequence: int) -> None:
        """Open a job again that lost batches, if the client can still send all from where it continues.

        Raises NotNow (JOB_ENDED) if it cannot; Unavailable (RESUME_NOT_READY, POSTGRES_UNAVAILABLE).
        """
        if first_sequence > job.next_sequence:
            raise job_ended(job)
        try:
            opened = await self._stores.jobs.open_again(job.spec.key)
        except PostgresUnavailable as error:
            raise postgres_unavailable(error) from error
        if not opened:
            raise Unavailable(
                Reason.RESUME_NOT_READY,
                f"the staged rows of {job.spec.key.name}, which failed, are not deleted yet: retry shortly",
                field="header.idempotency_key",
                next_sequence="0",
            )

    async def _find_or_create(self, spec: JobSpec, lanes: int, lease: Lease) -> Job:
        """Return the view of the job of a spec; a job that neither store knows is new.

        Raises Unavailable (POSTGRES_UNAVAILABLE) if neither store can tell earlier streams that this one has opened it.

        lanes: of a new job whose row can be written. Without a row, which would give every later stream the same lanes,
        a new job gets one lane: its batches are then in order in one partition, whatever lanes the row has later.
        """
        live = await self._views.progress(spec.key)
        if live is not None:
            check_same(spec, live.spec)
        spec = spec if live is None else live.spec
        partitions = self._stores.log.partitions_of(spec.key.tenant, lanes) if live is None else live.partitions
        create_time = self._now() if live is None else live.create_time
        asked_s = clock_s()
        try:
            released_epoch = 0 if live is None else live.released_epoch
            opening = await self._stores.jobs.open_stream(
                spec, partitions, create_time, lease.holder.session_id, released_epoch
            )
            row = opening.job
            lease.opened(opening, asked_s)
        except PostgresUnavailable as error:
            if lease.acquired is None:
                raise postgres_unavailable(error) from error
            lease.opened_without_row()
            # The progress then decides alone, an end included.
            new = Job(spec, partitions[:1], JobState.OPEN, JobCounts(), 0, create_time)
            row = new if live is None else live.as_job()
        check_same(spec, row.spec)
        job = merge(row, live)
        if live is None or live.attempt < job.attempt:
            await self._save(job)
        return job

    async def _save(self, job: Job) -> None:
        if job.state.ended:
            return
        try:
            await self._stores.live_jobs.save(LiveJob.of(job))
        except RedisUnavailable:
            return


def _no_version(registered: RegisteredDataset, version: int) -> NotFound:
    dataset, first = registered.dataset, registered.first_version
    what = f"version {first}" if first == dataset.version else f"versions {first} to {dataset.version}"
    return NotFound(
        Reason.DATASET_VERSION_NOT_FOUND,
        f"dataset {dataset.name} has {what} and no version {version}: register the message type of your records and "
        "name the version that this returns, or name none for the newest",
        field="header.dataset_version",
        dataset=dataset.name,
        first_version=str(first),
        newest_version=str(dataset.version),
    )


def check_tenant(tenant: str, dataset: Dataset) -> None:
    """Check that a dataset takes a tenant's records. Raises Denied (WRONG_TENANT)."""
    only = "" if dataset.existing is None else dataset.existing.only_tenant
    if only and only != tenant:
        raise Denied(
            Reason.WRONG_TENANT,
            f"dataset {dataset.name} is bound to a table of tenant {only} and takes no records of tenant {tenant}: "
            "send them to another dataset, or as that tenant",
            field="header.dataset",
            dataset=dataset.name,
        )


def lanes_for(version: int, newest: Dataset) -> int:
    """Return the lanes of a new job of a dataset's version: one for an older version, whose policy may forbid more."""
    return newest.lanes if version == newest.version else 1


def check_same(requested: JobSpec, known: JobSpec) -> None:
    """Check that a job is opened again with the same request. Raises Conflict (IDEMPOTENCY_CONFLICT)."""
    if requested.same_request(known):
        return
    differs = {
        f"dataset ({known.dataset})": requested.dataset != known.dataset,
        "labels": requested.labels != known.labels,
        "options": requested.options != known.options,
    }
    what = ", ".join(name for name, differ in differs.items() if differ)
    raise Conflict(
        Reason.IDEMPOTENCY_CONFLICT,
        f"the idempotency key belongs to {known.key.name}, which was opened with other {what}: use another key, or "
        "open it with the same dataset, labels and options",
        field="header.idempotency_key",
        job=known.key.name,
    )


def check_version(job: Job, version: int) -> None:
    """Check that a stream may send records of a dataset's version, 0 if its header names none.

    The staged rows of an atomic job become rows of one version; and another version of a job with several lanes may
    have a policy that forbids several lanes. Raises Conflict (IDEMPOTENCY_CONFLICT).
    """
    spec = job.spec
    bound = "is atomic" if spec.options.atomic else "has several lanes" if len(job.partitions) > 1 else ""
    if job.state is JobState.OPEN and bound and version not in (0, spec.dataset_version):
        raise Conflict(
            Reason.IDEMPOTENCY_CONFLICT,
            f"{spec.key.name} {bound} and was opened with version {spec.dataset_version} of dataset {spec.dataset}, "
            f"not {version}: open it with that version, or cancel it and use another key",
            field="header.dataset_version",
            job=spec.key.name,
        )


def check_resume(job: Job, first_sequence: int) -> None:
    """Check that a client that no longer has the batches before `first_sequence` can resume a job.

    Those batches were acknowledged, so they are in the record log; if Redis lost the job's progress, the job's position
    is known again once workers have applied them. Raises Unavailable (RESUME_NOT_READY), NotNow (JOB_ENDED).
    """
    if job.lost:
        # It lost batches once more, between two statements.
        raise job_ended(job)
    if job.state is JobState.OPEN and first_sequence > job.next_sequence:
        raise Unavailable(
            Reason.RESUME_NOT_READY,
            f"batches {job.next_sequence} to {first_sequence - 1} are stored but not applied yet: retry shortly",
            field="header.first_sequence",
            next_sequence=str(job.next_sequence),
        )
