"""Batches that Kafka lost after it had stored them: what shows a loss, and what a job says that fails for it. Pure.

A message says how far its job was stored when its server sent it (`Message.stored_sequence`). These batches are before
it in its partition. If its lane needs one of them next, that batch is gone: it was acknowledged, so its client does not
send it again by itself. The job fails and says at which batch it continues; its client opens it again with its
idempotency key, as another attempt.
"""

from __future__ import annotations

from dataclasses import dataclass

from bulkgrpc.model import Message

LOST_IN_KAFKA = "LOST_IN_KAFKA"
"""How the failure reason of a job begins that may have lost batches in Kafka."""


@dataclass(frozen=True, slots=True)
class Loss:
    """The batches [from_sequence, to_sequence) of a lane, of which at least the first is lost."""

    lane: int
    from_sequence: int
    to_sequence: int

    def reason(self, next_sequence: int) -> str:
        """Return why the job fails. next_sequence: the batch at which it continues when it is opened again."""
        first, last = self.from_sequence, self.to_sequence - 1
        lost = f"lost batch {first}" if first == last else f"lost batch {first}, and may have lost more up to {last}"
        return f"{LOST_IN_KAFKA}: Kafka {lost}, of lane {self.lane}, after it had stored it; {ways_out(next_sequence)}"


def ways_out(next_sequence: int) -> str:
    """Return what to do about a job that lost batches and continues at `next_sequence`."""
    return (
        "submit the job again with the same idempotency key: nothing is written twice, and it continues at batch "
        f"{next_sequence}"
    )


def loss_shown_by(message: Message, lane: int, lane_next_sequence: int, attempt: int | None) -> Loss | None:
    """Return what a lane that is not sealed has lost, if a message of it shows that.

    attempt: of the job's row, None if it has none.

    | the row's attempt       | lane's next         | result                                                       |
    |-------------------------|---------------------|--------------------------------------------------------------|
    | the message's           | < `stored_sequence` | a loss: the log had the next batch before the message        |
    | the message's           | ≥ `stored_sequence` | None: what is missing before the message was not stored      |
    | another                 | any                 | None: the message is older than the job's present attempt,   |
    |                         |                     | whose client sends again what was lost                       |
    | none                    | any                 | None: a job without a row cannot fail                        |
    """
    if attempt != message.attempt or lane_next_sequence >= message.stored_sequence:
        return None
    return Loss(lane, lane_next_sequence, message.stored_sequence)
