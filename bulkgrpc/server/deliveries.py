"""What of one stream is on its way to Kafka, and how far everything before it has arrived."""

from __future__ import annotations

import asyncio
import collections
import time
from collections.abc import Callable
from dataclasses import dataclass

from confluent_kafka import KafkaError

from bulkgrpc import limits
from bulkgrpc.errors import Reason, Unavailable
from bulkgrpc.redis.job import DIGESTS_MAX
from bulkgrpc.server.budget import ByteBudget
from bulkgrpc.server.messages import Batch

LOOK_AGAIN_S = 1.0
"""How often a wait looks whether delivery has stalled."""
GRACE_S = 2.0
"""librdkafka tells a timeout itself; only if it is late by this much do we."""


@dataclass(slots=True)
class _Sent:
    """One message on its way. `sequence` is None for a seal."""

    sequence: int | None
    records: int
    sent_at_s: float
    digest: bytes = b""
    delivered: bool = False


class Deliveries:
    """Counts a stream's batches as delivered, in the order they were sent.

    The front moves over a batch only once it and all before it are stored. After a failure it stands still for good.

    next_sequence: every batch before it is stored. accepted: the job's records up to there.
    """

    def __init__(
        self, next_sequence: int, accepted: int, budget: ByteBudget, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.next_sequence = next_sequence
        self.accepted = accepted
        self._budget = budget
        self._clock = clock
        self._sent: collections.deque[_Sent] = collections.deque()
        self._failure = ""
        self._changed = asyncio.Event()
        self._closed = False
        self._repeated = False
        self._digests: collections.deque[bytes] = collections.deque(maxlen=DIGESTS_MAX)

    def expect(self, batch: Batch | None, held_bytes: int) -> Callable[[KafkaError | None], None]:
        """Note that a batch (None: the seal) is sent next; return what its delivery calls.

        held_bytes: what it holds of the budget, given back whatever becomes of it, and of this stream.
        """
        now_s = self._clock()
        sent = _Sent(None, 0, now_s) if batch is None else _Sent(batch.sequence, batch.records, now_s, batch.digest)
        self._sent.append(sent)

        def delivered(error: KafkaError | None) -> None:
            self._budget.release(held_bytes)
            if error is not None:
                self.fail(error.str())
            else:
                sent.delivered = True
                self._advance()

        return delivered

    def repeat(self) -> None:
        """Note that a batch came again which is stored: whoever sent it is told once more how far the job is."""
        self._repeated = True
        self._changed.set()

    def take_digests(self) -> tuple[bytes, ...]:
        """Return the digests of the batches right before `next_sequence` not taken yet, at most DIGESTS_MAX."""
        taken = tuple(self._digests)
        self._digests.clear()
        return taken

    def fail(self, cause: str) -> None:
        """Stop the front: something was not stored, so nothing after it is acknowledged."""
        self._failure = self._failure or cause
        self._changed.set()

    def close(self) -> None:
        """Let `progress` end: nothing more will be sent."""
        self._closed = True
        self._changed.set()

    async def settled(self) -> None:
        """Wait until everything sent is stored.

        Raises Unavailable (KAFKA_UNAVAILABLE) if something cannot be stored, or not in time.
        """
        while self._check() and self._sent:
            await self._wait()

    async def progress(self, after: int) -> bool:
        """Wait until `next_sequence` is above `after`, or a batch was repeated; False if neither will ever be.

        Raises as `settled`. For one waiter besides `settled`, never at the same time.
        """
        while self._check() and self.next_sequence <= after and not self._repeated:
            if self._closed and not self._sent:
                return False
            await self._wait()
        self._repeated = False
        return True

    def _advance(self) -> None:
        if self._failure:
            return
        while self._sent and self._sent[0].delivered:
            first = self._sent.popleft()
            if first.sequence is not None:
                self._digests.append(first.digest)
                self.next_sequence = first.sequence + 1
                self.accepted += first.records
        self._changed.set()

    async def _wait(self) -> None:
        self._changed.clear()
        try:
            async with asyncio.timeout(LOOK_AGAIN_S):
                await self._changed.wait()
        except TimeoutError:
            if self._sent and self._clock() - self._sent[0].sent_at_s > limits.DELIVERY_TIMEOUT_S + GRACE_S:
                self.fail("no acknowledgement in time")

    def _check(self) -> bool:
        if self._failure:
            raise kafka_unavailable(self._failure)
        return True


def kafka_unavailable(cause: str) -> Unavailable:
    """Return the refusal for a batch that Kafka did not take."""
    return Unavailable(
        Reason.KAFKA_UNAVAILABLE,
        f"Kafka did not store a batch ({cause}): open the job again with its idempotency key and go on from the first "
        "batch that was not acknowledged",
    )
