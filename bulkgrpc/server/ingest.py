"""IngestService: the transport around `stream`."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from bulkgrpc import limits
from bulkgrpc.errors import Invalid, Reason, TooLate
from bulkgrpc.model import Job, JobKey
from bulkgrpc.redis.job import LiveJob, overlay
from bulkgrpc.server.budget import ByteBudget
from bulkgrpc.server.caller import WRITE, Callers
from bulkgrpc.server.gate import Gate
from bulkgrpc.server.guard import Context, metadata_of
from bulkgrpc.server.messages import Seal, closed, read_batch, read_header, unsealed
from bulkgrpc.server.notes import Notes
from bulkgrpc.server.opening import OpenedJob, Opener
from bulkgrpc.server.storage import PostgresUnavailable, Storage
from bulkgrpc.server.stream import Backbone, JobStream, Submission
from bulkgrpc.server.translate import to_job
from bulkgrpc.server.watching import JobWatch
from bulkgrpc.settings import ServerSettings
from bulkgrpc.v1 import ingest_pb2

HEADER_TIMEOUT_S: Final = 10.0
JOB_METADATA: Final = "bulkgrpc-job"
SETTLE_S: Final = 0.02
"""gRPC shows a broken stream as its end first and as a cancellation up to 2 ms later (measured, grpcio 1.85.1)."""

_TRACEPARENT: Final = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")


@dataclass(frozen=True, slots=True)
class Answers:
    """How an RPC tells its client what happens.

    opened: the job is open. acknowledged: every batch before a sequence is stored. ended: called once the client has
    ended its stream; does not return if it broke off instead.
    """

    opened: Callable[[OpenedJob], Awaitable[None]]
    acknowledged: Callable[[int], Awaitable[None]]
    ended: Callable[[int], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class IngestParts:
    """What the service works with; it owns none of them."""

    settings: ServerSettings
    callers: Callers
    gate: Gate
    opener: Opener
    backbone: Backbone
    budget: ByteBudget
    turns: asyncio.Semaphore
    notes: Notes
    storage: Storage
    watch: JobWatch
    now: Callable[[], datetime]


@dataclass(frozen=True, slots=True)
class Sealed:
    """The end of a stream: the job sealed, or as it was found."""

    job: Job
    replayed: bool


class IngestService:
    """Both RPCs. Requests are raw bytes, read one by one: Python never makes an object a record."""

    def __init__(self, parts: IngestParts) -> None:
        self._parts = parts

    async def submit_records(self, _: object, context: Context) -> ingest_pb2.SubmitRecordsResponse:
        """Take a whole job and answer once."""

        async def opened(job: OpenedJob) -> None:
            await context.send_initial_metadata(((JOB_METADATA, job.job.spec.key.name),))

        async def acknowledged(next_sequence: int) -> None:
            return

        async def ended(next_sequence: int) -> None:
            await asyncio.sleep(SETTLE_S)

        sealed = await self._serve(context, Answers(opened, acknowledged, ended))
        return ingest_pb2.SubmitRecordsResponse(job=to_job(sealed.job, self._parts.now()), replayed=sealed.replayed)

    async def stream_records(self, _: object, context: Context) -> None:
        """Take a job and acknowledge its batches as they are stored."""

        async def opened(job: OpenedJob) -> None:
            message = ingest_pb2.JobOpened(
                job=to_job(job.job, self._parts.now()), next_sequence=job.job.next_sequence, replayed=job.replayed
            )
            await context.write(ingest_pb2.StreamRecordsResponse(opened=message))

        async def acknowledged(next_sequence: int) -> None:
            message = ingest_pb2.BatchesAcknowledged(next_sequence=next_sequence)
            await context.write(ingest_pb2.StreamRecordsResponse(acknowledged=message))

        # A write to a client that broke off raises CancelledError, at once: it tells an end from a break.
        sealed = await self._serve(context, Answers(opened, acknowledged, acknowledged))
        message = ingest_pb2.JobSealed(job=to_job(sealed.job, self._parts.now()), replayed=sealed.replayed)
        await context.write(ingest_pb2.StreamRecordsResponse(sealed=message))

    async def _serve(self, context: Context, answers: Answers) -> Sealed:
        parts = self._parts
        metadata = metadata_of(context)
        with parts.gate.stream():
            caller = await parts.callers.identify(metadata)
            caller.require(WRITE)
            header = read_header(await _first(context))
            async with parts.opener.open(caller.tenant, header) as opened:
                await answers.opened(opened)
                if opened.replayed:
                    if (raw := await _next(context)) is not None and not self._is_seal(raw):
                        raise closed(opened.job)
                    return Sealed(opened.job, replayed=True)
                submission = self._submission(opened, metadata)
                stream = JobStream(submission, parts.backbone, parts.budget, parts.turns, opened.known, parts.now)
                try:
                    async with asyncio.timeout(None) as closing:
                        await self._receive(context, stream, opened, answers, closing, header.explicit_seal)
                        return await self._seal(stream, opened)
                except TimeoutError as error:
                    raise _seal_timeout(opened.job.spec.key) from error

    def _is_seal(self, raw: bytes) -> bool:
        settings = self._parts.settings
        return isinstance(read_batch(raw, settings.batch_bytes_max, settings.batch_records_max), Seal)

    def _submission(self, opened: OpenedJob, metadata: Iterable[tuple[str, str | bytes]]) -> Submission:
        settings, job = self._parts.settings, opened.job
        return Submission(
            spec=opened.spec,
            time_to_live_s=opened.time_to_live_s,
            partitions=job.partitions,
            next_sequence=job.next_sequence,
            accepted=job.counts.accepted,
            batch_bytes_max=settings.batch_bytes_max,
            batch_records_max=settings.batch_records_max,
            trace_context=_trace_context(metadata),
        )

    async def _receive(
        self,
        context: Context,
        stream: JobStream,
        opened: OpenedJob,
        answers: Answers,
        closing: asyncio.Timeout,
        explicit_seal: bool,
    ) -> None:
        """Take batches until the client ends its stream and all are stored and acknowledged; start `closing` then."""
        try:
            async with asyncio.TaskGroup() as tasks:
                guards = [
                    tasks.create_task(opened.lease.keep()),
                    tasks.create_task(self._parts.gate.until_expelled()),
                    tasks.create_task(self._parts.watch.until_ended(opened.job.spec.key)),
                ]
                acknowledging = tasks.create_task(self._acknowledge(stream, opened, answers))
                while (raw := await _next(context)) is not None:
                    batch = await stream.check(raw)
                    if batch is None:
                        break
                    # While Kafka is slow, many streams wait in the next line: each with its batch in memory once.
                    del raw
                    await stream.pass_on(batch)
                sealed = raw is not None
                if explicit_seal and not sealed:
                    raise unsealed(opened.job.spec.key.name)
                closing.reschedule(asyncio.get_running_loop().time() + limits.SEAL_TIMEOUT_S)
                stream.deliveries.close()
                await acknowledging
                if not sealed:
                    await answers.ended(stream.deliveries.next_sequence)
                for guard in guards:
                    guard.cancel()
        finally:
            # Before the hold is let go: the next stream of the job finds how far this one came.
            self._note(stream, opened)
            await self._parts.notes.flush()
        # The last look before the seal: a client that came back on another stream must find its job open.
        await opened.lease.confirm()

    async def _acknowledge(self, stream: JobStream, opened: OpenedJob, answers: Answers) -> None:
        """Tell the client how far its batches are stored, one answer for all that came since the last one."""
        told = stream.deliveries.next_sequence
        while await stream.deliveries.progress(told):
            told = stream.deliveries.next_sequence
            self._note(stream, opened)
            await answers.acknowledged(told)

    async def _seal(self, stream: JobStream, opened: OpenedJob) -> Sealed:
        parts = self._parts
        seal_time = parts.now()
        await stream.seal()
        live = opened.live(stream.deliveries, seal_time)
        row, _ = await asyncio.gather(self._seal_row(live.spec.key, seal_time), self._remember(live))
        return Sealed(live.as_job() if row is None else overlay(row, live), replayed=False)

    async def _seal_row(self, key: JobKey, seal_time: datetime) -> Job | None:
        """Mark the row; without PostgreSQL the worker that applies the seal does."""
        try:
            return await self._parts.storage.seal_job(key, seal_time)
        except PostgresUnavailable:
            return None

    async def _remember(self, live: LiveJob) -> None:
        # By the notes, not by itself: of two hundred streams that end at once, Redis is told a few times only.
        self._parts.notes.note(live)
        await self._parts.notes.flush()

    def _note(self, stream: JobStream, opened: OpenedJob) -> None:
        self._parts.notes.note(opened.live(stream.deliveries))


async def _next(context: Context) -> bytes | None:
    """Read the next message; None once the client has ended its stream."""
    # Not by the request iterator: that holds on to each message until the next one is asked for.
    raw: bytes | object = await context.read()
    return raw if isinstance(raw, bytes) else None


async def _first(context: Context) -> bytes | None:
    try:
        async with asyncio.timeout(HEADER_TIMEOUT_S):
            return await _next(context)
    except TimeoutError as error:
        raise Invalid(
            Reason.MISSING_HEADER, f"no header came within {HEADER_TIMEOUT_S:g} s: send a JobHeader first"
        ) from error


def _seal_timeout(key: JobKey) -> TooLate:
    return TooLate(
        Reason.SEAL_TIMEOUT,
        f"{key.name} was not stored as sealed within {limits.SEAL_TIMEOUT_S:g} s of the end of the stream; what was "
        "acknowledged stays: submit it again with the same idempotency key",
        job=key.name,
    )


def _trace_context(metadata: Iterable[tuple[str, str | bytes]]) -> str:
    found = dict(metadata).get("traceparent", "")
    return found if isinstance(found, str) and _TRACEPARENT.fullmatch(found) else ""
