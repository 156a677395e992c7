"""The batches between source and acknowledgement: numbered, bounded, resent after a broken stream. Pure."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, replace

from bulkgrpc.client.model import Batch, Progress


@dataclass(frozen=True, slots=True)
class NumberedBatch:
    """A batch with its sequence in the job."""

    sequence: int
    batch: Batch


class SendWindow:
    """The unacknowledged batches of one submission, in order.

    first_sequence <= send_sequence <= next_sequence: the first unacknowledged batch, the next batch to send on the
    current stream, the next batch that will be added.
    """

    def __init__(self, bytes_max: int, batches_max: int) -> None:
        self._bytes_max = bytes_max
        self._batches_max = batches_max
        self._batches: deque[NumberedBatch] = deque()
        self._acknowledged_sequence = 0
        self.buffered_bytes = 0
        self.next_sequence = 0
        self.send_sequence = 0
        self._counted_sequence = 0
        self.progress = Progress()

    @property
    def first_sequence(self) -> int:
        """Sequence of the first batch that is not acknowledged."""
        return self._batches[0].sequence if self._batches else self.next_sequence

    @property
    def full(self) -> bool:
        """Whether no batch may be added. An empty window accepts a batch of any size."""
        return bool(self._batches) and (
            self.buffered_bytes >= self._bytes_max or len(self._batches) >= self._batches_max
        )

    @property
    def unacknowledged(self) -> bool:
        """Whether a batch was sent on this stream and is not acknowledged."""
        return self.send_sequence > self.first_sequence

    @property
    def all_sent(self) -> bool:
        """Whether every batch that was added was sent on this stream, or need not be sent."""
        return self.send_sequence >= self.next_sequence

    def add(self, batch: Batch) -> None:
        """Number a batch and store it. A batch that the server already has is only counted."""
        numbered = NumberedBatch(self.next_sequence, batch)
        self.next_sequence += 1
        if numbered.sequence < self._acknowledged_sequence:
            self.send_sequence = max(self.send_sequence, self.next_sequence)
            self._counted_sequence = max(self._counted_sequence, self.next_sequence)
            self._count_acknowledged(numbered)
            return
        self._batches.append(numbered)
        self.buffered_bytes += len(batch.payload)

    def next_unsent(self) -> NumberedBatch | None:
        """Return the next batch to send on this stream; None if all are sent. A resent batch is not counted again."""
        position = self.send_sequence - self.first_sequence
        if position >= len(self._batches):
            return None
        numbered = self._batches[position]
        self.send_sequence += 1
        if numbered.sequence >= self._counted_sequence:
            self._counted_sequence = numbered.sequence + 1
            self.progress = replace(
                self.progress,
                sent_batches=self.progress.sent_batches + 1,
                sent_records=self.progress.sent_records + numbered.batch.records,
                sent_bytes=self.progress.sent_bytes + len(numbered.batch.payload),
            )
        return numbered

    def acknowledge(self, next_sequence: int) -> bool:
        """Drop every batch before `next_sequence`, also batches not added yet. Returns whether it advanced."""
        if next_sequence <= self._acknowledged_sequence:
            return False
        self._acknowledged_sequence = next_sequence
        while self._batches and self._batches[0].sequence < next_sequence:
            numbered = self._batches.popleft()
            self.buffered_bytes -= len(numbered.batch.payload)
            self._count_acknowledged(numbered)
        self.send_sequence = max(self.send_sequence, self.first_sequence)
        return True

    def rewind(self) -> int:
        """Start a new stream: all stored batches are to be sent again. Returns its first sequence."""
        self.send_sequence = self.first_sequence
        self.progress = replace(self.progress, streams=self.progress.streams + 1)
        return max(self.first_sequence, 0)

    def _count_acknowledged(self, numbered: NumberedBatch) -> None:
        self.progress = replace(
            self.progress,
            acknowledged_batches=self.progress.acknowledged_batches + 1,
            acknowledged_records=self.progress.acknowledged_records + numbered.batch.records,
            acknowledged_bytes=self.progress.acknowledged_bytes + len(numbered.batch.payload),
        )
