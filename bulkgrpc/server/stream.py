"""The life of one open job on one stream, without a transport: take batches, send them on, seal."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Protocol

from confluent_kafka import KafkaError, KafkaException

from bulkgrpc import limits
from bulkgrpc.model import JobSpec, Kind, Message, lane_of
from bulkgrpc.server.budget import ByteBudget
from bulkgrpc.server.deliveries import Deliveries, kafka_unavailable
from bulkgrpc.server.messages import Batch, Seal, check_repeated, check_seal, check_sequence, read_batch

QUEUE_RETRY_S = 0.01
TURN_BYTES = 64 * 1024
"""From this size on a batch is checked in turn."""


class Backbone(Protocol):
    """What a stream needs of `bulkgrpc.kafka.producer.RecordsProducer`."""

    def send(
        self, partition: int, message: Message, payload: bytes, delivered: Callable[[KafkaError | None], None]
    ) -> None:
        """Send a message; see RecordsProducer.send."""


class Known(Protocol):
    """What a stream needs of `bulkgrpc.server.known.KnownBatches`."""

    async def digest(self, sequence: int) -> bytes:
        """Return the digest of a batch that was accepted; see KnownBatches.digest."""


@dataclass(frozen=True, slots=True)
class Submission:
    """What a stream is opened with: the job, where its lanes go, how far it came, how large a batch may be."""

    spec: JobSpec
    partitions: tuple[int, ...]
    next_sequence: int
    accepted: int
    batch_bytes_max: int
    batch_records_max: int
    trace_context: str = ""
    time_to_live_s: float = 0.0


class JobStream:
    """Checks a stream's batches, sends them on in order and seals the job.

    `check`, `pass_on` and `seal` are called by one task, one at a time; `deliveries` tells another what to acknowledge.
    turns: one for all streams of a process. A large batch takes milliseconds to check: without turns, two hundred of
    them would be checked in one round of the event loop, and every deadline of the process would pass meanwhile.
    """

    def __init__(
        self,
        submission: Submission,
        backbone: Backbone,
        budget: ByteBudget,
        turns: asyncio.Semaphore,
        known: Known,
        now: Callable[[], datetime],
    ) -> None:
        self._submission = submission
        self._backbone = backbone
        self._budget = budget
        self._turns = turns
        self._known = known
        self._now = now
        self._first = True
        self._next_sequence = submission.next_sequence
        self.deliveries = Deliveries(submission.next_sequence, submission.accepted, budget)

    async def check(self, raw: bytes) -> Batch | None:
        """Check the next batch; None: it is the seal. Raises Invalid, TooMuch, OutOfOrder as `messages` says."""
        submission = self._submission
        if len(raw) < TURN_BYTES:
            found = read_batch(raw, submission.batch_bytes_max, submission.batch_records_max)
        else:
            async with self._turns:
                found = read_batch(raw, submission.batch_bytes_max, submission.batch_records_max)
        if isinstance(found, Seal):
            check_seal(found.batches, max(self._next_sequence, submission.next_sequence))
            return None
        check_sequence(found.sequence, self._next_sequence, first=self._first)
        return found

    async def pass_on(self, batch: Batch) -> None:
        """Send on a batch that was checked; returns once it is handed to Kafka's client, which may be slow.

        A batch that was accepted before this stream is on Kafka: it is only compared with what was accepted then.
        Raises Unavailable (KAFKA_UNAVAILABLE) if Kafka takes nothing in time; Conflict (BATCH_CONFLICT) or
        Unavailable (RESUME_NOT_READY) for a batch that came again and is another, or cannot be compared.
        """
        if batch.sequence < self._submission.next_sequence:
            check_repeated(batch, await self._known.digest(batch.sequence))
            self.deliveries.repeat()
        else:
            held_bytes = await self._acquire(len(batch.payload))
            await self._send(batch, held_bytes, self._batch_message(batch))
        self._first = False
        self._next_sequence = batch.sequence + 1

    async def seal(self) -> None:
        """Send the seal on every lane after everything before it is stored, and wait until it is stored too.

        It stands after the last batch that is known to be stored, also if this stream sent only some again.
        Raises Unavailable if Kafka does not store it in time; the job is then open, or sealed, and can be sealed again.
        """
        await self.deliveries.settled()
        sequence, accepted = self.deliveries.next_sequence, self.deliveries.accepted
        for lane in range(len(self._submission.partitions)):
            await self._send(None, 0, self._message(Kind.SEAL, lane, sequence, job_records=accepted))
        await self.deliveries.settled()

    def _batch_message(self, batch: Batch) -> Message:
        lane = lane_of(batch.sequence, len(self._submission.partitions))
        message = self._message(Kind.BATCH, lane, batch.sequence, records=batch.records)
        time_to_live_s = self._submission.time_to_live_s
        expires_at = message.sent_at + timedelta(seconds=time_to_live_s) if time_to_live_s else None
        return replace(message, digest=batch.digest, expires_at=expires_at)

    def _message(self, kind: Kind, lane: int, sequence: int, *, records: int = 0, job_records: int = 0) -> Message:
        partitions = self._submission.partitions
        return Message(
            kind=kind,
            spec=self._submission.spec,
            lane=lane,
            sequence=sequence,
            records=records,
            job_records=job_records,
            sent_at=self._now(),
            trace_context=self._submission.trace_context,
            partitions=partitions if len(partitions) > 1 else (),
        )

    async def _acquire(self, size_bytes: int) -> int:
        try:
            async with asyncio.timeout(limits.DELIVERY_TIMEOUT_S):
                return await self._budget.acquire(size_bytes)
        except TimeoutError as error:
            raise kafka_unavailable("it takes batches too slowly") from error

    async def _send(self, batch: Batch | None, held_bytes: int, message: Message) -> None:
        payload = b"" if batch is None else batch.payload
        partition = self._submission.partitions[message.lane]
        delivered = self.deliveries.expect(batch, held_bytes)
        loop = asyncio.get_running_loop()
        give_up_s = loop.time() + limits.DELIVERY_TIMEOUT_S
        sent = False
        try:
            while not sent:
                try:
                    self._backbone.send(partition, message, payload, delivered)
                    sent = True
                except BufferError as error:
                    # The budget is below librdkafka's queue, so only very many very small batches come here.
                    if loop.time() > give_up_s:
                        raise kafka_unavailable("its queue is full") from error
                    await asyncio.sleep(QUEUE_RETRY_S)
                except KafkaException as error:
                    raise kafka_unavailable(str(error.args[0])) from error
        finally:
            if not sent:
                self._budget.release(held_bytes)
                self.deliveries.fail("a batch was not handed over")
