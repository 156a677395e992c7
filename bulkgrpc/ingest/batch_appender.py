"""Appends one stream's batches of an open job to the record log, in order, and seals the job."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Protocol

from bulkgrpc import limits
from bulkgrpc.ingest.byte_budget import ByteBudget
from bulkgrpc.ingest.deliveries import Deliveries
from bulkgrpc.ingest.messages import Batch, Seal, check_repeated, check_seal, check_sequence, parse_message
from bulkgrpc.ingest.parked_limit import ParkedLimit
from bulkgrpc.ingest.ports import RecordLog, RecordLogFull, RecordLogUnavailable
from bulkgrpc.ingest.refusals import kafka_unavailable
from bulkgrpc.ingest.topic_guard import TopicGuard
from bulkgrpc.model import JobSpec, Kind, Message, lane_of

QUEUE_RETRY_S = 0.01
TURN_BYTES = 64 * 1024
"""Size from which a message is parsed in turn."""


class Digests(Protocol):
    """The digests of accepted batches; see `accepted_digests.AcceptedDigests`."""

    async def digest(self, sequence: int) -> bytes:
        """Return the digest of a batch that was accepted. Raises Unavailable (RESUME_NOT_READY)."""


@dataclass(frozen=True, slots=True)
class AppendPlan:
    """What a stream appends to: the job, the partitions of its lanes, its progress, the limits of a batch.

    spec: the job's, with the dataset version of the stream's batches. time_to_live_s: of its batches; 0 is none.
    schema: digest of the definition of that version; empty if it is not known. attempt: the job's.
    """

    spec: JobSpec
    partitions: tuple[int, ...]
    next_sequence: int
    accepted: int
    batch_bytes_max: int
    batch_records_max: int
    trace_context: str = ""
    time_to_live_s: float = 0.0
    schema: bytes = b""
    attempt: int = 0


@dataclass(frozen=True, slots=True)
class LogAccess:
    """What the streams of a process share to append. Owned by the process.

    turns: parsing a large batch takes milliseconds; without turns, 200 streams would parse theirs in one round of the
    event loop, and every deadline of the process would pass meanwhile.
    """

    log: RecordLog
    budget: ByteBudget
    turns: asyncio.Semaphore
    now: Callable[[], datetime]
    parked: ParkedLimit
    topic: TopicGuard


class BatchAppender:
    """Checks a stream's batches, appends them in order and seals the job.

    `check`, `append` and `seal` are called by one task; another one waits on `deliveries` for what to acknowledge.
    """

    def __init__(self, plan: AppendPlan, access: LogAccess, accepted: Digests) -> None:
        self._plan = plan
        self._access = access
        self._accepted = accepted
        self._first = True
        self._next_sequence = plan.next_sequence
        self.deliveries = Deliveries(plan.next_sequence, plan.accepted, access.budget)

    async def check(self, raw: bytes) -> Batch | None:
        """Parse and check the next message; None: it is the seal. Raises Invalid, TooMuch, OutOfOrder (`messages`)."""
        plan = self._plan
        if len(raw) < TURN_BYTES:
            found = parse_message(raw, plan.batch_bytes_max, plan.batch_records_max)
        else:
            async with self._access.turns:
                found = parse_message(raw, plan.batch_bytes_max, plan.batch_records_max)
        if isinstance(found, Seal):
            check_seal(found.batch_count, max(self._next_sequence, plan.next_sequence))
            return None
        check_sequence(found.sequence, self._next_sequence, first=self._first)
        return found

    async def append(self, batch: Batch) -> None:
        """Append a checked batch; returns once the record log has queued it, which waits for a slow log.

        A batch that was accepted before this stream is already in the log: it is only compared with the accepted one.
        Raises Unavailable (KAFKA_UNAVAILABLE) if the log takes nothing in time, or (TOPIC_REPLACED, TOPIC_MISSING) if
        the ledger knows another one, TooMuch (DATASET_BLOCKED) if too much of the dataset is parked; for a batch sent
        again that differs, or cannot be compared, Conflict (BATCH_CONFLICT) or Unavailable (RESUME_NOT_READY).
        """
        if batch.sequence < self._plan.next_sequence:
            check_repeated(batch, await self._accepted.digest(batch.sequence))
            self.deliveries.acknowledge_again()
        else:
            self._access.topic.check()
            self._access.parked.check_batch(self._plan.spec.dataset, self._plan.spec.key.tenant)
            budget_bytes = await self._acquire(len(batch.payload))
            await self._send(batch, budget_bytes, self._batch_message(batch))
        self._first = False
        self._next_sequence = batch.sequence + 1

    async def seal(self) -> None:
        """Append the seal to every lane after everything before it is stored, and wait until the seals are stored.

        The seal follows the last batch that is known to be stored, also if this stream sent only some of them again.
        Raises Unavailable if the log does not store it in time; the job is then open or sealed; it may be sealed again.
        """
        await self.deliveries.all_stored()
        self._access.topic.check()
        sequence, accepted = self.deliveries.next_sequence, self.deliveries.accepted
        for lane in range(len(self._plan.partitions)):
            await self._send(None, 0, self._message(Kind.SEAL, lane, sequence, job_records=accepted))
        await self.deliveries.all_stored()

    def _batch_message(self, batch: Batch) -> Message:
        lane = lane_of(batch.sequence, len(self._plan.partitions))
        message = self._message(Kind.BATCH, lane, batch.sequence, records=batch.records)
        time_to_live_s = self._plan.time_to_live_s
        expires_at = message.sent_at + timedelta(seconds=time_to_live_s) if time_to_live_s else None
        return replace(message, digest=batch.digest, expires_at=expires_at)

    def _message(self, kind: Kind, lane: int, sequence: int, *, records: int = 0, job_records: int = 0) -> Message:
        partitions = self._plan.partitions
        return Message(
            kind=kind,
            spec=self._plan.spec,
            lane=lane,
            sequence=sequence,
            records=records,
            job_records=job_records,
            sent_at=self._access.now(),
            trace_context=self._plan.trace_context,
            partitions=partitions if len(partitions) > 1 else (),
            schema=self._plan.schema,
            stored_sequence=self.deliveries.next_sequence,
            attempt=self._plan.attempt,
        )

    async def _acquire(self, size_bytes: int) -> int:
        try:
            async with asyncio.timeout(limits.DELIVERY_TIMEOUT_S):
                return await self._access.budget.acquire(size_bytes)
        except TimeoutError as error:
            raise kafka_unavailable("it stores batches too slowly") from error

    async def _send(self, batch: Batch | None, budget_bytes: int, message: Message) -> None:
        payload = b"" if batch is None else batch.payload
        partition = self._plan.partitions[message.lane]
        delivered = self.deliveries.expect(batch, budget_bytes)
        loop = asyncio.get_running_loop()
        give_up_s = loop.time() + limits.DELIVERY_TIMEOUT_S
        sent = False
        try:
            while not sent:
                try:
                    self._access.log.append(partition, message, payload, delivered)
                    sent = True
                except RecordLogFull as error:
                    # The budget is below the log's queue, so only very many very small batches reach this.
                    if loop.time() > give_up_s:
                        raise kafka_unavailable("its queue is full") from error
                    await asyncio.sleep(QUEUE_RETRY_S)
                except RecordLogUnavailable as error:
                    raise kafka_unavailable(str(error)) from error
        finally:
            if not sent:
                self._access.budget.release(budget_bytes)
                self.deliveries.fail("a batch was not queued")
