"""A chunk: what a worker writes in one transaction. Assembled, decoded and planned here, without I/O."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from bulkgrpc.datasets.codec import BatchCodec
from bulkgrpc.datasets.rows import Payload, Rows, to_rows
from bulkgrpc.words import JobKey, Kind, Message, Outcome, Ownership, may_apply_batch

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
        return not self._items

    @property
    def full(self) -> bool:
        """Whether a bound is reached."""
        return self.rows >= self.bounds.rows_max or self.payload_bytes >= self.bounds.bytes_max

    def add(self, received: Received, owned: Ownership) -> None:
        """Add the message at the partition's next offset."""
        span = self._spans.get(received.partition)
        start = received.offset if span is None else span.from_offset
        self._spans[received.partition] = Span(received.partition, start, received.offset + 1, owned.owner_epoch)
        self._items.append(received)
        self.rows += received.message.records
        self.payload_bytes += len(received.payload)

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
    for (name, version), indices in members.items():
        items = [chunk.items[index] for index in indices]
        payloads = [Payload(item.message.spec.key.tenant, item.message.records, item.payload) for item in items]
        groups.append(Group(to_rows(codec_of(name, version), payloads), tuple(indices)))
    return PreparedChunk(chunk, tuple(groups))


@dataclass(frozen=True, slots=True)
class Lane:
    """A lane as the ledger has it."""

    next_sequence: int
    sealed: bool


NEW_LANE = Lane(0, sealed=False)


@dataclass(frozen=True, slots=True)
class LanePlan:
    """Which of a chunk's messages apply, and where that leaves the lanes.

    applies: a flag for each item. lanes: those that move, as they stand afterwards.
    """

    applies: npt.NDArray[np.bool_]
    lanes: Mapping[LaneKey, Lane]


def plan_lanes(items: Sequence[Received], ledger: Mapping[LaneKey, Lane]) -> LanePlan:
    """Walk through a chunk's messages in order and apply those that are their lane's next; see `may_apply_batch`.

    ledger: the lanes that the ledger knows; one that it does not is new. Nothing applies to a sealed lane.
    """
    lanes = dict(ledger)
    moved: dict[LaneKey, Lane] = {}
    applies = np.zeros(len(items), dtype=np.bool_)
    for index, item in enumerate(items):
        message = item.message
        key = (message.spec.key.job_id, message.lane)
        lane = lanes.get(key, NEW_LANE)
        if lane.sealed or may_apply_batch(lane.next_sequence, message.sequence) is not Outcome.NEXT:
            continue
        applies[index] = True
        sealed = message.kind is Kind.SEAL
        # A seal takes no place of its own: the sequence stays the number of batches.
        lanes[key] = moved[key] = Lane(lane.next_sequence + (not sealed), sealed=sealed)
    return LanePlan(applies, moved)


def jobs_of(items: Sequence[Received]) -> list[JobKey]:
    """Return the jobs of messages, each once, in the order in which they come."""
    return list({item.message.spec.key: None for item in items})
