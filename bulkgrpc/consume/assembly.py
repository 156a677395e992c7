"""Assembles a chunk: the messages that a worker writes in one transaction, within bounds of rows and bytes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from bulkgrpc.model import JobKey, Message, Ownership


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


def jobs_of(items: Sequence[Received]) -> list[JobKey]:
    """Return the jobs of messages, each once, in the order in which they come."""
    return list({item.message.spec.key: None for item in items})
