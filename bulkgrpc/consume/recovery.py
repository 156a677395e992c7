"""What it takes to continue partitions whose logs do not match the ledger. Pure: an operator sees it first."""

from __future__ import annotations

import enum
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from bulkgrpc import limits
from bulkgrpc.consume.log_identity import LogRange, Recorded, Stop, StopCause, resume_offset
from bulkgrpc.consume.losses import LOST_IN_KAFKA

CLOCK_SKEW_S = 60.0
"""How far the clocks of servers, Kafka and PostgreSQL may be apart."""


class Mirror(enum.StrEnum):
    """Whether another topic has the messages of the one that the ledger knows."""

    NONE = "none"
    """It has none of them: it was created again."""
    SAME_OFFSETS = "same-offsets"
    """It has them at the same offsets."""
    OTHER_OFFSETS = "other-offsets"
    """It has them, in the same order in each partition, at other offsets."""


@dataclass(frozen=True, slots=True)
class Found:
    """What is known of a partition.

    stop_time: since when it is stopped for its cause, None if no worker stopped it. first_time: of the first message
    that the log has, None if it has none. first_kept: see `resume_offset`.
    """

    recorded: Recorded
    log: LogRange
    stop_time: datetime | None
    first_time: datetime | None
    first_kept: int


@dataclass(frozen=True, slots=True)
class PartitionPlan:
    """What is done about a partition. stop: why it is stopped, with the lost span. resume_at: the next offset then.

    fails_jobs: whether jobs that may have lost messages fail. created_before: of those, the ones that were created
    before this time; None is all of them.
    """

    partition: int
    next_offset: int
    log: LogRange
    stop: Stop
    resume_at: int
    fails_jobs: bool
    created_before: datetime | None


@dataclass(frozen=True, slots=True)
class Plan:
    """What is done about a topic. adopted_id: the ID that the ledger has then, None to keep the one that it has."""

    topic: str
    partitions: tuple[PartitionPlan, ...]
    recorded_id: uuid.UUID | None
    found_id: uuid.UUID
    adopted_id: uuid.UUID | None = None

    @property
    def failure_reason(self) -> str:
        """Why the jobs fail that may have lost messages, without where they continue."""
        spans = ", ".join(f"{one.stop.lost} of partition {one.partition}" for one in self.partitions if one.fails_jobs)
        return (
            f"{LOST_IN_KAFKA}: Kafka lost messages before they were applied ({self.topic}: {spans}), and batches of "
            "the job may be among them"
        )


def plan_partition(number: int, found: Found, stop: Stop, mirror: Mirror = Mirror.NONE) -> PartitionPlan:
    """Return what is done about a stopped partition. mirror: only of another topic.

    A job has messages in the lost span only if it was created before

    | cause            | the job was created before                                                             |
    |------------------|----------------------------------------------------------------------------------------|
    | MESSAGES_DELETED | the first message that is left was stored; with none left, any time                    |
    | any other        | the partition was stopped; if no worker stopped it, any time                           |
    """
    if mirror is Mirror.SAME_OFFSETS:
        resume_at = found.recorded.next_offset
    elif mirror is Mirror.OTHER_OFFSETS:
        resume_at = min(max(found.first_kept, found.log.start), found.log.end)
    else:
        resume_at = resume_offset(stop, found.log, found.first_kept)
    if stop.cause is StopCause.MESSAGES_DELETED:
        # A message is stamped when it is sent, and stored at most so much later.
        known, late_s = found.first_time, limits.DELIVERY_TIMEOUT_S + CLOCK_SKEW_S
    else:
        known, late_s = found.stop_time, CLOCK_SKEW_S
    before = None if known is None else known + timedelta(seconds=late_s)
    fails = mirror is Mirror.NONE
    return PartitionPlan(number, found.recorded.next_offset, found.log, stop, resume_at, fails, before)


def shifted(plan: PartitionPlan) -> bool:
    """Return whether a partition continues at offsets that it had before: parked messages must not have them."""
    return plan.resume_at < plan.next_offset


def fewer_partitions(recorded: Mapping[int, Recorded], partitions: int) -> bool:
    """Return whether a topic with so many partitions lacks one that jobs of the ledger may use."""
    return any(number >= partitions for number in recorded)
