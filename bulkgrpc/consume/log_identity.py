"""Whether a partition's log is the one that the ledger's position is of, and still has what comes next. Pure.

The ledger has offsets. They mean something only in the log that they were read from: a topic that was deleted and
created again has the same name, and another ID. A partition that does not match is stopped: it is neither fetched nor
written until the log matches again, or an operator decided what to do about the lost span.
"""

from __future__ import annotations

import enum
import uuid
from dataclasses import dataclass


class StopCause(enum.StrEnum):
    """Why a partition is stopped. The values are those of `bulk.partition_logs.stop_cause`."""

    TOPIC_MISSING = "topic_missing"
    """Kafka has no topic of this name."""
    TOPIC_REPLACED = "topic_replaced"
    """The topic has another ID: it was deleted and created again, or is another cluster's."""
    MESSAGES_DELETED = "messages_deleted"
    """The log starts above the next offset: Kafka's retention deleted messages that were not applied."""
    LOG_TRUNCATED = "log_truncated"
    """The log ends below the next offset: new messages would get offsets that the ledger takes for applied."""

    @property
    def of_topic(self) -> bool:
        """Whether it is about the topic as a whole."""
        return self in (StopCause.TOPIC_MISSING, StopCause.TOPIC_REPLACED)


@dataclass(frozen=True, slots=True)
class LogRange:
    """The messages that a partition has: [start, end). end: the offset that its next message will have."""

    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Stop:
    """Why a partition is stopped, and the offsets that are lost: [from_offset, to_offset), None if not known."""

    cause: StopCause
    from_offset: int
    to_offset: int | None

    @property
    def lost(self) -> str:
        """The lost span, as text."""
        return f"[{self.from_offset}, {'…' if self.to_offset is None else self.to_offset})"

    def remedy(self, partition: int) -> str:
        """Return what an operator can do about it."""
        if self.cause is StopCause.TOPIC_MISSING:
            return "restore the topic, or create it with as many partitions and run `bulkgrpc ledger adopt-topic`"
        if self.cause is StopCause.TOPIC_REPLACED:
            return "run `bulkgrpc ledger adopt-topic`"
        return f"run `bulkgrpc ledger accept-loss --partition {partition}`"


@dataclass(frozen=True, slots=True)
class Recorded:
    """What the ledger has of a partition: its position, the log as last seen, and why it is stopped if it is."""

    next_offset: int
    log: LogRange | None = None
    stop: Stop | None = None


def examine(
    recorded_id: uuid.UUID | None, found_id: uuid.UUID | None, recorded: Recorded, log: LogRange
) -> Stop | None:
    """Return why a partition must stop, None if the ledger's position is one of its log.

    recorded_id: None if the ledger has none yet. found_id: Kafka's, None if it has no such topic. log: what Kafka has
    of the partition; ignored unless the topic is the recorded one.

    | found ID   | recorded ID | log                                        | returns          | lost                  |
    |------------|-------------|--------------------------------------------|------------------|-----------------------|
    | none       | any         | any                                        | TOPIC_MISSING    | [next, last seen end) |
    | some       | another     | any                                        | TOPIC_REPLACED   | [next, last seen end) |
    | the same   | or none     | start > next                               | MESSAGES_DELETED | [next, start)         |
    | the same   | or none     | end < next                                 | LOG_TRUNCATED    | [end, next)           |
    | the same   | or none     | start ≤ next ≤ end                         | None             |                       |

    The last seen end may be older than the last messages: then more is lost.
    """
    next_offset = recorded.next_offset
    if found_id is None or recorded_id not in (None, found_id):
        cause = StopCause.TOPIC_MISSING if found_id is None else StopCause.TOPIC_REPLACED
        seen = recorded.log
        return Stop(cause, next_offset, None if seen is None else max(seen.end, next_offset))
    if log.start > next_offset:
        return Stop(StopCause.MESSAGES_DELETED, next_offset, log.start)
    if log.end < next_offset:
        return Stop(StopCause.LOG_TRUNCATED, log.end, next_offset)
    return None


def resume_offset(stop: Stop, log: LogRange, first_kept: int) -> int:
    """Return the offset at which a stopped partition continues once its loss is accepted.

    first_kept: the offset of the first message that is not older than the ledger's jobs; `log.end` if there is none.

    | cause            | continues at                                                                              |
    |------------------|-------------------------------------------------------------------------------------------|
    | MESSAGES_DELETED | the start of the log                                                                      |
    | LOG_TRUNCATED    | `first_kept`: what was appended since the truncation is not applied, and nothing shows    |
    |                  | where it begins; batches that were applied are recognized by their jobs                   |
    | TOPIC_REPLACED   | the start of the log: nothing of it was applied                                           |
    | TOPIC_MISSING    | the start of the log                                                                      |
    """
    if stop.cause is StopCause.LOG_TRUNCATED:
        return min(max(first_kept, log.start), log.end)
    return log.start
