"""The ports of the ingest session in memory, so that sessions run without Kafka, PostgreSQL, Redis and gRPC."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime

from bulkgrpc.blocks import BlockedDataset, DatasetStatus, LedgerSnapshot
from bulkgrpc.datasets.definition import Dataset
from bulkgrpc.ingest.live_job import LiveJob
from bulkgrpc.ingest.ports import (
    Acquired,
    Delivered,
    JobPosition,
    LeaseHolder,
    Opening,
    PostgresUnavailable,
    RecordLogUnavailable,
    RedisUnavailable,
    RegisteredDataset,
    RegistrationPlan,
    RejectionPosition,
    Renewed,
)
from bulkgrpc.model import Job, JobCounts, JobKey, JobSpec, JobState, Message
from bulkgrpc.rejections import Rejection
from tests.support.jobs import NOW


class MemoryLog:
    """A record log that stores a message at once."""

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self.first_partition = 0  # of a new job
        self.placed: list[int] = []  # the partition of each message

    def partitions_of(self, tenant: str, lanes: int) -> tuple[int, ...]:
        return tuple(range(self.first_partition, self.first_partition + lanes))

    def append(self, partition: int, message: Message, payload: bytes, delivered: Delivered) -> None:
        self.messages.append(message)
        self.placed.append(partition)
        asyncio.get_running_loop().call_soon(delivered, None)


class MemoryBlocks:
    """Blocks without a blocked dataset, until a test adds one. unavailable: whether `blocked` fails."""

    def __init__(self) -> None:
        self.found: list[BlockedDataset] = []
        self.unavailable = False

    async def status(self, dataset: str) -> DatasetStatus | None:
        raise NotImplementedError

    async def pause(self, dataset: str, reason: str) -> DatasetStatus | None:
        raise NotImplementedError

    async def resume(self, dataset: str) -> DatasetStatus | None:
        raise NotImplementedError

    async def discard(self, dataset: str) -> tuple[DatasetStatus, DatasetStatus] | None:
        raise NotImplementedError

    async def blocked(self) -> Sequence[BlockedDataset]:
        if self.unavailable:
            raise PostgresUnavailable("unavailable")
        return self.found

    async def ledger(self) -> LedgerSnapshot:
        raise NotImplementedError


class MemoryJobs:
    """Job rows that no worker advances. unavailable: whether every call fails."""

    def __init__(self) -> None:
        self.rows: dict[uuid.UUID, Job] = {}
        self.seal_wait_s = 0.05
        self.unavailable = False

    async def open_job(
        self, spec: JobSpec, partitions: Sequence[int], create_time: datetime, *, of_deleted: bool = False
    ) -> Job:
        self._check()
        new = Job(spec, tuple(partitions), JobState.OPEN, JobCounts(), 0, create_time)
        return self.rows.setdefault(spec.key.job_id, new)

    async def open_stream(
        self, spec: JobSpec, partitions: Sequence[int], create_time: datetime, session_id: str, released_epoch: int
    ) -> Opening:
        known = spec.key.job_id in self.rows
        row = await self.open_job(spec, partitions, create_time)
        if row.state is not JobState.OPEN:
            return Opening(row, 0, 0.0)
        clean = not known or released_epoch == row.lease_epoch or row.lease_session == session_id
        row = replace(row, lease_epoch=row.lease_epoch + 1, lease_session=session_id)
        self.rows[spec.key.job_id] = row
        return Opening(row, row.lease_epoch, 0.0 if clean else self.seal_wait_s)

    async def get_job(self, key: JobKey) -> Job | None:
        self._check()
        row = self.rows.get(key.job_id)
        return row if row is not None and row.spec.key == key else None

    async def get_jobs(self, job_ids: Sequence[uuid.UUID]) -> Sequence[Job]:
        self._check()
        return [self.rows[job_id] for job_id in job_ids if job_id in self.rows]

    async def list_jobs(self, tenant: str, page_size: int, after: JobPosition | None) -> Sequence[Job]:
        self._check()
        return [row for row in self.rows.values() if row.spec.key.tenant == tenant][:page_size]

    async def open_again(self, key: JobKey) -> bool:
        row = await self.get_job(key)
        if row is not None and row.lost:
            again = replace(row, state=JobState.OPEN, lost=False, attempt=row.attempt + 1, failure_reason="")
            self.rows[key.job_id] = replace(again, seal_time=None, end_time=None)
        return True

    async def seal_job(self, key: JobKey, seal_time: datetime, attempt: int = 0) -> Job | None:
        return await self._end(key, JobState.SEALED, seal_time)

    async def discard_job(self, key: JobKey, reason: str) -> Job | None:
        raise NotImplementedError

    async def cancel_job(self, key: JobKey) -> Job | None:
        return await self._end(key, JobState.CANCELLED, None)

    async def delete_job(self, key: JobKey) -> bool:
        self._check()
        self.rows.pop(key.job_id, None)
        return True

    async def digests(self, key: JobKey, from_sequence: int, page_size: int) -> Mapping[int, bytes]:
        self._check()
        return {}

    async def rejections(
        self, job_id: uuid.UUID, page_size: int, after: RejectionPosition, *, include_records: bool
    ) -> Sequence[tuple[RejectionPosition, Rejection]]:
        self._check()
        return []

    async def _end(self, key: JobKey, state: JobState, seal_time: datetime | None) -> Job | None:
        row = await self.get_job(key)
        if row is None or row.state.ended:
            return row
        self.rows[key.job_id] = replace(row, state=state, seal_time=row.seal_time or seal_time)
        return self.rows[key.job_id]

    def _check(self) -> None:
        if self.unavailable:
            raise PostgresUnavailable("the test says so")


class MemoryLiveJobs:
    """The progress of jobs and their leases, none of which expire. unavailable: whether every call fails."""

    def __init__(self) -> None:
        self.jobs: dict[JobKey, LiveJob] = {}
        self.known_digests: dict[JobKey, dict[int, bytes]] = {}
        self.leases: dict[JobKey, LeaseHolder] = {}
        self.last: dict[JobKey, LeaseHolder] = {}
        self.unavailable = False

    async def save(self, *jobs: LiveJob) -> None:
        self._check()
        for live in jobs:
            first = live.next_sequence - len(live.recent_digests)
            self.known_digests.setdefault(live.spec.key, {}).update(enumerate(live.recent_digests, first))
            known = self.jobs.get(live.spec.key)
            released = 0 if known is None else known.released_epoch
            if known is None or _progress(live) >= _progress(known):
                self.jobs[live.spec.key] = replace(live, recent_digests=(), released_epoch=released)

    async def get(self, key: JobKey) -> LiveJob | None:
        self._check()
        return self.jobs.get(key)

    async def get_many(self, keys: Sequence[JobKey]) -> Mapping[JobKey, LiveJob]:
        self._check()
        return {key: self.jobs[key] for key in keys if key in self.jobs}

    async def digests(self, key: JobKey) -> Mapping[int, bytes]:
        self._check()
        return self.known_digests.get(key, {})

    async def delete(self, key: JobKey) -> None:
        self._check()
        self.jobs.pop(key, None)

    async def acquire_lease(self, key: JobKey, holder: LeaseHolder) -> Acquired:
        self._check()
        held, last = self.leases.get(key), self.last.get(key)
        if held is not None and held.session_id != holder.session_id:
            return Acquired.REFUSED
        self.leases[key] = self.last[key] = holder
        if last is None:
            return Acquired.FIRST
        return Acquired.SAME_SESSION if last.session_id == holder.session_id else Acquired.AFTER_ANOTHER

    async def renew_lease(self, key: JobKey, holder: LeaseHolder) -> Renewed:
        self._check()
        last = self.leases.get(key) or self.last.get(key)
        if last not in (None, holder):
            return Renewed.TAKEN
        self.leases[key] = holder
        return Renewed.REGAINED if last is None else Renewed.KEPT

    def lose(self) -> None:
        """Forget everything, as Redis does when it is flushed."""
        for known in (self.jobs, self.known_digests, self.leases, self.last):
            known.clear()

    async def release_lease(self, key: JobKey, holder: LeaseHolder, epoch: int = 0) -> None:
        self._check()
        live = self.jobs.get(key)
        if live is not None and epoch > live.released_epoch:
            self.jobs[key] = replace(live, released_epoch=epoch)
        if self.leases.get(key) == holder:
            del self.leases[key]

    def _check(self) -> None:
        if self.unavailable:
            raise RedisUnavailable("the test says so")


def _progress(live: LiveJob) -> tuple[int, JobState, int]:
    return live.attempt, live.state, live.next_sequence


class MemoryCatalog:
    """A registry with the given datasets."""

    def __init__(self, *datasets: Dataset) -> None:
        self._registered = {dataset.name: RegisteredDataset(dataset, NOW) for dataset in datasets}

    async def dry_run(self, descriptors: bytes, message_type: str) -> None:
        return

    async def get(self, name: str) -> RegisteredDataset | None:
        return self._registered.get(name)

    async def list(self, page_size: int, after: str = "") -> Sequence[RegisteredDataset]:
        return [registered for name, registered in sorted(self._registered.items()) if name > after][:page_size]

    async def versions(self, name: str, page_size: int, before: int = 0) -> Sequence[RegisteredDataset]:
        return [self._registered[name]] if name in self._registered else []

    async def plan(self, dataset: Dataset) -> RegistrationPlan:
        return RegistrationPlan(dataset, (), new_version=dataset.name not in self._registered)

    async def register(self, dataset: Dataset) -> RegisteredDataset:
        return self._registered.setdefault(dataset.name, RegisteredDataset(dataset, NOW))

    async def delete(self, name: str, *, drop_table: bool) -> bool:
        return self._registered.pop(name, None) is not None


class MemoryTopic:
    """A `TopicIdentity` and a `TopicRecord`. id: of the topic in this store, None if there is none."""

    def __init__(self) -> None:
        self.id: uuid.UUID | None = None
        self.available = True

    async def topic_id(self) -> uuid.UUID | None:
        if not self.available:
            raise RecordLogUnavailable
        return self.id

    async def recorded(self, found: uuid.UUID) -> uuid.UUID:
        if not self.available:
            raise PostgresUnavailable
        self.id = self.id or found
        return self.id
