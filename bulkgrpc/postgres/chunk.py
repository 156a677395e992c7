"""A chunk: what a worker writes in one transaction. Assembled, decoded and planned here, without I/O."""

from __future__ import annotations

import enum
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

import numpy as np
import numpy.typing as npt

from bulkgrpc.datasets.codec import BatchCodec
from bulkgrpc.datasets.rows import Payload, Rows, to_rows
from bulkgrpc.model import JobKey, Kind, Message, Outcome, Ownership, lane_of, may_apply_batch

LaneKey = tuple[uuid.UUID, int]


@dataclass(frozen=True, slots=True)
class Received:
    """A message as it came from a partition."""

    partition: int
    offset: int
    message: Message
    payload: bytes


@dataclass(frozen=True, slots=True)
class Span:
    """The offsets [from_offset, to_offset) of a partition, held under `owner_epoch`."""

    partition: int
    from_offset: int
    to_offset: int
    owner_epoch: int


@dataclass(frozen=True, slots=True)
class Chunk:
    """Messages of one or more partitions, in the order of each partition's offsets. rows counts their records."""

    spans: tuple[Span, ...]
    items: tuple[Received, ...]
    rows: int


@dataclass(frozen=True, slots=True)
class ChunkBounds:
    """When a chunk is full: at least one of these reached. Payload bytes, records."""

    rows_max: int
    bytes_max: int


@dataclass(slots=True)
class ChunkBuilder:
    """Assembles the next chunk. May run over its bounds by the last message that fits in none."""

    bounds: ChunkBounds
    rows: int = 0
    payload_bytes: int = 0
    _items: list[Received] = field(default_factory=list)
    _spans: dict[int, Span] = field(default_factory=dict)

    @property
    def empty(self) -> bool:
        """Whether nothing was added."""
        return not self._spans

    @property
    def full(self) -> bool:
        """Whether a bound is reached."""
        return self.rows >= self.bounds.rows_max or self.payload_bytes >= self.bounds.bytes_max

    def add(self, received: Received, owned: Ownership) -> None:
        """Add the message at the partition's next offset."""
        self.skip(received.partition, received.offset, owned)
        self._items.append(received)
        self.rows += received.message.records
        self.payload_bytes += len(received.payload)

    def skip(self, partition: int, offset: int, owned: Ownership) -> None:
        """Go over the message at the partition's next offset: it is not of any job."""
        span = self._spans.get(partition)
        start = offset if span is None else span.from_offset
        self._spans[partition] = Span(partition, start, offset + 1, owned.owner_epoch)

    def build(self) -> Chunk:
        """Return what was added so far."""
        return Chunk(tuple(self._spans.values()), tuple(self._items), self.rows)

    def clear(self) -> None:
        """Start anew."""
        self.rows = self.payload_bytes = 0
        self._items, self._spans = [], {}

    def drop(self, partitions: Iterable[int]) -> None:
        """Throw away what was added of these partitions."""
        gone = set(partitions)
        self._items = [item for item in self._items if item.partition not in gone]
        self._spans = {partition: span for partition, span in self._spans.items() if partition not in gone}
        self.rows = sum(item.message.records for item in self._items)
        self.payload_bytes = sum(len(item.payload) for item in self._items)


@dataclass(frozen=True, slots=True)
class Group:
    """The rows of one dataset version in a chunk. items: of each payload of `rows`, its index in the chunk's items."""

    rows: Rows
    items: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class PreparedChunk:
    """A chunk with its payloads decoded: all that takes processor time is done before the transaction begins."""

    chunk: Chunk
    groups: tuple[Group, ...]


def prepare(chunk: Chunk, codec_of: Callable[[str, int], BatchCodec]) -> PreparedChunk:
    """Decode a chunk's payloads, a native call a dataset version.

    codec_of: gives the codec of a dataset's name and version; what it raises comes through.
    """
    members: dict[tuple[str, int], list[int]] = {}
    for index, item in enumerate(chunk.items):
        if item.message.kind is Kind.BATCH:
            members.setdefault((item.message.spec.dataset, item.message.spec.dataset_version), []).append(index)
    groups = []
    # In the same order in every worker: those who write to the same tables wait for each other in one order.
    for (name, version), indices in sorted(members.items()):
        items = [chunk.items[index] for index in indices]
        payloads = [Payload(item.message.spec.key.tenant, item.message.records, item.payload) for item in items]
        groups.append(Group(to_rows(codec_of(name, version), payloads), tuple(indices)))
    return PreparedChunk(chunk, tuple(groups))


@dataclass(frozen=True, slots=True)
class Lane:
    """A lane as the ledger has it. next_sequence: of the job's, so a new lane's is its own number."""

    next_sequence: int
    sealed: bool


class Fate(enum.Enum):
    """What becomes of a message of a chunk."""

    APPLY = "apply"
    """It is its lane's next one: its records are written, or it seals the lane; the last lane's seal ends the job."""
    DISCARD = "discard"
    """It is the next one, but its job has ended or its time to live is over: its records count as expired."""
    DELETED = "deleted"
    """It is the next one, but its dataset's version was deleted. It was acknowledged: its records are rejected."""
    OTHER_VERSION = "other version"
    """It is the next one, but its job is atomic and has another version of its dataset: its records are rejected."""
    KNOWN = "known"
    """It was applied before, or follows a hole and was never acknowledged: nothing is done."""
    CONFLICT = "conflict"
    """Another batch with its sequence was applied before. It may have been acknowledged: its records are rejected."""
    LATE = "late"
    """It came after the seal. It may have been acknowledged: its records are rejected."""


TAKEN = (Fate.APPLY, Fate.DISCARD, Fate.DELETED, Fate.OTHER_VERSION)
"""What becomes of a batch that is its lane's next one: the lane goes on behind it."""


@dataclass(frozen=True, slots=True)
class LedgerView:
    """What the ledger knows of a chunk's jobs, lanes and batches.

    ended: the jobs that have ended. lanes: those that there are. digests: of the batches that came again.
    lane_counts: of the jobs that have several. deleted_versions: of the jobs' datasets, the last that was deleted.
    atomic_versions: of atomic jobs, the version that they were opened with.
    """

    ended: frozenset[uuid.UUID] = frozenset()
    lanes: Mapping[LaneKey, Lane] = field(default_factory=dict)
    digests: Mapping[tuple[uuid.UUID, int], bytes] = field(default_factory=dict)
    lane_counts: Mapping[uuid.UUID, int] = field(default_factory=dict)
    deleted_versions: Mapping[uuid.UUID, int] = field(default_factory=dict)
    atomic_versions: Mapping[uuid.UUID, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class LanePlan:
    """What becomes of each message of a chunk, and where that leaves the lanes.

    fates: one for each item. lanes: those that move, as they stand afterwards.
    """

    fates: tuple[Fate, ...]
    lanes: Mapping[LaneKey, Lane]

    def mask(self, fate: Fate) -> npt.NDArray[np.bool_]:
        """Return which of the items have a fate."""
        return np.fromiter((found is fate for found in self.fates), np.bool_, len(self.fates))


def plan_lanes(items: Sequence[Received], ledger: LedgerView, now: datetime) -> LanePlan:
    """Walk through a chunk's messages in order and decide what becomes of each.

    | the message                              | of a job that has not ended     | of one that has      |
    |------------------------------------------|---------------------------------|----------------------|
    | batch, next of its lane                  | APPLY; too old: DISCARD         | DISCARD              |
    | batch, the same, its version deleted     | DELETED; too old: DISCARD       | DISCARD              |
    | batch, the same, not its atomic job's    | OTHER_VERSION; too old: DISCARD | DISCARD              |
    | batch, sequence below, same digest       | KNOWN                           | KNOWN                |
    | batch, sequence below, other digest      | CONFLICT                        | CONFLICT             |
    | batch, sequence above (after a hole)     | KNOWN                           | KNOWN                |
    | batch, from the next one on, lane sealed | LATE                            | LATE                 |
    | seal, at or below the next of its lane   | APPLY                           | APPLY: the lane only |
    | seal, after a hole, or a second one      | KNOWN                           | KNOWN                |

    A seal below the next sequence is of a stream whose server did not know of batches that an earlier one brought.
    """
    lanes = dict(ledger.lanes)
    digests = dict(ledger.digests)
    moved: dict[LaneKey, Lane] = {}
    fates = []
    for item in items:
        message, job_id = item.message, item.message.spec.key.job_id
        lane_count = ledger.lane_counts.get(job_id, 1)
        fate = Fate.KNOWN
        for number in _lanes_of(message, lane_count):
            key = (job_id, number)
            lane = lanes.get(key) or Lane(number, sealed=False)
            found = _fate(message, lane, digests.get((job_id, message.sequence)))
            if found is Fate.KNOWN:
                continue
            is_next = found is Fate.APPLY and message.kind is Kind.BATCH
            fate = _fate_of_next(message, ledger, now) if is_next else found
            if message.kind is Kind.SEAL:
                # It takes no place of its own: the next sequence stays where it is.
                lanes[key] = moved[key] = Lane(lane.next_sequence, sealed=True)
            elif fate in TAKEN:
                lanes[key] = moved[key] = Lane(lane.next_sequence + lane_count, sealed=False)
                digests[job_id, message.sequence] = message.digest
        fates.append(fate)
    return LanePlan(tuple(fates), moved)


def _lanes_of(message: Message, lane_count: int) -> Sequence[int]:
    """Return the lanes of a job with `lane_count` that a message is of.

    The job's row says how many there are. A stream that could not read it took them to be one: its batches, all of one
    partition, are in order on any number of lanes, and its seal is that of all.
    """
    if message.kind is Kind.BATCH:
        return (lane_of(message.sequence, lane_count),)
    return (message.lane,) if message.lanes == lane_count else range(lane_count)


def _fate(message: Message, lane: Lane, known: bytes | None) -> Fate:
    outcome = may_apply_batch(lane.next_sequence, message.sequence)
    if message.kind is Kind.SEAL:
        return Fate.KNOWN if outcome is Outcome.GAP or lane.sealed else Fate.APPLY
    if outcome is Outcome.REPLAY:
        return Fate.KNOWN if known is None or known == message.digest else Fate.CONFLICT
    if lane.sealed:
        return Fate.LATE
    return Fate.KNOWN if outcome is Outcome.GAP else Fate.APPLY


def _fate_of_next(message: Message, ledger: LedgerView, now: datetime) -> Fate:
    """Tell whether a batch that its lane is ready for is to be written."""
    job_id = message.spec.key.job_id
    too_old = message.expires_at is not None and message.expires_at <= now
    if too_old or job_id in ledger.ended:
        return Fate.DISCARD
    version = message.spec.dataset_version
    if version <= ledger.deleted_versions.get(job_id, 0):
        return Fate.DELETED
    return Fate.APPLY if version == ledger.atomic_versions.get(job_id, version) else Fate.OTHER_VERSION


def came_again(items: Sequence[Received], ledger: LedgerView) -> list[tuple[uuid.UUID, int]]:
    """Return job and sequence of the batches that were applied before: their digests are to be looked up."""
    again = []
    for message in (item.message for item in items if item.message.kind is Kind.BATCH):
        job_id = message.spec.key.job_id
        lane = ledger.lanes.get((job_id, lane_of(message.sequence, ledger.lane_counts.get(job_id, 1))))
        if lane is not None and message.sequence < lane.next_sequence:
            again.append((job_id, message.sequence))
    return again


def jobs_of(items: Sequence[Received]) -> list[JobKey]:
    """Return the jobs of messages, each once, in the order in which they come."""
    return list({item.message.spec.key: None for item in items})
