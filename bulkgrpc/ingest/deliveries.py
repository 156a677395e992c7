"""Tracks the messages of one stream in flight to the record log, and how far the job is stored without a hole."""

from __future__ import annotations

import asyncio
import collections
import time
from collections.abc import Callable
from dataclasses import dataclass

from bulkgrpc import limits
from bulkgrpc.ingest.byte_budget import ByteBudget
from bulkgrpc.ingest.messages import Batch
from bulkgrpc.ingest.ports import Delivered, RecordLogUnavailable, RecordTooLarge
from bulkgrpc.ingest.refusals import batch_above_topic, kafka_unavailable

STALL_CHECK_S = 1.0
"""Interval at which a wait checks whether delivery has stalled."""
GRACE_S = 2.0
"""The record log reports a timeout itself; a delivery counts as failed if the report is late by this much."""


@dataclass(slots=True)
class _Sent:
    """One message in flight. `sequence` is None for a seal."""

    sequence: int | None
    records: int
    sent_at_s: float
    digest: bytes = b""
    delivered: bool = False


class Deliveries:
    """Counts a stream's batches as delivered, in the order in which they were sent.

    `next_sequence` advances past a batch only once it and all before it are stored. After a failure it never advances.

    next_sequence: every batch before it is stored. accepted: the records of the job's batches before it.
    """

    def __init__(
        self, next_sequence: int, accepted: int, budget: ByteBudget, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.next_sequence = next_sequence
        self.accepted = accepted
        self._budget = budget
        self._clock = clock
        self._sent: collections.deque[_Sent] = collections.deque()
        self._failure: str | RecordTooLarge = ""
        self._changed = asyncio.Event()
        self._closed = False
        self._resent = False
        self._digests: collections.deque[bytes] = collections.deque(maxlen=limits.RECENT_DIGESTS_MAX)

    def expect(self, batch: Batch | None, budget_bytes: int) -> Delivered:
        """Register a batch (None: a seal) that is sent next; return the callback of its delivery.

        budget_bytes: its bytes of the budget, released on delivery and on failure, also after this stream has ended.
        """
        now_s = self._clock()
        sent = _Sent(None, 0, now_s) if batch is None else _Sent(batch.sequence, batch.records, now_s, batch.digest)
        self._sent.append(sent)

        def delivered(error: RecordLogUnavailable | None) -> None:
            self._budget.release(budget_bytes)
            if error is not None:
                self.fail(error if isinstance(error, RecordTooLarge) else str(error))
            else:
                sent.delivered = True
                self._advance()

        return delivered

    def acknowledge_again(self) -> None:
        """Have `progress` return once more: a batch that is stored was sent again, and its sender awaits an answer."""
        self._resent = True
        self._changed.set()

    def take_digests(self) -> tuple[bytes, ...]:
        """Return the digests of the batches right before `next_sequence` that were not taken yet."""
        taken = tuple(self._digests)
        self._digests.clear()
        return taken

    def fail(self, cause: str | RecordTooLarge) -> None:
        """Stop at `next_sequence`: a message was not stored, so nothing after it is acknowledged."""
        self._failure = self._failure or cause
        self._changed.set()

    def close(self) -> None:
        """Let `progress` end: nothing more is sent."""
        self._closed = True
        self._changed.set()

    async def all_stored(self) -> None:
        """Wait until everything sent is stored.

        Raises Unavailable (KAFKA_UNAVAILABLE) if a message cannot be stored, or not in time; TooMuch (BATCH_TOO_LARGE)
        if it is above the topic's limit.
        """
        while self._check() and self._sent:
            await self._wait()

    async def progress(self, after: int) -> bool:
        """Wait until `next_sequence` is above `after`, or a batch was sent again; False if neither can happen any more.

        Raises what `all_stored` raises. The two share one event: never wait for both at the same time.
        """
        while self._check() and self.next_sequence <= after and not self._resent:
            if self._closed and not self._sent:
                return False
            await self._wait()
        self._resent = False
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
            async with asyncio.timeout(STALL_CHECK_S):
                await self._changed.wait()
        except TimeoutError:
            if self._sent and self._clock() - self._sent[0].sent_at_s > limits.DELIVERY_TIMEOUT_S + GRACE_S:
                self.fail("no acknowledgement in time")

    def _check(self) -> bool:
        if isinstance(self._failure, RecordTooLarge):
            raise batch_above_topic(self._failure)
        if self._failure:
            raise kafka_unavailable(self._failure)
        return True
