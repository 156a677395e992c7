"""Assembles a chunk: the messages that a worker writes in one transaction, within bounds of rows and bytes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from bulkgrpc.model import JobKey, Message
from bulkgrpc.positions import Ownership

MALFORMED_MAX = 50
"""Messages of a chunk whose headers cannot be read: each is stored elsewhere before the chunk is written."""


@dataclass(frozen=True, slots=True)
class Fetched:
    """A message as the record log returns it.

    message: what its headers say; None if they cannot be read, as `malformed` explains, or are of a newer format.
    newer_format: the format then, else 0.
    """

    partition: int
    offset: int
    headers: Sequence[tuple[str, bytes]]
    key: bytes
    payload: bytes
    message: Message | None
    malformed: str = ""
    newer_format: int = 0


@dataclass(frozen=True, slots=True)
class EndReached:
    """The end of a partition's log, at the offset of its next message: everything below it was fetched.

    What of that was not returned as a message is none: see `bulkgrpc.consume.gaps`.
    """

    partition: int
    offset: int


@dataclass(frozen=True, slots=True)
class Received:
    """A message of a job, with its position in the records topic. headers, key: as they came."""

    partition: int
    offset: int
    message: Message
    payload: bytes
    headers: Sequence[tuple[str, bytes]] = ()
    key: bytes = b""


@dataclass(frozen=True, slots=True)
class Span:
    """The offsets [from_offset, to_offset) of a partition that is owned under `owner_epoch`.

    server_start: of the server that the owner's position was read from, see `Ownership`; None: of any.
    """

    partition: int
    from_offset: int
    to_offset: int
    owner_epoch: int
    server_start: datetime | None = None


@dataclass(frozen=True, slots=True)
class Chunk:
    """Messages of one or more partitions, in offset order within each partition.

    spans: one per partition; it includes dead letters and offsets without a message, `items` does not. rows: the
    records of all items. malformed: messages whose headers cannot be read.
    """

    spans: tuple[Span, ...]
    items: tuple[Received, ...]
    rows: int
    malformed: tuple[Fetched, ...] = ()

    @property
    def datasets(self) -> frozenset[str]:
        """The datasets of the messages."""
        return frozenset(item.message.spec.dataset for item in self.items)

    @property
    def is_intact(self) -> bool:
        """Whether the headers of all messages can be read, so that none of them is a dead letter."""
        return not (self.malformed or any(item.message.damage for item in self.items))


@dataclass(frozen=True, slots=True)
class ChunkBounds:
    """A chunk is full when it reaches at least one of these: records, payload bytes."""

    rows_max: int
    bytes_max: int

    def share(self, rows: int, payload_bytes: int) -> float:
        """Return which part of a full chunk these take."""
        return max(rows / self.rows_max, payload_bytes / self.bytes_max)


@dataclass(slots=True)
class ChunkBuilder:
    """Assembles the next chunk. The message that reaches a bound is part of it, so it may exceed the bound.

    Each message is the next one of its partition; the caller checks that (`OwnedPartitions.outcome`).
    started_at_s: when the first message was added, seconds of the monotonic clock.
    """

    bounds: ChunkBounds
    rows: int = 0
    payload_bytes: int = 0
    started_at_s: float = 0.0
    _items: list[Received] = field(default_factory=list)
    _malformed: list[Fetched] = field(default_factory=list)
    _spans: dict[int, Span] = field(default_factory=dict)
    _shares: dict[int, float] = field(default_factory=dict)

    @property
    def empty(self) -> bool:
        """Whether nothing was added."""
        return not self._spans

    @property
    def full(self) -> bool:
        """Whether a bound is reached."""
        reached = self.rows >= self.bounds.rows_max or self.payload_bytes >= self.bounds.bytes_max
        return reached or len(self._malformed) >= MALFORMED_MAX

    def share(self, partition: int) -> float:
        """Return which part of the chunk's bounds the messages of a partition take; 0 if it has none."""
        return self._shares.get(partition, 0.0)

    def add(self, received: Received, owned: Ownership) -> None:
        """Add a message that belongs to a job."""
        self.pass_over(owned, received.offset + 1)
        self._items.append(received)
        self._count(received.partition, received.message.records, len(received.payload))

    def add_malformed(self, fetched: Fetched, owned: Ownership) -> None:
        """Add a message whose headers cannot be read: it belongs to no job."""
        self.pass_over(owned, fetched.offset + 1)
        self._malformed.append(fetched)
        self._count(fetched.partition, 0, len(fetched.payload))

    def pass_over(self, owned: Ownership, to_offset: int) -> None:
        """Add the offsets from the partition's next one up to `to_offset`: nothing of them is to be done."""
        span = self._spans.get(owned.partition)
        start = owned.next_offset if span is None else span.from_offset
        self._spans[owned.partition] = Span(owned.partition, start, to_offset, owned.owner_epoch, owned.server_start)

    def _count(self, partition: int, rows: int, payload_bytes: int) -> None:
        self.rows += rows
        self.payload_bytes += payload_bytes
        self._shares[partition] = self.share(partition) + self.bounds.share(rows, payload_bytes)

    def ready(self, now_s: float, linger_s: float, outstanding: int) -> bool:
        """Return whether the chunk should be written now, if the writer has room.

        outstanding: chunks that the writer has not returned. While there is one, only a full chunk is ready: waiting
        costs nothing then, and a larger chunk is cheaper. Else a chunk is ready once it is `linger_s` old.
        """
        if self.empty:
            return False
        return self.full or (outstanding == 0 and now_s - self.started_at_s >= linger_s)

    def build(self) -> Chunk:
        """Return the chunk of what was added since the last `clear`."""
        return Chunk(tuple(self._spans.values()), tuple(self._items), self.rows, tuple(self._malformed))

    def clear(self) -> None:
        """Start the next chunk."""
        self.rows = self.payload_bytes = 0
        self._items, self._malformed, self._spans, self._shares = [], [], {}, {}

    def drop(self, partitions: Iterable[int]) -> None:
        """Discard what was added of these partitions."""
        dropped = set(partitions)
        self._items = [item for item in self._items if item.partition not in dropped]
        self._malformed = [fetched for fetched in self._malformed if fetched.partition not in dropped]
        self._spans = {partition: span for partition, span in self._spans.items() if partition not in dropped}
        self._shares = {partition: share for partition, share in self._shares.items() if partition not in dropped}
        self.rows = sum(item.message.records for item in self._items)
        self.payload_bytes = sum(len(item.payload) for item in self._items)
        self.payload_bytes += sum(len(fetched.payload) for fetched in self._malformed)


def received(fetched: Fetched) -> Received | None:
    """Return a fetched message; None if its headers cannot be read."""
    if fetched.message is None:
        return None
    return Received(fetched.partition, fetched.offset, fetched.message, fetched.payload, fetched.headers, fetched.key)


def jobs_of(items: Sequence[Received]) -> list[JobKey]:
    """Return the jobs of messages, each once, in the order of their first messages."""
    return list({item.message.spec.key: None for item in items})
