"""What the worker needs of the world, as protocols: its unit tests play them, the stores implement them.

Adapters: `bulkgrpc.kafka.consumer` (RecordLog), `bulkgrpc.kafka.dead_letters` (DeadLetterQueue),
`bulkgrpc.postgres.worker_ports` (Ledger, DatasetRegistry, ChunkWriter), `bulkgrpc.postgres.maintenance_store`
(MaintenanceStore). An adapter raises the exceptions of this module, never those of its driver.
"""

from __future__ import annotations

import enum
import time
import uuid
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from typing import Protocol

from bulkgrpc.consume.assembly import EndReached, Fetched
from bulkgrpc.consume.decode import DecodableChunk
from bulkgrpc.consume.deferral import QueueKey
from bulkgrpc.consume.failures import BlockCause, Failure
from bulkgrpc.consume.heartbeat_ports import LedgerWatch
from bulkgrpc.consume.log_identity import LogRange, Recorded, Stop
from bulkgrpc.datasets.codec import BatchCodec
from bulkgrpc.model import JobCounts, JobKey
from bulkgrpc.positions import Outcome, Ownership


class RecordLogError(Exception):
    """The record log does not answer, or does not do what was asked."""


class NewerFormat(Exception):
    """A message was written by a newer version, in a format that this one does not read. A newer worker applies it."""

    def __init__(self, message_format: int, newest_read: int) -> None:
        super().__init__(f"format {message_format}: this version reads up to format {newest_read}")
        self.format = message_format


class GroupNotLeft(Exception):
    """The consumer group was not left in time: the partitions move to other workers when the session expires.

    The process must exit without cleaning up: librdkafka waits for Kafka without a bound, in its destructor too.
    """


class StoreError(Exception):
    """The store of ledger, registry and tables refused a statement."""


class StoreUnavailable(StoreError):
    """The store does not answer now, or not in time. The same call may succeed later."""


class WriteFailed(StoreError):
    """A chunk was not written, or whether it was is unknown. `failure` says what the store reported."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.message)
        self.failure = failure


class NotNext(Exception):
    """The ledger does not accept a chunk: a span of it is replayed, follows a gap or is fenced.

    outcomes: one per partition of the chunk. ledger: the position of each partition that the ledger knows.
    """

    def __init__(self, outcomes: Mapping[int, Outcome], ledger: Mapping[int, Ownership]) -> None:
        super().__init__(", ".join(f"partition {p}: {o.value}" for p, o in outcomes.items()))
        self.outcomes = outcomes
        self.ledger = ledger


@dataclass(frozen=True, slots=True)
class Applied:
    """A chunk that is committed. counts: what it did for each job. parked: how many of its messages were parked.

    late_batches: how many batches were reported as late, of those jobs that have some. blocked: jobs that were blocked
    because a message of each cannot be read, and why. lost:
    the jobs that it failed because Kafka lost batches of them, and the reason of each.
    rows_s: seconds for writing its rows. total_s: seconds for its transaction, commit included.
    tasks: how many atomic jobs were left to a task (`bulkgrpc.consume.apply_tasks`).
    """

    counts: Mapping[JobKey, JobCounts]
    rows_s: float = 0.0
    total_s: float = 0.0
    parked: int = 0
    late_batches: Mapping[JobKey, int] = field(default_factory=dict)
    blocked: Mapping[JobKey, Failure] = field(default_factory=dict)
    lost: Mapping[JobKey, str] = field(default_factory=dict)
    tasks: int = 0


Assigned = Callable[[Sequence[int]], Mapping[int, int]]
"""Called with partitions that were assigned. Returns the offset where each starts; one left out stays paused."""
Revoked = Callable[[Sequence[int]], None]
"""Called with partitions before they are revoked, or after they were lost."""


class RecordLog(Protocol):
    """The records topic, read as a member of a consumer group. One thread uses it.

    Every method but `ends_reached`, `end`, `start` and `close` raises RecordLogError if the log refuses.
    """

    def join(self, assigned: Assigned, revoked: Revoked) -> None:
        """Join the consumer group. Both callbacks run inside `fetch`."""

    def fetch(self, messages_max: int, timeout_s: float) -> Sequence[Fetched]:
        """Return up to `messages_max` messages; wait up to `timeout_s` for the first."""

    def take_failed(self) -> Mapping[int, str]:
        """Return the partitions that `fetch` could not read since the last call, with the log's reason.

        The log may not have the offset that a partition needs. It returns nothing more of it until `seek`.
        """

    def ends_reached(self) -> Sequence[EndReached]:
        """Return the ends of partitions that the last `fetch` reached, in the order in which it reached them.

        An end is reported once, and again after a seek. Each message below it was returned by `fetch` before.
        """

    def seek(self, offsets: Mapping[int, int]) -> None:
        """Continue partitions at these offsets; paused ones resume.

        Raises RecordLogError if a partition is not assigned or not ready.
        """

    def pause(self, partitions: Iterable[int]) -> None:
        """Stop fetching partitions. `fetch` must still be called, to stay in the group."""

    def resume(self, partitions: Iterable[int]) -> None:
        """Fetch partitions again."""

    def commit(self, offsets: Mapping[int, int], note: str = "") -> None:
        """Report the next offset of partitions, for lag metrics and tools. Does not wait. note: stored with them."""

    def end(self, partition: int) -> int | None:
        """Return the offset after a partition's last message, None if the log does not answer in time."""

    def start(self, partition: int) -> int | None:
        """Return the first offset that the log had of a partition at the last fetch, None if that is not known."""

    def rejoin(self, timeout_s: float) -> None:
        """Leave the group, waiting up to `timeout_s`, and join it as a new member."""

    def close(self, timeout_s: float) -> None:
        """Leave the group. Raises GroupNotLeft if that takes longer than `timeout_s`."""


class Ledger(Protocol):
    """The positions and owners of partitions. Every method raises StoreUnavailable, or StoreError."""

    def acquire(self, partitions: Sequence[int]) -> Mapping[int, Ownership]:
        """Acquire partitions under a new epoch, which fences their former owners. Returns their positions."""

    def read(self, partitions: Sequence[int]) -> Mapping[int, Ownership]:
        """Return the positions of partitions and the epochs of their owners."""


class TopicLog(Protocol):
    """The identity of the records topic and the extent of its partitions. Every method raises RecordLogError."""

    def topic_id(self) -> uuid.UUID | None:
        """Return the topic's ID, None if there is no such topic."""

    def ranges(self, partitions: Collection[int]) -> Mapping[int, LogRange]:
        """Return what the log has of partitions. One for which it does not answer is left out."""


class TopicLedger(Protocol):
    """What the ledger knows of the records topic. Every method raises StoreUnavailable, or StoreError."""

    def recorded(self) -> tuple[uuid.UUID | None, Mapping[int, Recorded]]:
        """Return the recorded ID of the topic, and what the ledger has of its partitions."""

    def record(self, found: uuid.UUID) -> uuid.UUID:
        """Record the topic's ID if there is none; return the recorded one."""

    def save(self, stops: Mapping[int, Stop | None], logs: Mapping[int, LogRange | None]) -> None:
        """Store why partitions are stopped, None: they are not, and what the log has of them."""


class DatasetRegistry(Protocol):
    """The registered datasets. Any thread may use it."""

    def codec(self, name: str, version: int) -> BatchCodec:
        """Return the decoder of a dataset version. A version that was returned once is returned without I/O.

        The first call compiles it: that may take a second.

        Raises decode.DatasetNotFound, StoreUnavailable, StoreError.
        """

    def has_job(self, job: JobKey) -> bool:
        """Return whether the ledger has a job. Raises StoreUnavailable, StoreError."""

    def forget(self) -> None:
        """Return nothing any more that was loaded before: PostgreSQL may have given version numbers again."""


class ChunkWriter(Protocol):
    """Applies chunks, each in one transaction. One thread uses it."""

    def write(self, chunk: DecodableChunk, blocked: Collection[str] = ()) -> Applied:
        """Apply a chunk and commit it. blocked: datasets whose messages are parked, whatever the store says.

        Raises NotNext if the ledger does not accept it, WriteFailed if the store fails. Nothing is applied then, except
        where a connection broke during the commit: only the ledger knows.
        """

    def block(self, dataset: str, cause: BlockCause, failure: Failure) -> None:
        """Block a dataset: the next `write` parks its messages. Raises WriteFailed if that is not stored."""

    def close(self) -> None:
        """Release the connection. The next `write` opens another."""


class SliceFailed(StoreError):
    """A slice of parked messages was not applied. job_ids: of each of its messages."""

    def __init__(self, failure: Failure, job_ids: Sequence[uuid.UUID]) -> None:
        super().__init__(failure.message)
        self.failure = failure
        self.job_ids = job_ids


class Pace(enum.Enum):
    """How long the rows of a slice may take."""

    USUAL = "usual"
    """As long as on the main path."""
    LONG = "long"
    """Longer: only slow queues wait."""
    LONGEST = "longest"
    """As long as a statement may take: the slice is one message."""


@dataclass(frozen=True, slots=True)
class ParkedQueue:
    """A queue with parked messages. isolating: whether the main path parks what comes, also if the queue is empty."""

    key: QueueKey
    isolating: bool


class ParkedMessages(Protocol):
    """The parked messages of the topic. One thread uses it. Every method raises StoreUnavailable, or StoreError."""

    def queues(self) -> Sequence[ParkedQueue]:
        """Return the queues with parked messages that may be applied or are to be discarded."""

    def drain(self, queue: QueueKey, messages_max: int, *, pace: Pace, merges: bool) -> int:
        """Apply the first parked messages of a queue that may be applied; return how many there were.

        merges: if they are all of the queue, the main path is kept away meanwhile, and finds it empty. 0: there are
        none, or another worker drains the queue. Raises SliceFailed; NewerFormat if the first one is of a newer format.
        """

    def claim_trial(self) -> str | None:
        """Claim a blocked dataset whose next trial is due; return its name, None if none is due."""

    def try_dataset(self, dataset: str) -> bool:
        """Check the table of a blocked dataset, apply one parked message of it, and unblock it; return whether it was.

        Raises SliceFailed if it stays blocked.
        """

    def end_isolation(self) -> Sequence[str]:
        """Unblock the datasets that are isolating and have no parked message any more; return their names."""

    def end_discards(self) -> None:
        """Delete the discards that have no parked message left."""

    def block(self, dataset: str, cause: BlockCause, failure: Failure) -> None:
        """Block a dataset, or change why it is blocked. Isolation that follows isolation lasts longer."""

    def prolong_isolation(self, dataset: str) -> None:
        """Keep the main path off a dataset that is isolating for longer."""

    def block_job(self, job_id: uuid.UUID, failure: Failure) -> None:
        """Block a job: its messages stay parked until its next trial."""

    def close(self) -> None:
        """Release the connection. The next call opens another."""


class DeadLetterQueue(Protocol):
    """Where messages go that belong to no job. One thread uses it."""

    def add(self, message: Fetched, reason: str) -> None:
        """Store a message with the reason; return once it is durable. Raises RecordLogError if it is not."""


class MaintenanceStore(Protocol):
    """The maintenance tasks of the store. Every method but `close` raises StoreUnavailable, or StoreError."""

    @property
    def connected(self) -> bool:
        """Whether there is a session that is not broken. A new one is not the leader until `is_leader` returns True."""

    def is_leader(self) -> bool:
        """Try to become the maintenance leader; return whether this session is the leader. It stays so until closed."""

    def maintain_days(self, retention_days: int) -> None:
        """Create the day partitions that are needed next and drop those past retention."""

    def maintain_partitions(self, today: date) -> Sequence[str]:
        """Create the partitions of datasets' tables that are needed next; return why others could not be created."""

    def expire_abandoned(self, end_offsets: Mapping[int, int], abandoned_after_s: float) -> int:
        """End open jobs without a batch for `abandoned_after_s`, and sealed ones that lack one; return how many."""

    def delete_orphaned_staged_rows(self) -> None:
        """Delete staged rows of jobs that have ended."""

    def rotate_dedupe(self) -> None:
        """Rotate the hashes of each dataset whose previous generation has expired."""

    def build_filters(self) -> None:
        """Build the missing filters of previous generations of hashes."""

    def count_overdue(self) -> int:
        """Return how many jobs are sealed and have not ended in time."""

    def close(self) -> None:
        """Release the connection, and the leadership with it."""


class TopicWatch(Protocol):
    """Whether the logs of this worker's partitions match the ledger. The poll loop uses it."""

    def start(self) -> None:
        """Begin to check in the background."""

    def watch(self, partitions: Collection[int]) -> None:
        """Check these partitions in the background from now on."""

    def found(self) -> tuple[Collection[int], Mapping[int, Stop]] | None:
        """Return what the last check found, once: the partitions that it examined, and those that must stop."""

    def check(self, partitions: Collection[int]) -> tuple[Collection[int], Mapping[int, Stop]]:
        """Check partitions now; return those that could be examined, and of them those that must stop.

        Raises StoreUnavailable or StoreError, RecordLogError if the log does not answer or has no such topic.
        """

    def stop(self, partition: int, stop: Stop) -> None:
        """Store that a partition is stopped for what the poll loop found. Raises StoreUnavailable, or StoreError."""


@dataclass(frozen=True, slots=True)
class WorkerPorts:
    """What a worker is wired to. clock: seconds, monotonic."""

    log: RecordLog
    ledger: Ledger
    writer: ChunkWriter
    registry: DatasetRegistry
    dead_letters: DeadLetterQueue
    topic: TopicWatch
    ledger_watch: LedgerWatch
    clock: Callable[[], float] = time.monotonic
