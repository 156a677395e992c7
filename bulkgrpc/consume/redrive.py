"""Which messages of a job are sent again, so that its lanes get what they need next. Pure.

An earlier release stored batches without a decoder as dead letters and passed over what followed them, the seal
included: the job stayed SEALED. Read again from the first dead letter on, in the order of the log, its lanes decide as
they would have then.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from bulkgrpc.consume.plan import Lane
from bulkgrpc.model import Kind, Message, lane_of


@dataclass(slots=True)
class Redrive:
    """Follows a job's lanes while its messages are read again. lanes: by number, every lane of the job."""

    lanes: dict[int, Lane] = field(default_factory=dict)

    def takes(self, message: Message) -> bool:
        """Return whether to send a message again: it is next in its lane, or seals one. The lane moves on then."""
        if message.kind is Kind.BATCH:
            lanes: tuple[int, ...] = (lane_of(message.sequence, len(self.lanes)),)
            next_ones = [
                n for n in lanes if message.sequence == self.lanes[n].next_sequence and not self.lanes[n].sealed
            ]
        else:
            lanes = (message.lane,) if message.lanes == len(self.lanes) else tuple(self.lanes)
            next_ones = [
                n for n in lanes if message.sequence <= self.lanes[n].next_sequence and not self.lanes[n].sealed
            ]
        for number in next_ones:
            lane = self.lanes[number]
            is_batch = message.kind is Kind.BATCH
            self.lanes[number] = Lane(lane.next_sequence + (len(self.lanes) if is_batch else 0), sealed=not is_batch)
        return bool(next_ones)

    def has(self, message: Message) -> bool:
        """Return whether a message is applied, or sent again."""
        if message.kind is Kind.BATCH:
            return message.sequence < self.lanes[lane_of(message.sequence, len(self.lanes))].next_sequence
        return self.complete

    @property
    def complete(self) -> bool:
        """Whether every lane is sealed: the job ends by itself."""
        return all(lane.sealed for lane in self.lanes.values())

    @property
    def missing(self) -> Mapping[int, int]:
        """By lane that is not sealed, the sequence from which on nothing was found."""
        return {number: lane.next_sequence for number, lane in self.lanes.items() if not lane.sealed}
