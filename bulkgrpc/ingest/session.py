"""One stream of a job, from its header to its seal, for any front door.

The way of a stream: admit it, parse its header, open and lease its job (`job_opener`), check and append its batches
(`batch_appender`), acknowledge what is stored (`deliveries`), seal the job. A stream that ends without a seal, or
breaks, leaves its job open.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Final, Protocol

from bulkgrpc import limits
from bulkgrpc.errors import Invalid, Reason, TooLate
from bulkgrpc.ingest.admission import Admission, Slot
from bulkgrpc.ingest.batch_appender import AppendPlan, BatchAppender, LogAccess
from bulkgrpc.ingest.identity import Caller, until_expired
from bulkgrpc.ingest.job_opener import JobOpener, OpenJob
from bulkgrpc.ingest.job_view import merge
from bulkgrpc.ingest.job_watch import JobWatch
from bulkgrpc.ingest.live_job import LiveJob
from bulkgrpc.ingest.messages import Seal, parse_header, parse_message
from bulkgrpc.ingest.ports import JobStore, PostgresUnavailable
from bulkgrpc.ingest.progress_writer import ProgressWriter
from bulkgrpc.ingest.refusals import job_closed, missing_seal
from bulkgrpc.model import Job, JobKey

HEADER_TIMEOUT_S: Final = 10.0


class StreamTransport(Protocol):
    """What a front door provides for one stream."""

    @property
    def trace_context(self) -> str:
        """The caller's W3C `traceparent`; "" if there is none."""

    async def receive(self) -> bytes | None:
        """Return the next serialized stream message; None once the client has sent its last one."""

    async def send_opened(self, job: Job, *, replayed: bool) -> None:
        """Report that the job is open. replayed: it was sealed before, or has ended."""

    async def send_acknowledged(self, next_sequence: int) -> None:
        """Report that every batch before `next_sequence` is stored."""


@dataclass(frozen=True, slots=True)
class BatchLimits:
    """The largest batch that a stream may send."""

    bytes_max: int
    records_max: int


@dataclass(frozen=True, slots=True)
class SessionParts:
    """What sessions work with; they own none of it."""

    admission: Admission
    opener: JobOpener
    log_access: LogAccess
    progress: ProgressWriter
    jobs: JobStore
    watch: JobWatch
    batch_limits: BatchLimits
    now: Callable[[], datetime]


@dataclass(frozen=True, slots=True)
class SealedJob:
    """The job at the end of its stream. replayed: the job was sealed or had ended before, and nothing was changed."""

    job: Job
    replayed: bool


class IngestSession:
    """Runs one stream. `parts` are shared by all streams of the process."""

    def __init__(self, parts: SessionParts, caller: Caller, transport: StreamTransport) -> None:
        self._parts = parts
        self._caller = caller
        self._transport = transport

    async def run(self) -> SealedJob:
        """Run the stream until its job is sealed.

        Raises a Refusal; if a task of the stream refused, it is inside a BaseExceptionGroup.
        """
        with self._parts.admission.admit(self._caller.tenant) as slot:
            header = parse_header(await self._receive_first(slot))
            async with self._parts.opener.open(self._caller.tenant, header) as opened:
                await self._transport.send_opened(opened.job, replayed=opened.replayed)
                if opened.replayed:
                    return await self._replay(opened.job)
                appender = self._appender(opened)
                try:
                    async with asyncio.timeout(None) as sealing:
                        await self._append_all(appender, opened, slot, sealing)
                        return await self._seal(appender, opened)
                except TimeoutError as error:
                    raise _seal_timeout(opened.job.spec.key) from error

    async def _receive_first(self, slot: Slot) -> bytes | None:
        try:
            async with asyncio.timeout(HEADER_TIMEOUT_S):
                with slot.waiting():
                    return await self._transport.receive()
        except TimeoutError as error:
            raise Invalid(
                Reason.MISSING_HEADER, f"no header arrived within {HEADER_TIMEOUT_S:g} s: send a JobHeader first"
            ) from error

    async def _replay(self, job: Job) -> SealedJob:
        """Return a job that was sealed before or has ended. Raises NotNow if the stream sends batches for it."""
        batch_limits = self._parts.batch_limits
        raw = None
        # Nothing that may follow changes the answer, so it need not be waited for.
        with suppress(TimeoutError):
            async with asyncio.timeout(HEADER_TIMEOUT_S):
                raw = await self._transport.receive()
        if raw is not None and not isinstance(
            parse_message(raw, batch_limits.bytes_max, batch_limits.records_max), Seal
        ):
            raise job_closed(job)
        return SealedJob(job, replayed=True)

    def _appender(self, opened: OpenJob) -> BatchAppender:
        job, batch_limits = opened.job, self._parts.batch_limits
        plan = AppendPlan(
            spec=opened.spec,
            time_to_live_s=opened.time_to_live_s,
            partitions=job.partitions,
            next_sequence=job.next_sequence,
            accepted=job.counts.accepted,
            batch_bytes_max=batch_limits.bytes_max,
            batch_records_max=batch_limits.records_max,
            trace_context=self._transport.trace_context,
            schema=opened.schema,
            attempt=job.attempt,
        )
        return BatchAppender(plan, self._parts.log_access, opened.accepted)

    async def _append_all(self, appender: BatchAppender, opened: OpenJob, slot: Slot, sealing: asyncio.Timeout) -> None:
        """Append batches until the seal arrives and everything is stored and acknowledged; start `sealing` in between.

        Raises NotNow (MISSING_SEAL, JOB_ENDED), Busy (JOB_BUSY), Unavailable (DRAINING, IDLE_STREAM), Unauthenticated
        (TOKEN_EXPIRED) and what `appender` raises.
        """
        try:
            async with asyncio.TaskGroup() as tasks:
                guards = [
                    tasks.create_task(opened.lease.keep_renewed()),
                    tasks.create_task(self._parts.admission.until_disconnected()),
                    tasks.create_task(slot.until_taken()),
                    tasks.create_task(self._parts.watch.until_ended(opened.job.spec.key, opened.lease.epoch)),
                ]
                if self._caller.expire_time is not None:
                    guards.append(tasks.create_task(until_expired(self._caller.expire_time, self._parts.now)))
                acknowledging = tasks.create_task(self._acknowledge(appender, opened))
                await self._append_until_seal(appender, opened.job.spec.key, slot)
                sealing.reschedule(asyncio.get_running_loop().time() + limits.SEAL_TIMEOUT_S)
                appender.deliveries.close()
                await acknowledging
                await opened.lease.until_may_seal()
                for guard in guards:
                    guard.cancel()
        finally:
            # Before the lease is released: the next stream of the job must find this one's progress. What a superseded
            # stream has stored last may follow the seal, and is no progress.
            if opened.lease.held:
                self._parts.progress.record(opened.progress(appender.deliveries))
            await self._parts.progress.flush()
        # The last check before the seal: a client that reconnected on another stream must find its job open.
        await opened.lease.confirm()

    async def _append_until_seal(self, appender: BatchAppender, key: JobKey, slot: Slot) -> None:
        while (raw := await self._receive(slot)) is not None:
            batch = await appender.check(raw)
            if batch is None:
                return
            # While the log is slow, many streams wait in `append`: each keeps its batch in memory once, not twice.
            del raw
            await appender.append(batch)
        raise missing_seal(key)

    async def _receive(self, slot: Slot) -> bytes | None:
        with slot.waiting():
            return await self._transport.receive()

    async def _acknowledge(self, appender: BatchAppender, opened: OpenJob) -> None:
        """Acknowledge batches as they are stored, one answer for all that were stored since the last one.

        Raises what `lease.hold` raises; nothing is acknowledged then.
        """
        acknowledged = appender.deliveries.next_sequence
        while await appender.deliveries.progress(acknowledged):
            acknowledged = appender.deliveries.next_sequence
            # After `acknowledged` is read, and before it is sent: see docs/decisions/leases.md.
            await opened.lease.hold()
            self._parts.progress.record(opened.progress(appender.deliveries))
            await self._transport.send_acknowledged(acknowledged)

    async def _seal(self, appender: BatchAppender, opened: OpenJob) -> SealedJob:
        seal_time = self._parts.now()
        await appender.seal()
        # The answer acknowledges every batch, again perhaps after a pause.
        await opened.lease.hold()
        live = opened.progress(appender.deliveries, seal_time)
        # By the progress writer: of 200 streams that end together, Redis gets a few round trips only.
        self._parts.progress.record(live)
        row, _ = await asyncio.gather(self._seal_row(live, seal_time), self._parts.progress.flush())
        return SealedJob(merge(row, live), replayed=False)

    async def _seal_row(self, live: LiveJob, seal_time: datetime) -> Job | None:
        """Mark the row sealed; without PostgreSQL the worker that applies the seal does."""
        try:
            return await self._parts.jobs.seal_job(live.spec.key, seal_time, live.attempt)
        except PostgresUnavailable:
            return None


def _seal_timeout(key: JobKey) -> TooLate:
    return TooLate(
        Reason.SEAL_TIMEOUT,
        f"the seal of {key.name} was not stored within {limits.SEAL_TIMEOUT_S:g} s; what was acknowledged stays: "
        "submit the job again with the same idempotency key",
        job=key.name,
    )
