"""The domain model: jobs, batches, messages, and when they may be applied. Pure; imports nothing else of bulkgrpc.

A *tenant* submits a *job*: an ordered run of *batches* of one *dataset*, numbered from 0 by their *sequence*, and a
*seal* that ends it. Each batch is one *message* on the records topic. A job has one or more *lanes*; a lane is one
ordered path through one partition. Workers apply the batches of a lane in order, each exactly once.

A position is always the next one: `next_sequence` is the sequence of the next batch to apply, `next_offset` the offset
of the next message to read. A span is [from, to).
"""

from __future__ import annotations

import enum
import hashlib
import re
import uuid
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

ENDS_WITHIN_S = 300.0
"""Seconds after its seal in which a job is expected to end. Later it is overdue."""
STAGED_ROWS_PER_S_MIN = 1_000
"""Rows of an atomic job that PostgreSQL applies per second at least: the job has a second more for so many."""

_TENANT = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}")
_DATASET = re.compile(r"[a-z][a-z0-9_]{0,62}")
_JOB_NAME = re.compile(rf"tenants/(?P<tenant>{_TENANT.pattern})/jobs/(?P<job>[0-9a-f-]{{36}})")
_IDEMPOTENCY_KEY = re.compile(r"[!-~]{1,128}")


def is_tenant(text: str) -> bool:
    """Return whether `text` is a valid tenant: 1 to 63 letters, digits, `_`, `.`, `-`; the first a letter or digit."""
    return _TENANT.fullmatch(text) is not None


def is_dataset(text: str) -> bool:
    """Return whether `text` is a valid name of a dataset and its table: a-z, then up to 62 of a-z, 0-9, `_`."""
    return _DATASET.fullmatch(text) is not None


def is_idempotency_key(text: str) -> bool:
    """Return whether `text` is a valid idempotency key: 1 to 128 printable ASCII characters, no spaces."""
    return _IDEMPOTENCY_KEY.fullmatch(text) is not None


class JobState(enum.IntEnum):
    """The state of a job. The values are those of `bulkgrpc.v1.JobState` and of `bulk.jobs.state`.

    OPEN → SEALED → SUCCEEDED | PARTIALLY_SUCCEEDED | FAILED. An OPEN job can also become FAILED, CANCELLED or EXPIRED,
    a SEALED one FAILED or CANCELLED. A job that has ended never changes its state, except that a client opens it again
    if it FAILED because Kafka lost batches of it.
    """

    OPEN = 1
    """Accepts batches. Set by the server that opens the job, or by the worker that applies its first batch."""
    SEALED = 2
    """Accepts no more batches; some are not applied yet. Reported as soon as the seal is acknowledged."""
    SUCCEEDED = 3
    """Ended: no record was rejected or expired. Set by the worker that applies the last lane's seal."""
    PARTIALLY_SUCCEEDED = 4
    """Ended: some records were rejected or expired, others were not. Set by the worker that applies the last seal."""
    FAILED = 5
    """Ended: all records were rejected or expired, more than `rejections_max` were rejected, or the job is atomic and
    could not be applied as a whole, or Kafka lost batches of it. Set by a worker, or by an operator who accepts a
    loss."""
    CANCELLED = 6
    """Ended by CancelJob. Set by a server."""
    EXPIRED = 7
    """Ended because no batch arrived for `abandoned_after_s` and no seal. Set by the maintenance leader."""

    @property
    def ended(self) -> bool:
        """Whether the job has ended: its state is final."""
        return self >= JobState.SUCCEEDED


@dataclass(frozen=True, slots=True)
class JobKey:
    """The identity of a job: its tenant and its ID."""

    tenant: str
    job_id: uuid.UUID

    @classmethod
    def derive(cls, tenant: str, idempotency_key: str) -> JobKey:
        """Return the job of a tenant's idempotency key: always the same, so a retried submission is the same job."""
        digest = hashlib.sha256(f"{tenant}\0{idempotency_key}".encode()).digest()
        return cls(tenant, uuid.UUID(bytes=digest[:16], version=5))

    @classmethod
    def parse(cls, name: str) -> JobKey | None:
        """Parse the resource name `tenants/{tenant}/jobs/{job}`. Returns None if `name` is not one."""
        found = _JOB_NAME.fullmatch(name)
        if found is None:
            return None
        try:
            return cls(found["tenant"], uuid.UUID(found["job"]))
        except ValueError:
            return None

    @property
    def name(self) -> str:
        """The resource name, `tenants/{tenant}/jobs/{job}`."""
        return f"tenants/{self.tenant}/jobs/{self.job_id}"


@dataclass(frozen=True, slots=True)
class JobOptions:
    """How a job is applied.

    atomic: no row is visible before the seal is applied; then all rows are, or none. rejections_max: more rejected
    records than this fail the job; 0 is no bound. time_to_live_s: a batch that is not applied this many seconds after
    it was accepted expires; 0: the time to live of the dataset, if it has one.
    """

    atomic: bool = False
    rejections_max: int = 0
    time_to_live_s: float = 0.0


@dataclass(frozen=True, slots=True)
class JobSpec:
    """What a job was opened with. Another stream with the same idempotency key must repeat it.

    dataset_version: of a job, the version that it was opened with; of a message, the version of its records.
    """

    key: JobKey
    idempotency_key: str
    dataset: str
    dataset_version: int
    labels: dict[str, str] = field(default_factory=dict)
    options: JobOptions = JobOptions()

    def same_request(self, other: JobSpec) -> bool:
        """Return whether `other` requests the same job. The dataset's version does not count."""
        mine, others = ((spec.key, spec.dataset, spec.labels, spec.options) for spec in (self, other))
        return mine == others


@dataclass(frozen=True, slots=True)
class JobCounts:
    """Counts of a job's records.

    accepted: of the batches that were acknowledged, or, if only the ledger is known, applied. written: rows in the
    table. duplicate: not written, because the key or the record was there before. rejected: reported with a reason.
    expired: discarded, because the batch was too old or the job had ended. skipped: not written, because a trigger of
    the table returned NULL.
    accepted = written + duplicate + rejected + expired + skipped + the records that are not applied yet.
    """

    accepted: int = 0
    written: int = 0
    duplicate: int = 0
    rejected: int = 0
    expired: int = 0
    skipped: int = 0

    def __add__(self, other: JobCounts) -> JobCounts:
        """Add each count."""
        return JobCounts(
            self.accepted + other.accepted,
            self.written + other.written,
            self.duplicate + other.duplicate,
            self.rejected + other.rejected,
            self.expired + other.expired,
            self.skipped + other.skipped,
        )


class BlockedBy(enum.StrEnum):
    """What blocks a job: its accepted batches are kept, and applied once that is over."""

    TABLE = "table"
    """The table of its dataset cannot be written now."""
    ISOLATING = "isolating"
    """Its dataset's messages are applied beside the others, in small slices, to find the one at fault."""
    PAUSED = "paused"
    """An operator paused its dataset."""
    JOB = "job"
    """A message of the job itself can neither be applied nor rejected now: its rows take too long, its dataset's
    version is missing, or its headers are damaged."""
    QUEUE = "queue"
    """A job before it in its queue is blocked: it may write the same keys."""


@dataclass(frozen=True, slots=True)
class JobBlock:
    """Why a job is blocked, and since when what blocks it has done so."""

    cause: BlockedBy
    reason: str
    block_time: datetime

    def __str__(self) -> str:
        """Return one line for people, in local time."""
        since = self.block_time.astimezone().isoformat(" ", "seconds")
        how = "paused" if self.cause is BlockedBy.PAUSED else "blocked"
        return f"{how} since {since}: {self.reason}"


@dataclass(frozen=True, slots=True)
class ApplyProgress:
    """How many of the staged rows of a sealed atomic job are applied. All become visible at the job's end."""

    staged_rows: int
    applied_rows: int

    def __str__(self) -> str:
        """Return one line for people."""
        return f"{self.applied_rows:,} of {self.staged_rows:,} rows"


@dataclass(frozen=True, slots=True)
class Job:
    """A job and its progress.

    partitions: one per lane, where the lane's batches go. next_sequence: of the next batch to be acknowledged or
    applied. failure_reason: why the job failed; else empty. block: why batches of it wait in PostgreSQL; None if none
    does. discard_reason: why an operator discarded records of it; else empty. late_batches: that arrived after its
    seal; no count has their records. lease_epoch: raised by each stream that opened the job; lease_session: the session
    of the last one. lost: whether it failed because Kafka lost batches of it; it can be opened again, at
    `next_sequence`. attempt: how often that was done. apply_progress: of a sealed atomic job whose staged rows are
    applied, or wait for that; else None.
    """

    spec: JobSpec
    partitions: tuple[int, ...]
    state: JobState
    counts: JobCounts
    next_sequence: int
    create_time: datetime
    seal_time: datetime | None = None
    end_time: datetime | None = None
    failure_reason: str = ""
    block: JobBlock | None = None
    discard_reason: str = ""
    late_batches: int = 0
    lease_epoch: int = 0
    lease_session: str = ""
    lost: bool = False
    attempt: int = 0
    apply_progress: ApplyProgress | None = None

    def overdue_s(self, now: datetime) -> float:
        """Return for how many seconds the job is overdue: sealed for longer than ENDS_WITHIN_S. 0 if it is not.

        An atomic job has a second more for each STAGED_ROWS_PER_S_MIN of its rows.

        A blocked job is not overdue: what blocks it is reported instead.
        """
        if self.state is not JobState.SEALED or self.seal_time is None or self.block is not None:
            return 0.0
        more_s = 0.0 if self.apply_progress is None else self.apply_progress.staged_rows / STAGED_ROWS_PER_S_MIN
        return max(0.0, (now - self.seal_time).total_seconds() - ENDS_WITHIN_S - more_s)


def final_state(counts: JobCounts) -> JobState:
    """Return the state in which a job ends when its seal is applied.

    | records rejected or expired | state               |
    |-----------------------------|---------------------|
    | none                        | SUCCEEDED           |
    | some, others not            | PARTIALLY_SUCCEEDED |
    | all                         | FAILED              |
    """
    if counts.rejected + counts.expired == 0:
        return JobState.SUCCEEDED
    if counts.written + counts.duplicate + counts.skipped == 0:
        return JobState.FAILED
    return JobState.PARTIALLY_SUCCEEDED


class Kind(enum.StrEnum):
    """What a message on the records topic carries: records, or the end of a lane."""

    BATCH = "batch"
    SEAL = "seal"


@dataclass(frozen=True, slots=True)
class Message:
    """The headers of a message on the records topic. They are all that a worker needs to know about the job.

    kind: a batch, or a seal; each lane has a seal of its own.
    spec: the job. Labels and idempotency key are set only if the message `opens` its lane.
    lane: number of the lane, from 0.
    sequence: of a batch, its number in the job; of a seal, the number after the job's last batch.
    records: number of records in the payload; 0 for a seal.
    job_records: of a seal, the records of the whole job as the server counted them; else 0.
    sent_at: when the server accepted it.
    trace_context: W3C traceparent; may be empty.
    digest: `digest_of` the payload; empty for a seal.
    expires_at: when the batch expires if it is not applied; None is never.
    partitions: one per lane if the job has several lanes; else empty.
    damage: why its headers cannot be read, of a message of which no more is known than its job, and of a batch what its
    payload says; else empty. It is never applied.
    schema: digest of the definition of the dataset's version; empty if it is not known.
    stored_sequence: the log has every batch of the job before this one, each earlier in its partition than this
    message; 0 if that is not known. A lane that needs such a batch next has lost it.
    attempt: `Job.attempt` as its server knew it.
    """

    kind: Kind
    spec: JobSpec
    lane: int
    sequence: int
    records: int
    job_records: int
    sent_at: datetime
    trace_context: str = ""
    digest: bytes = b""
    expires_at: datetime | None = None
    partitions: tuple[int, ...] = ()
    damage: str = ""
    schema: bytes = b""
    stored_sequence: int = 0
    attempt: int = 0

    @property
    def lanes(self) -> int:
        """The number of lanes of the job."""
        return len(self.partitions) or 1

    @property
    def opens(self) -> bool:
        """Whether it is the first message of its lane: a worker may have to create the job's row from it."""
        return self.sequence < self.lanes and not self.damage


def lane_of(sequence: int, lanes: int) -> int:
    """Return the lane of a batch. Sequences alternate between the lanes: the next one of a lane is `lanes` higher."""
    return sequence % lanes


def digest_of(payload: bytes) -> bytes:
    """Return the first 16 bytes of a batch's SHA-256. Batches with the same sequence are equal if their digests are.

    SHA-256 because processors have instructions for it: it takes half as long as BLAKE2b.
    """
    return hashlib.sha256(payload).digest()[:16]


_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


def to_us(time: datetime) -> int:
    """Return the microseconds from 1970-01-01 UTC to an aware time."""
    return (time - _EPOCH) // _MICROSECOND


def from_us(time_us: int) -> datetime:
    """Return the time, in UTC, that is `time_us` microseconds after 1970-01-01 UTC."""
    return _EPOCH + time_us * _MICROSECOND
