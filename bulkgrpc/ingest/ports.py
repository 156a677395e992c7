"""The ports of the ingest session: what it needs of its stores, as Protocols, and the exceptions of their adapters.

Adapters: `bulkgrpc.kafka.record_log`, `bulkgrpc.postgres.jobs`, `catalog` and `blocks`, `bulkgrpc.redis.live_jobs`.
No driver's exception passes a port.
"""

from __future__ import annotations

import enum
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol

from bulkgrpc.blocks import BlockedDataset, DatasetStatus, LedgerSnapshot
from bulkgrpc.datasets.definition import Dataset
from bulkgrpc.datasets.table_report import TableReport
from bulkgrpc.ingest.live_job import LiveJob
from bulkgrpc.model import Job, JobKey, JobSpec, Message
from bulkgrpc.rejections import Rejection


class StoreUnavailable(Exception):
    """A store does not answer, or not in time. The call may have been carried out; it may be repeated."""


class PostgresUnavailable(StoreUnavailable):
    """PostgreSQL does not answer in time, or answers that it is unavailable.

    sqlstate: of its answer, "" without one.
    """

    def __init__(self, message: str = "", sqlstate: str = "") -> None:
        super().__init__(message)
        self.sqlstate = sqlstate


class LockTimeout(PostgresUnavailable):
    """A transaction of another session holds a table for longer than the call may wait."""


class RedisUnavailable(StoreUnavailable):
    """Redis does not answer in time, or refuses. cause: stable, of `bulkgrpc.redis.outage.Cause`. remedy: may be ""."""

    def __init__(self, message: str = "", cause: str = "unreachable", remedy: str = "") -> None:
        super().__init__(message)
        self.cause = cause
        self.remedy = remedy


class RecordLogUnavailable(StoreUnavailable):
    """The record log takes no message, or did not store one in time. `str()` is the cause."""


class RecordTooLarge(RecordLogUnavailable):
    """A message is above the log's limit: a repetition does not help. `str()` names the limit and the way out."""


class RecordLogFull(Exception):
    """The record log's queue is full; append again once messages are delivered."""


class DatasetDeleted(Exception):
    """A job cannot be opened: the version of its dataset is deleted."""


class DatasetExists(Exception):
    """A dataset cannot be registered: a table of its name exists and belongs to no dataset."""


class RightMissing(Exception):
    """A dataset cannot be changed: the server's role lacks a right in the database. `str()` names the object."""


class JobsNotEnded(Exception):
    """A dataset cannot be deleted: jobs of it have not ended. count: how many; names: of up to three of them."""

    def __init__(self, count: int, names: Sequence[str]) -> None:
        super().__init__(f"{count} jobs have not ended")
        self.count = count
        self.names = names


class TableNotOwned(Exception):
    """A table cannot be dropped: the dataset is bound to it, the service did not create it. `str()` is its name."""


class TableInUse(Exception):
    """A table cannot be dropped: another object of the database depends on it. `str()` names the object."""


@dataclass(frozen=True, slots=True)
class LeaseHolder:
    """The holder of a job's lease: one stream of a client's session. A later stream of the session may take it over."""

    session_id: str
    stream_id: str


class Acquired(enum.IntEnum):
    """Whether a lease was acquired, and after whom. Only REFUSED is false."""

    REFUSED = 0
    """Another session holds it."""
    FIRST = 1
    """Redis knows of no earlier stream of the job."""
    SAME_SESSION = 2
    """The stream before was of the same session, whose client reads no more of it."""
    AFTER_ANOTHER = 3
    """The lease of another session's stream was released or has expired."""


class Renewed(enum.IntEnum):
    """What became of a lease. Only TAKEN is false."""

    TAKEN = 0
    """Another stream has it, or has had it since."""
    REGAINED = 1
    """Redis had lost it: whether another stream has had it since is not known to Redis."""
    KEPT = 2
    """No other stream has had it since."""


@dataclass(frozen=True, slots=True)
class Opening:
    """A job that a stream opened in its row.

    lease_epoch: the stream's, which is above that of every earlier stream; 0 if the job accepts no more batches, or
    differs from the request. seal_wait_s: how long an earlier stream may still acknowledge what it stores.
    """

    job: Job
    lease_epoch: int
    seal_wait_s: float


@dataclass(frozen=True, slots=True)
class JobPosition:
    """The position of a job in its tenant's list, newest first. A page starts after it."""

    create_time: datetime
    job_id: uuid.UUID


@dataclass(frozen=True, slots=True)
class RejectionPosition:
    """The position of a rejection in its job's report. A page starts after it; the default is before all."""

    sequence: int = -1
    record_index: int = -1
    rejection_id: int = -1


@dataclass(frozen=True, slots=True)
class RegisteredDataset:
    """A version of a dataset and when it was registered.

    first_version: the first version that is not deleted; above the newest one if the dataset is deleted. 1 in lists.
    """

    dataset: Dataset
    create_time: datetime
    first_version: int = 1

    @property
    def deleted(self) -> bool:
        """Whether this version is deleted."""
        return self.dataset.version < self.first_version


@dataclass(frozen=True, slots=True)
class RegistrationPlan:
    """What registering a dataset does.

    dataset: with its version. statements: SQL to be run on its table. report: of a table that exists, whether and how
    the dataset's rows fit; empty if the service creates the table.
    """

    dataset: Dataset
    statements: tuple[str, ...]
    new_version: bool
    report: TableReport = field(default_factory=TableReport)


Delivered = Callable[[RecordLogUnavailable | None], None]
"""Called once per message, on the event loop: with None when the message is stored durably, or with what failed."""


class RecordLog(Protocol):
    """The ordered, durable log of record batches."""

    def partitions_of(self, tenant: str, lanes: int) -> tuple[int, ...]:
        """Return the partition of each lane of a new job of a tenant; no partition twice, so at most all of them."""

    def append(self, partition: int, message: Message, payload: bytes, delivered: Delivered) -> None:
        """Hand over a message; `delivered` reports later, in order per partition, whether it is stored.

        After a failure the message may be stored anyway. Raises RecordLogFull or RecordLogUnavailable; `delivered` is
        not called then.
        """


class TopicIdentity(Protocol):
    """The identity of the records topic."""

    async def topic_id(self) -> uuid.UUID | None:
        """Return the topic's ID, None if there is no such topic. Raises RecordLogUnavailable."""


class TopicRecord(Protocol):
    """What the ledger knows of the records topic."""

    async def recorded(self, found: uuid.UUID) -> uuid.UUID:
        """Return the ID that the ledger has; if it has none, it records `found`. Raises PostgresUnavailable."""


class JobStore(Protocol):
    """The job rows. Every method raises PostgresUnavailable; a method that writes may have been carried out anyway."""

    async def open_job(
        self, spec: JobSpec, partitions: Sequence[int], create_time: datetime, *, of_deleted: bool = False
    ) -> Job:
        """Return the job of `spec.key`, created from `spec` if there is none; an existing one may differ from `spec`.

        of_deleted: whether to create it even if its dataset's version is deleted. Raises DatasetDeleted.
        """

    async def open_stream(
        self, spec: JobSpec, partitions: Sequence[int], create_time: datetime, session_id: str, released_epoch: int
    ) -> Opening:
        """As `open_job`, for a stream: raises the lease epoch of an open job, so that earlier streams are superseded.

        released_epoch: of the last stream that is known to have ended, 0 if none is. Raises DatasetDeleted.
        """

    async def get_job(self, key: JobKey) -> Job | None:
        """Return a job, or None if the tenant has none of this ID."""

    async def get_jobs(self, job_ids: Sequence[uuid.UUID]) -> Sequence[Job]:
        """Return the jobs that have a row, in any order, with one query."""

    async def list_jobs(self, tenant: str, page_size: int, after: JobPosition | None) -> Sequence[Job]:
        """Return up to `page_size` jobs of a tenant, newest first, from the one after `after`."""

    async def open_again(self, key: JobKey) -> bool:
        """Open a job again that failed because Kafka lost batches of it; any other job stays as it is.

        False: the staged rows of the atomic job that failed are not deleted yet.
        """

    async def seal_job(self, key: JobKey, seal_time: datetime, attempt: int = 0) -> Job | None:
        """Mark a job sealed unless it has ended or has another attempt, and return it; None if it has no row."""

    async def cancel_job(self, key: JobKey) -> Job | None:
        """End a job as CANCELLED unless it has ended, and return it; None if it has no row.

        Once this returns, nothing more is written for the job.
        """

    async def discard_job(self, key: JobKey, reason: str) -> Job | None:
        """Let workers reject what is not applied of a sealed job that is blocked; return it, None if it has no row.

        A job that is not sealed, or that no message of its own blocks, stays as it is.
        """

    async def delete_job(self, key: JobKey) -> bool:
        """Delete a job that has ended and whose seal is applied on every lane; return whether it is gone.

        Any other job stays: messages of it may still be in the record log and would create it again.
        """

    async def digests(self, key: JobKey, from_sequence: int, page_size: int) -> Mapping[int, bytes]:
        """Return the digests of up to `page_size` applied batches by sequence, starting at `from_sequence`."""

    async def rejections(
        self, job_id: uuid.UUID, page_size: int, after: RejectionPosition, *, include_records: bool
    ) -> Sequence[tuple[RejectionPosition, Rejection]]:
        """Return up to `page_size` rejections of a job by position; their records are empty unless `include_records`.

        With records a page ends early at `limits.REJECTIONS_PAGE_BYTES_MAX`.
        """


class DatasetCatalog(Protocol):
    """The registry of datasets. Every method raises PostgresUnavailable."""

    async def dry_run(self, descriptors: bytes, message_type: str) -> None:
        """Do once what a worker does with the records of a message type, with bounds on time and memory.

        Raises InvalidDataset with the field and the reason.
        """

    async def get(self, name: str) -> RegisteredDataset | None:
        """Return the newest version of a dataset, or None if there is none or it is deleted."""

    async def list(self, page_size: int, after: str = "") -> Sequence[RegisteredDataset]:
        """Return up to `page_size` datasets by name, those after `after`, each in its newest version."""

    async def versions(self, name: str, page_size: int, before: int = 0) -> Sequence[RegisteredDataset]:
        """Return up to `page_size` versions of a dataset, newest first, those below `before` (0: all)."""

    async def plan(self, dataset: Dataset) -> RegistrationPlan:
        """Return what `register` would do. Raises DatasetExists, Incompatible."""

    async def register(self, dataset: Dataset) -> RegisteredDataset:
        """Register a dataset or its next version; registering the same again changes nothing.

        Raises DatasetExists, Incompatible, RightMissing, LockTimeout.
        """

    async def delete(self, name: str, *, drop_table: bool) -> bool:
        """Delete a dataset, and its table if `drop_table`; return whether it was registered.

        Raises JobsNotEnded, TableInUse, TableNotOwned, RightMissing, LockTimeout.
        """


class Blocks(Protocol):
    """Blocked datasets, parked messages and the ledger. Every method raises PostgresUnavailable."""

    async def status(self, dataset: str) -> DatasetStatus | None:
        """Return the status of a dataset, None if it is not registered."""

    async def pause(self, dataset: str, reason: str) -> DatasetStatus | None:
        """Pause a dataset and return its status, None if it is not registered. reason: "" for a usual one."""

    async def resume(self, dataset: str) -> DatasetStatus | None:
        """Lift a pause, try a blocked table now, end a discard; return the status, None if it is not registered."""

    async def discard(self, dataset: str) -> tuple[DatasetStatus, DatasetStatus] | None:
        """Discard what is parked of a dataset that is not writable.

        Returns the status before, with what is discarded, and after; None if it is not registered.
        """

    async def blocked(self) -> Sequence[BlockedDataset]:
        """Return what is not written now, with about its bytes."""

    async def ledger(self) -> LedgerSnapshot:
        """Return the positions of the topic's partitions and its queues of parked messages."""


class LiveJobs(Protocol):
    """The progress of jobs and their leases. Every method raises RedisUnavailable; correctness never depends on it."""

    async def save(self, *jobs: LiveJob) -> None:
        """Save the progress of jobs in one round trip. A sequence, a count or a seal never goes backward."""

    async def get(self, key: JobKey) -> LiveJob | None:
        """Return the progress of a job; None if it is not known, or belongs to another tenant."""

    async def get_many(self, keys: Sequence[JobKey]) -> Mapping[JobKey, LiveJob]:
        """Return the progress of jobs in one round trip, without those that are not known."""

    async def digests(self, key: JobKey) -> Mapping[int, bytes]:
        """Return the known digests of a job's last batches by sequence; at most `limits.RECENT_DIGESTS_MAX`."""

    async def delete(self, key: JobKey) -> None:
        """Delete the progress and the digests of a job; its lease stays."""

    async def acquire_lease(self, key: JobKey, holder: LeaseHolder) -> Acquired:
        """Acquire a job's lease for `limits.LEASE_TTL_S`, also from an earlier stream of the same session."""

    async def renew_lease(self, key: JobKey, holder: LeaseHolder) -> Renewed:
        """Renew a lease for `limits.LEASE_TTL_S`, also if it has expired and no other stream has had it since."""

    async def release_lease(self, key: JobKey, holder: LeaseHolder, epoch: int = 0) -> None:
        """Release a job's lease, unless another stream holds it. epoch: of the stream, which has ended; 0: unknown."""
