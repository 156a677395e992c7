"""Opening a job: what the row, Redis and the header know, made into one start."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Literal

from bulkgrpc.datasets.definition import Dataset
from bulkgrpc.errors import Busy, Conflict, NotFound, Reason, Unavailable
from bulkgrpc.kafka.partition import partitions_of
from bulkgrpc.model import Job, JobCounts, JobKey, JobSpec, JobState
from bulkgrpc.postgres.catalog import Registered
from bulkgrpc.postgres.jobs import DatasetDeleted
from bulkgrpc.redis.job import LiveJob, overlay
from bulkgrpc.redis.live import Holder, LiveJobs, RedisUnavailable
from bulkgrpc.server.deliveries import Deliveries
from bulkgrpc.server.known import KnownBatches
from bulkgrpc.server.lease import Lease, held
from bulkgrpc.server.messages import Header
from bulkgrpc.server.storage import PostgresUnavailable, Storage, postgres_unavailable


@dataclass(frozen=True, slots=True)
class OpenedJob:
    """A job as a stream finds it, the stream's hold of it, and what is known of its batches.

    spec: the job's, with the dataset's version that the stream's batches are of. time_to_live_s: of its batches.
    """

    job: Job
    lease: Lease
    known: KnownBatches
    spec: JobSpec
    time_to_live_s: float

    @property
    def replayed(self) -> bool:
        """Whether the job was sealed before, or has ended."""
        return self.job.state is not JobState.OPEN

    def live(self, deliveries: Deliveries, seal_time: datetime | None = None) -> LiveJob:
        """Return the job for Redis, as far as it is now, with the digests that Redis was not told yet."""
        job = self.job
        return LiveJob(
            job.spec,
            job.partitions,
            deliveries.next_sequence,
            deliveries.accepted,
            JobState.OPEN if seal_time is None else JobState.SEALED,
            job.create_time,
            seal_time,
            deliveries.take_digests(),
        )


class Opener:
    """Opens jobs."""

    def __init__(
        self,
        storage: Storage,
        live: LiveJobs,
        partitions: int,
        when_redis_is_down: Literal["accept", "refuse"],
        now: Callable[[], datetime],
    ) -> None:
        self._storage = storage
        self._live = live
        self._partitions = partitions
        self._lease_required = when_redis_is_down == "refuse"
        self._now = now

    @asynccontextmanager
    async def open(self, tenant: str, header: Header) -> AsyncIterator[OpenedJob]:
        """Open the job of a header and hold it while the context lasts.

        Raises NotFound (DATASET_NOT_FOUND, DATASET_VERSION_NOT_FOUND), Conflict (IDEMPOTENCY_CONFLICT), Busy
        (JOB_BUSY), Unavailable (RESUME_NOT_READY, POSTGRES_UNAVAILABLE).
        """
        key = JobKey.derive(tenant, header.idempotency_key)
        dataset = await self._dataset(header)
        version = header.dataset_version or dataset.version
        spec = JobSpec(key, header.idempotency_key, header.dataset, version, header.labels, header.options)
        holder = Holder(header.session_id or uuid.uuid4().hex, uuid.uuid4().hex)
        try:
            async with held(self._live, key, holder, required=self._lease_required) as lease:
                job = await self._open(spec, header, dataset)
                check_resume(job, header.first_sequence)
                check_version(job, header.dataset_version)
                of_stream = replace(job.spec, dataset_version=header.dataset_version or job.spec.dataset_version)
                # Not one of the job's options: these are compared when it is opened again, and a dataset's may change.
                time_to_live_s = job.spec.options.time_to_live_s or dataset.time_to_live_s
                yield OpenedJob(job, lease, KnownBatches(key, self._storage, self._live), of_stream, time_to_live_s)
        except Busy as busy:
            # Another request under a busy key will never pass: tell that instead.
            live = await self._known(key)
            if live is not None:
                check_same(spec, live.spec)
            raise busy

    async def _dataset(self, header: Header) -> Dataset:
        """Return the newest version of a header's dataset, having checked that the one it names is there."""
        name, version = header.dataset, header.dataset_version
        try:
            registered = await self._storage.get_dataset(name, version)
        except PostgresUnavailable as error:
            raise postgres_unavailable() from error
        if registered is None:
            raise _not_registered(name)
        if version and not registered.first_version <= version <= registered.dataset.version:
            raise _no_version(registered, version)
        return registered.dataset

    async def _open(self, spec: JobSpec, header: Header, dataset: Dataset) -> Job:
        """Return the job of a spec; of a dataset that was deleted since this server looked, as it is registered now."""
        try:
            return await self._find(spec, lanes_for(spec.dataset_version, dataset))
        except DatasetDeleted:
            self._storage.forget_dataset(spec.dataset)
        dataset = await self._dataset(header)
        try:
            version = header.dataset_version or dataset.version
            return await self._find(replace(spec, dataset_version=version), lanes_for(version, dataset))
        except DatasetDeleted as error:
            raise _not_registered(spec.dataset) from error

    async def _find(self, spec: JobSpec, lanes: int) -> Job:
        """Return the job as Redis and its row know it. Without either it is new, as far as anybody can tell.

        lanes: how many it gets if it is new, and its row can be written. Without a row that tells every later stream of
        them it gets one: of that, whatever the row then says, all batches are in order in one partition.
        """
        live = await self._known(spec.key)
        if live is not None:
            check_same(spec, live.spec)
        spec = spec if live is None else live.spec
        partitions = partitions_of(spec.key.tenant, self._partitions, lanes) if live is None else live.partitions
        create_time = self._now() if live is None else live.create_time
        try:
            row = await self._storage.open_job(spec, partitions, create_time)
        except PostgresUnavailable:
            # What Redis says then stands, an end included.
            new = Job(spec, partitions[:1], JobState.OPEN, JobCounts(), 0, create_time)
            row = new if live is None else live.as_job()
        check_same(spec, row.spec)
        job = overlay(row, live)
        if live is None:
            await self._remember(job)
        return job

    async def _known(self, key: JobKey) -> LiveJob | None:
        try:
            return await self._live.get(key)
        except RedisUnavailable:
            return None

    async def _remember(self, job: Job) -> None:
        if job.state.ended:
            return
        live = LiveJob(
            job.spec, job.partitions, job.next_sequence, job.counts.accepted, job.state, job.create_time, job.seal_time
        )
        try:
            await self._live.remember(live)
        except RedisUnavailable:
            return


def _not_registered(name: str) -> NotFound:
    return NotFound(
        Reason.DATASET_NOT_FOUND,
        f"dataset {name} is not registered: register its message with `bulkgrpc datasets register`",
        field="header.dataset",
        dataset=name,
    )


def _no_version(registered: Registered, version: int) -> NotFound:
    dataset, first = registered.dataset, registered.first_version
    what = f"version {first}" if first == dataset.version else f"versions {first} to {dataset.version}"
    return NotFound(
        Reason.DATASET_VERSION_NOT_FOUND,
        f"dataset {dataset.name} has {what} and no version {version}: register the message that your records are of, "
        "and name the version that this answers, or none for the newest",
        field="header.dataset_version",
        dataset=dataset.name,
        first_version=str(first),
        newest_version=str(dataset.version),
    )


def lanes_for(version: int, newest: Dataset) -> int:
    """Return the lanes of a new job of a dataset's version: of an older one, which may not go with several, one."""
    return newest.lanes if version == newest.version else 1


def check_same(asked: JobSpec, known: JobSpec) -> None:
    """Check that a job is opened again as it was opened first. Raises Conflict (IDEMPOTENCY_CONFLICT)."""
    if asked.same_request(known):
        return
    differs = {
        f"dataset ({known.dataset})": asked.dataset != known.dataset,
        "labels": asked.labels != known.labels,
        "options": asked.options != known.options,
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
    """Check that a stream may bring records of a dataset's version, 0 if it names none.

    What an atomic job holds is moved into the table as records of one version; and another version of a job with
    several lanes may have the policy that does not go with them. Raises Conflict (IDEMPOTENCY_CONFLICT).
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
    """Check that a client which holds nothing before `first_sequence` can go on.

    What it lacks was acknowledged, so it is on Kafka; if Redis forgot, only the workers can tell, once they are there.
    Raises Unavailable (RESUME_NOT_READY).
    """
    if job.state is JobState.OPEN and first_sequence > job.next_sequence:
        raise Unavailable(
            Reason.RESUME_NOT_READY,
            f"batches {job.next_sequence} to {first_sequence - 1} are stored but not applied yet: try again shortly",
            field="header.first_sequence",
            next_sequence=str(job.next_sequence),
        )
