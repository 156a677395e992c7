"""The domain's words as values: names, ids, states, positions. Pure; imports nothing of ours.

Positions are always the *next* one: `next_sequence` is the sequence of the batch to come, `next_offset` the offset of
the message to come. A span is [from, to).
"""

from __future__ import annotations

import enum
import hashlib
import re
import uuid
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

ENDS_WITHIN_S = 300.0
"""In which a job should have ended after its seal."""

_TENANT = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}")
_DATASET = re.compile(r"[a-z][a-z0-9_]{0,62}")
_JOB_NAME = re.compile(rf"tenants/(?P<tenant>{_TENANT.pattern})/jobs/(?P<job>[0-9a-f-]{{36}})")
_IDEMPOTENCY_KEY = re.compile(r"[!-~]{1,128}")


def is_tenant(text: str) -> bool:
    """Tell whether `text` may name a tenant: 1 to 63 letters, digits, `_`, `.`, `-`, the first a letter or digit."""
    return _TENANT.fullmatch(text) is not None


def is_dataset(text: str) -> bool:
    """Tell whether `text` may name a dataset and its table: a lower-case letter, then up to 62 of a-z, 0-9, `_`."""
    return _DATASET.fullmatch(text) is not None


def is_idempotency_key(text: str) -> bool:
    """Tell whether `text` is a valid idempotency key: 1 to 128 printable ASCII characters without spaces."""
    return _IDEMPOTENCY_KEY.fullmatch(text) is not None


class JobState(enum.IntEnum):
    """Where a job is in its life. The values are those of `bulkgrpc.v1.JobState` and of `bulk.jobs.state`."""

    OPEN = 1
    """Takes batches. Set by the server that opens it, or by the worker that applies its first batch."""
    SEALED = 2
    """Takes no more batches; some are still to be applied. Shown from the seal's acknowledgement on."""
    SUCCEEDED = 3
    """Ended: every accepted record is in the table. Set by the worker that applies the seal."""
    PARTIALLY_SUCCEEDED = 4
    """Ended: some records were rejected. Set by the worker that applies the seal."""
    FAILED = 5
    """Ended: every record was rejected, too many were, or the job is atomic and one was. Set by a worker."""
    CANCELLED = 6
    """Ended by CancelJob. Set by the server."""
    EXPIRED = 7
    """Ended because its client never came back to seal it. Set by the worker that keeps house."""

    @property
    def ended(self) -> bool:
        """Whether nothing of the job is still to come."""
        return self >= JobState.SUCCEEDED


@dataclass(frozen=True, slots=True)
class JobKey:
    """Which job: its tenant and its id."""

    tenant: str
    job_id: uuid.UUID

    @classmethod
    def derive(cls, tenant: str, idempotency_key: str) -> JobKey:
        """Return the job of a tenant's idempotency key: always the same, so a retried submission is the same job."""
        digest = hashlib.sha256(f"{tenant}\0{idempotency_key}".encode()).digest()
        return cls(tenant, uuid.UUID(bytes=digest[:16], version=5))

    @classmethod
    def parse(cls, name: str) -> JobKey | None:
        """Read `tenants/{tenant}/jobs/{job}`; None if `name` is nothing of the sort."""
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
    """How a job is to be treated.

    atomic: nothing visible before the seal, then all or nothing. rejections_max: more of them fail the job; 0 is no
    bound. time_to_live_s: batches not applied by then are discarded; 0 is never.
    """

    atomic: bool = False
    rejections_max: int = 0
    time_to_live_s: float = 0.0


@dataclass(frozen=True, slots=True)
class JobSpec:
    """What a job is from its opening on: everything that another stream with its key must repeat.

    dataset_version: the one it was opened with; of a message, the one that its records are of.
    """

    key: JobKey
    idempotency_key: str
    dataset: str
    dataset_version: int
    labels: dict[str, str] = field(default_factory=dict)
    options: JobOptions = JobOptions()

    def same_request(self, other: JobSpec) -> bool:
        """Tell whether `other` asks for the same job; another version of the dataset is no difference."""
        mine, others = ((spec.key, spec.dataset, spec.labels, spec.options) for spec in (self, other))
        return mine == others


@dataclass(frozen=True, slots=True)
class JobCounts:
    """Counts of records. Always accepted = written + duplicate + rejected + expired, but for those not applied yet."""

    accepted: int = 0
    written: int = 0
    duplicate: int = 0
    rejected: int = 0
    expired: int = 0

    def __add__(self, other: JobCounts) -> JobCounts:
        """Add count by count."""
        return JobCounts(
            self.accepted + other.accepted,
            self.written + other.written,
            self.duplicate + other.duplicate,
            self.rejected + other.rejected,
            self.expired + other.expired,
        )


@dataclass(frozen=True, slots=True)
class Job:
    """A job as it stands: what it is, how far it came. partitions: of each of its lanes, where its batches go."""

    spec: JobSpec
    partitions: tuple[int, ...]
    state: JobState
    counts: JobCounts
    next_sequence: int
    create_time: datetime
    seal_time: datetime | None = None
    end_time: datetime | None = None
    failure: str = ""

    def overdue_s(self, now: datetime) -> float:
        """Return how far the job is past the time after its seal in which it should have ended; 0 if it is not."""
        if self.state is not JobState.SEALED or self.seal_time is None:
            return 0.0
        return max(0.0, (now - self.seal_time).total_seconds() - ENDS_WITHIN_S)


def final_state(counts: JobCounts) -> JobState:
    """Return the state of a job whose seal is applied.

    None rejected or expired: SUCCEEDED; some: PARTIALLY_SUCCEEDED; all: FAILED.
    """
    if counts.rejected + counts.expired == 0:
        return JobState.SUCCEEDED
    if counts.written + counts.duplicate == 0:
        return JobState.FAILED
    return JobState.PARTIALLY_SUCCEEDED


class Kind(enum.StrEnum):
    """What a message on the records topic is."""

    BATCH = "batch"
    SEAL = "seal"


@dataclass(frozen=True, slots=True)
class Message:
    """What a message on the records topic says of its payload: enough for a worker that knows nothing else of the job.

    sequence: the batch's place in the job; a seal, of which each lane gets one, has the place after the job's last
    batch. records: how many records the payload holds, 0 for a seal. job_records: for a seal, the records of the whole
    job as its server counted them; else 0. spec: the job, complete where `opens`, elsewhere without labels and
    idempotency key. sent_at: when the server took it. digest: `digest_of` the payload. expires_at: when it is to be
    discarded if not applied; None is never. partitions: of each lane, if there are several; else empty.
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

    @property
    def lanes(self) -> int:
        """How many lanes the job has."""
        return len(self.partitions) or 1

    @property
    def opens(self) -> bool:
        """Whether it is the first of its lane, so that it may be the first that any worker sees of the job."""
        return self.sequence < self.lanes


def lane_of(sequence: int, lanes: int) -> int:
    """Return the lane of a batch: they go round, so the next of a lane is `lanes` after its last one."""
    return sequence % lanes


def digest_of(payload: bytes) -> bytes:
    """Return the first 128 bits of a batch's SHA-256: two batches with the same sequence are the same if they are.

    Processors have instructions for it: it takes half as long as BLAKE2b.
    """
    return hashlib.sha256(payload).digest()[:16]


class Outcome(enum.Enum):
    """May this be applied? The closed set of answers, for a span of offsets and for a batch alike."""

    NEXT = "next"
    REPLAY = "replay"
    GAP = "gap"
    FENCED = "fenced"


@dataclass(frozen=True, slots=True)
class Ownership:
    """A worker's hold of a partition: the offset to read next and the epoch under which it may write."""

    partition: int
    next_offset: int
    owner_epoch: int


def may_apply_span(ledger_next_offset: int, ledger_epoch: int, from_offset: int, owner_epoch: int) -> Outcome:
    """Tell what the ledger says of a span of offsets that starts at `from_offset`, held under `owner_epoch`.

    | ledger's epoch | ledger's next offset | answer | then                                            |
    |----------------|----------------------|--------|-------------------------------------------------|
    | not ours       | any                  | FENCED | roll back, give the partition up                |
    | ours           | = from_offset        | NEXT   | write                                           |
    | ours           | > from_offset        | REPLAY | drop the span, seek to the ledger               |
    | ours           | < from_offset        | GAP    | seek to the ledger; if gone from Kafka, stop    |
    """
    if ledger_epoch != owner_epoch:
        return Outcome.FENCED
    if ledger_next_offset == from_offset:
        return Outcome.NEXT
    return Outcome.REPLAY if ledger_next_offset > from_offset else Outcome.GAP


def may_apply_batch(lane_next_sequence: int, sequence: int) -> Outcome:
    """Tell what a lane says of a batch.

    sequence = next: NEXT, apply it. Lower: REPLAY, it was applied before. Higher: GAP, what is missing was never
    acknowledged, so neither was this; the client sends both again.
    """
    if sequence == lane_next_sequence:
        return Outcome.NEXT
    return Outcome.REPLAY if sequence < lane_next_sequence else Outcome.GAP


_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


def to_us(time: datetime) -> int:
    """Return microseconds since 1970 of an aware time."""
    return (time - _EPOCH) // _MICROSECOND


def from_us(time_us: int) -> datetime:
    """Return the time that is `time_us` microseconds after 1970."""
    return _EPOCH + time_us * _MICROSECOND
