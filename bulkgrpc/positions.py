"""Positions in partitions and lanes, and what may be applied at them. Pure; imports nothing else of bulkgrpc."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from datetime import datetime


class Outcome(enum.Enum):
    """Whether a message, a span of offsets, or a batch may be applied. `may_apply_*` have the truth tables."""

    NEXT = "next"
    """It is the next one: apply it."""
    REPLAY = "replay"
    """It was applied before."""
    GAP = "gap"
    """Something before it is missing."""
    FENCED = "fenced"
    """Another worker owns the partition."""
    RESTARTED = "restarted"
    """PostgreSQL restarted, or another server took over: what is known of its ledger may not be there any more."""


@dataclass(frozen=True, slots=True)
class Ownership:
    """A worker's right to write a partition: from `next_offset` on, under `owner_epoch`.

    Acquiring a partition raises its epoch in the ledger. That fences the former owner, as a leader epoch does.
    server_start: when the PostgreSQL server started that this was read from. A restored database, or a standby that
    was promoted, has another one, and may be older than what the worker remembers.
    """

    partition: int
    next_offset: int
    owner_epoch: int
    server_start: datetime | None = None


def may_apply_span(
    ledger_next_offset: int, ledger_epoch: int, from_offset: int, owner_epoch: int, *, same_server: bool = True
) -> Outcome:
    """Return whether a span of offsets that starts at `from_offset` may be applied under `owner_epoch`.

    same_server: whether the ledger is read from the server that the position was read from, not restarted since.

    | ledger's epoch | server  | ledger's next offset | outcome   | the worker then                                  |
    |----------------|---------|----------------------|-----------|--------------------------------------------------|
    | != owner_epoch | any     | any                  | FENCED    | rolls back and releases the partition            |
    | = owner_epoch  | another | any                  | RESTARTED | discards the span, acquires the partition again  |
    | = owner_epoch  | same    | = from_offset        | NEXT      | applies the span                                 |
    | = owner_epoch  | same    | > from_offset        | REPLAY    | discards the span and seeks to the next offset   |
    | = owner_epoch  | same    | < from_offset        | GAP       | seeks to the next offset; stops if Kafka lost it |
    """
    if ledger_epoch != owner_epoch:
        return Outcome.FENCED
    if not same_server:
        return Outcome.RESTARTED
    if ledger_next_offset == from_offset:
        return Outcome.NEXT
    return Outcome.REPLAY if ledger_next_offset > from_offset else Outcome.GAP


def may_apply_batch(lane_next_sequence: int, sequence: int) -> Outcome:
    """Return whether a lane may apply a batch.

    | sequence            | outcome | meaning                                                                          |
    |---------------------|---------|----------------------------------------------------------------------------------|
    | = the lane's next   | NEXT    | apply it                                                                         |
    | < the lane's next   | REPLAY  | it was applied before                                                            |
    | > the lane's next   | GAP     | a batch before it is missing: if it was never acknowledged, neither was this:    |
    |                     |         | both are resent; `Message.stored_sequence` shows whether it is lost instead      |
    """
    if sequence == lane_next_sequence:
        return Outcome.NEXT
    return Outcome.REPLAY if sequence < lane_next_sequence else Outcome.GAP
