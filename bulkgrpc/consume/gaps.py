"""Whether offsets that the record log skips may be passed over. Pure.

Kafka shows a consumer neither the control records of transactions nor the messages of aborted ones (`read_committed`).
A server uses no transactions, so it acknowledged none of these: they are passed over. Messages below the start of
Kafka's log are lost.

The offsets alone do not show whether compaction, or a broken disk, deleted messages in the middle of the log. So every
span that is passed over is reported.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field


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


@dataclass(slots=True)
class GapWatch:
    """Remembers the last gap of each partition. Two reads in a row decide: the first may have been disturbed."""

    _last: dict[int, Gap] = field(default_factory=dict)
    _passed_over: dict[int, int] = field(default_factory=dict)

    def read(self, gap: Gap) -> Gap | None:
        """Note that a read did not return a gap; return what of it the read before did not return either.

        | the last gap of the partition  | result                                                       |
        |--------------------------------|--------------------------------------------------------------|
        | none, or from another offset   | None: one read                                               |
        | from the same offset           | up to the smaller end: the log grew, or a message was found  |
        """
        last = self._last.get(gap.partition)
        self._last[gap.partition] = gap
        if last is None or last.from_offset != gap.from_offset:
            return None
        return Gap(gap.partition, gap.from_offset, min(last.to_offset, gap.to_offset))

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
