"""Whether offsets that the record log skips may be passed over. Pure.

Kafka shows a consumer neither the control records of transactions nor the messages of aborted ones (`read_committed`).
A server uses no transactions, so it acknowledged none of these: they are passed over. Messages below the start of
Kafka's log are lost.

The offsets alone do not show whether compaction, or a broken disk, deleted messages in the middle of the log. So every
span that is passed over is reported.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from bulkgrpc.consume.assembly import EndReached, Fetched


@dataclass(frozen=True, slots=True)
class Gap:
    """The offsets [from_offset, to_offset) of a partition, which a read did not return."""

    partition: int
    from_offset: int
    to_offset: int


class GapStep(enum.Enum):
    """What a gap leads to."""

    READ_AGAIN = "read again"
    """Read the partition again from the start of the gap."""
    CONTINUE = "continue"
    """Continue after the part of the gap that was read twice."""
    LOST = "lost"
    """Kafka deleted messages that the ledger needs."""


def gaps_in(partition: int, next_offset: int, read: Iterable[Fetched | EndReached]) -> Sequence[Gap]:
    """Return the gaps of a read that started at `next_offset` and returned these messages and ends, in order."""
    gaps = []
    for one in read:
        if one.offset > next_offset:
            gaps.append(Gap(partition, next_offset, one.offset))
        next_offset = one.offset + 1 if isinstance(one, Fetched) else one.offset
    return gaps


@dataclass(slots=True)
class GapWatch:
    """Remembers the gaps of the last read of each partition. Two reads decide: the first may have been disturbed.

    All gaps of a read are remembered, so that a partition with many transactions is read again once for many of them.
    """

    _read: dict[int, Mapping[int, int]] = field(default_factory=dict)
    _passed_over: dict[int, int] = field(default_factory=dict)

    def read(self, partition: int, gaps: Iterable[Gap]) -> None:
        """Note the gaps of a read, instead of those of the read before: the partition is read again."""
        self._read[partition] = {gap.from_offset: gap.to_offset for gap in gaps}

    def read_twice(self, gap: Gap) -> Gap | None:
        """Return what of a gap the read before did not return either.

        | the gaps of the read before    | result                                                       |
        |--------------------------------|--------------------------------------------------------------|
        | none from the same offset      | None: one read                                               |
        | one from the same offset       | up to the smaller end: the log grew, or a message was found  |
        """
        to_offset = self._read.get(gap.partition, {}).get(gap.from_offset)
        return None if to_offset is None else Gap(gap.partition, gap.from_offset, min(to_offset, gap.to_offset))

    def pass_over(self, gap: Gap) -> bool:
        """Note that a gap is passed over. Returns whether it was not before, in a chunk that was not applied."""
        is_new = gap.to_offset > self._passed_over.get(gap.partition, 0)
        self._passed_over[gap.partition] = gap.to_offset
        return is_new


def step_after(read_twice: Gap | None, log_start: int | None) -> GapStep:
    """Decide about a gap. log_start: the first offset that Kafka has; None if it is not known.

    | read twice | log start            | step       |
    |------------|----------------------|------------|
    | no         | any                  | READ_AGAIN |
    | yes        | unknown              | READ_AGAIN |
    | yes        | above the gap's from | LOST       |
    | yes        | at or below it       | CONTINUE   |
    """
    if read_twice is None or log_start is None:
        return GapStep.READ_AGAIN
    return GapStep.LOST if log_start > read_twice.from_offset else GapStep.CONTINUE
