"""The batches on their way: numbered, bounded, held until acknowledged, sent again after a broken stream. Pure."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, replace

from bulkgrpc.client.model import Batch, Progress


@dataclass(frozen=True, slots=True)
class Numbered:
    """A batch with its place in the job."""

    sequence: int
    batch: Batch


class Window:
    """The unacknowledged batches of one submission, in order.

    first_sequence <= send_sequence <= next_sequence: what is held, what of it is still to be sent, what comes next.
    """

    def __init__(self, bytes_max: int, batches_max: int) -> None:
        self._bytes_max = bytes_max
        self._batches_max = batches_max
        self._held: deque[Numbered] = deque()
        self._durable_sequence = 0
        self.held_bytes = 0
        self.next_sequence = 0
        self.send_sequence = 0
        self._sent_once_sequence = 0
        self.progress = Progress()

    @property
    def first_sequence(self) -> int:
        """Sequence of the first batch that is not acknowledged."""
        return self._held[0].sequence if self._held else self.next_sequence

    @property
    def full(self) -> bool:
        """Whether nothing more may be added. A single batch is always taken, however large."""
        return bool(self._held) and (self.held_bytes >= self._bytes_max or len(self._held) >= self._batches_max)

    @property
    def awaits_answer(self) -> bool:
        """Whether a batch was sent on this stream and is not acknowledged."""
        return self.send_sequence > self.first_sequence

    @property
    def all_sent(self) -> bool:
        """Whether every batch that was added was sent on this stream, or need not be."""
        return self.send_sequence >= self.next_sequence

    def add(self, batch: Batch) -> None:
        """Number a batch and hold it; one that the server is known to have is only counted."""
        numbered = Numbered(self.next_sequence, batch)
        self.next_sequence += 1
        if numbered.sequence < self._durable_sequence:
            self.send_sequence = max(self.send_sequence, self.next_sequence)
            self._sent_once_sequence = max(self._sent_once_sequence, self.next_sequence)
            self._count_acknowledged(numbered)
            return
        self._held.append(numbered)
        self.held_bytes += len(batch.payload)

    def take(self) -> Numbered | None:
        """Return the next batch to send on this stream, None if all that are held were sent."""
        position = self.send_sequence - self.first_sequence
        if position >= len(self._held):
            return None
        numbered = self._held[position]
        self.send_sequence += 1
        if numbered.sequence >= self._sent_once_sequence:
            self._sent_once_sequence = numbered.sequence + 1
            self.progress = replace(
                self.progress,
                sent_batches=self.progress.sent_batches + 1,
                sent_records=self.progress.sent_records + numbered.batch.records,
                sent_bytes=self.progress.sent_bytes + len(numbered.batch.payload),
            )
        return numbered

    def acknowledge(self, next_sequence: int) -> bool:
        """Drop every batch before `next_sequence`, also those still to come. Tells whether that is news."""
        if next_sequence <= self._durable_sequence:
            return False
        self._durable_sequence = next_sequence
        while self._held and self._held[0].sequence < next_sequence:
            numbered = self._held.popleft()
            self.held_bytes -= len(numbered.batch.payload)
            self._count_acknowledged(numbered)
        self.send_sequence = max(self.send_sequence, self.first_sequence)
        return True

    def rewind(self) -> int:
        """Begin a new stream: everything held is to be sent again. Returns the sequence to open it with."""
        self.send_sequence = self.first_sequence
        self.progress = replace(self.progress, streams=self.progress.streams + 1)
        return max(self.first_sequence, 0)

    def _count_acknowledged(self, numbered: Numbered) -> None:
        self.progress = replace(
            self.progress,
            acknowledged_batches=self.progress.acknowledged_batches + 1,
            acknowledged_records=self.progress.acknowledged_records + numbered.batch.records,
            acknowledged_bytes=self.progress.acknowledged_bytes + len(numbered.batch.payload),
        )
