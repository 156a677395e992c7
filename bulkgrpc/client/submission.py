"""One submission: draws batches, streams them, and comes back after every broken stream until the job is sealed.

The job stays open whatever is raised here: only a seal seals it, sent when everything was drawn and sent; the stream is
cancelled in every other case.
"""

from __future__ import annotations

import asyncio
import random
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field

import grpc

from bulkgrpc.client.connection import Connection, RecordStream
from bulkgrpc.client.errors import BrokenUnderWrite, BulkError, CallFailed, GaveUp, Refused
from bulkgrpc.client.model import options_message
from bulkgrpc.client.packing import varint
from bulkgrpc.client.retry import Patience, pause_s
from bulkgrpc.client.send_queue import Outbox, SourceFailed
from bulkgrpc.client.send_window import Numbered
from bulkgrpc.errors import NotNow, Reason
from bulkgrpc.model import JobOptions, JobState
from bulkgrpc.v1 import ingest_pb2, jobs_pb2
from bulkgrpc.wire.v1 import wire_pb2

_SEQUENCE_TAG = b"\x08"
"""Field 1, varint: `RecordBatch.sequence`."""


@dataclass(frozen=True, slots=True)
class Header:
    """What opens a job, the same on every stream of a submission."""

    dataset: str
    idempotency_key: str
    labels: Mapping[str, str] = field(default_factory=dict)
    options: JobOptions = JobOptions()
    dataset_version: int = 0
    session_id: str = field(default_factory=lambda: uuid.uuid4().hex)

    def message(self, first_sequence: int) -> bytes:
        """Return the first message of a stream whose first batch will be `first_sequence`."""
        header = ingest_pb2.JobHeader(
            dataset=self.dataset,
            idempotency_key=self.idempotency_key,
            labels=self.labels,
            session_id=self.session_id,
            first_sequence=first_sequence,
            options=options_message(self.options),
            dataset_version=self.dataset_version,
            explicit_seal=True,
        )
        return wire_pb2.StreamMessage(header=header).SerializeToString()


def batch_message(numbered: Numbered) -> bytes:
    """Return the stream message of a batch. Fields of a message may come in any order, so its bytes are not parsed."""
    batch = _SEQUENCE_TAG + varint(numbered.sequence) + numbered.batch.payload
    return wire_pb2.StreamMessage(batch=batch).SerializeToString()


class Submission:
    """The streams of one submission, one after the other, until one of them seals the job.

    opened: the job, as the server told it last; None before the first stream was opened. replayed: whether the job was
    sealed before, so that nothing was changed.
    """

    def __init__(self, connection: Connection, header: Header, outbox: Outbox) -> None:
        self._connection = connection
        self._config = connection.config
        self._header = header
        self._outbox = outbox
        self._now_s = asyncio.get_running_loop().time
        self._patience = Patience(self._config, reached=connection.reached)
        self._ended = False
        self.opened: jobs_pb2.Job | None = None
        self.replayed = False

    async def run(self) -> jobs_pb2.Job:
        """Submit everything and return the sealed job.

        Raises BulkError if the server refuses, cannot be reached, or nothing comes on for `retry_deadline_s`;
        SourceFailed if drawing failed. Nothing is opened before the first batch is there.
        """
        await self._outbox.begun()
        while True:
            try:
                return await self._stream()
            except BulkError as failure:
                await self._pause(failure)

    async def _pause(self, failure: BulkError) -> None:
        """Wait until the next stream may be opened; raise if there should be none."""
        if not failure.retriable:
            raise failure
        self._patience = self._patience.failed(self._now_s(), reached=self._connection.reached)
        pause = pause_s(self._config, self._patience.failures, failure.retry_after_s, random.random())  # noqa: S311 - no secret
        if self._patience.exhausted(self._now_s() + pause, self._config.retry_deadline_s):
            if self.opened is None and not self._patience.reached:
                raise failure
            raise GaveUp(self._header.idempotency_key, self._patience.failing_s(self._now_s()), failure)
        await asyncio.sleep(pause)

    async def _stream(self) -> jobs_pb2.Job:
        """Open a stream, send what is to be sent, and return the job when it is sealed."""
        first_sequence = self._outbox.window.rewind()
        self._ended = False
        call = self._connection.open_stream()
        try:
            async with asyncio.timeout(self._config.open_deadline_s) as watch:
                await call.write(self._header.message(first_sequence))
                opened = (await _read(call)).opened
                self._take_opened(opened)
                if opened.replayed:
                    if not self.replayed and _ended_before_seal(opened.job):
                        raise Refused(_ended(opened.job))
                    await call.done_writing()
                    return opened.job
                return await self._exchange(call, watch)
        except TimeoutError as error:
            message = f"{self._connection.target} did not answer the stream in time"
            raise CallFailed("DEADLINE_EXCEEDED", message, retriable=True) from error
        except grpc.RpcError as error:
            understood = self._connection.understand(error)
            # The server's reason was lost. Batches sent one by one leave it the time to be heard.
            self._outbox.one_at_a_time = isinstance(understood, BrokenUnderWrite)
            raise understood from error
        except asyncio.InvalidStateError as error:
            # grpc.aio's answer to a write on a call that ended in the meantime; reading tells why.
            raise await self._why_ended(call) from error
        finally:
            call.cancel()

    def _take_opened(self, opened: ingest_pb2.JobOpened) -> None:
        self._connection.reached = True
        # A new server's answer is no progress: one that takes the stream and drops it must not keep us here for ever.
        first = self.opened is None
        news = first or opened.replayed
        # Sealed on an earlier stream of this very submission, whose answer was lost, is no replay.
        self.replayed = opened.replayed and first
        self.opened = opened.job
        if not opened.replayed and opened.next_sequence < self._outbox.window.first_sequence:
            raise CallFailed(
                "LOST_BATCHES",
                f"{opened.job.name} goes on at batch {opened.next_sequence}, but all before batch "
                f"{self._outbox.window.first_sequence} were acknowledged: submit it again under a new key",
                retriable=False,
            )
        # What an earlier submission brought is skipped, but for its last batch: sent again it shows the server whether
        # these are the same batches.
        known = opened.next_sequence - (first and not opened.replayed and opened.next_sequence > 0)
        if self._outbox.acknowledge(known) or news:
            self._patience = self._patience.progressed()

    async def _exchange(self, call: RecordStream, watch: asyncio.Timeout) -> jobs_pb2.Job:
        sending = asyncio.create_task(self._send(call, watch))
        receiving = asyncio.create_task(self._receive(call, watch))
        try:
            await asyncio.wait((sending, receiving), return_when=asyncio.FIRST_COMPLETED)
            if sending.done() and not receiving.done():
                sending.result()
            return await receiving
        finally:
            for task in (sending, receiving):
                task.cancel()
            await asyncio.gather(sending, receiving, return_exceptions=True)

    async def _send(self, call: RecordStream, watch: asyncio.Timeout) -> None:
        """Send every batch, then the seal, and end the stream."""
        watch.reschedule(None)
        try:
            while (numbered := await self._outbox.take()) is not None:
                if watch.when() is None:
                    watch.reschedule(self._now_s() + self._config.acknowledge_deadline_s)
                await call.write(batch_message(numbered))
            self._ended = True
            watch.reschedule(self._now_s() + self._config.acknowledge_deadline_s)
            seal = ingest_pb2.Seal(batches=self._outbox.window.next_sequence)
            await call.write(wire_pb2.StreamMessage(seal=seal).SerializeToString())
            await call.done_writing()
        except (grpc.RpcError, asyncio.InvalidStateError):
            # The call ended under the write. Reading tells why, so this is not the place to say it.
            return

    async def _receive(self, call: RecordStream, watch: asyncio.Timeout) -> jobs_pb2.Job:
        while True:
            answer = await _read(call)
            if answer.HasField("sealed"):
                self._outbox.acknowledge(self._outbox.window.next_sequence)
                return answer.sealed.job
            if self._outbox.acknowledge(answer.acknowledged.next_sequence):
                self._outbox.one_at_a_time = False
                self._patience = self._patience.progressed()
                waits = self._outbox.window.awaits_answer or self._ended
                watch.reschedule(self._now_s() + self._config.acknowledge_deadline_s if waits else None)

    async def _why_ended(self, call: RecordStream) -> BulkError:
        code, details = await call.code(), await call.details()
        return CallFailed(code.name, f"{self._connection.target} ended the stream: {details}", retriable=True)


def _ended_before_seal(job: jobs_pb2.Job) -> bool:
    early = (JobState.CANCELLED, JobState.EXPIRED, JobState.FAILED)
    return JobState(job.state or JobState.OPEN) in early and not job.HasField("seal_time")


def _ended(job: jobs_pb2.Job) -> NotNow:
    """Return what the server says to a stream whose job ends; for one that was broken at that time."""
    why = f": {job.failure}" if job.failure else ""
    return NotNow(
        Reason.JOB_ENDED,
        f"{job.name} ended as {JobState(job.state).name} before everything was sent{why}; submit what is left as "
        "another job",
    )


async def _read(call: RecordStream) -> ingest_pb2.StreamRecordsResponse:
    try:
        answer = await call.read()
    except asyncio.CancelledError as error:
        # grpc.aio raises this also for a call that the server cancelled; only a request to this task is a cancellation.
        task = asyncio.current_task()
        if task is None or task.cancelling() or not call.done():
            raise
        raise CallFailed("CANCELLED", "the server cancelled the stream", retriable=True) from error
    if answer is grpc.aio.EOF:
        raise CallFailed("UNAVAILABLE", "the server ended the stream before the job was sealed", retriable=True)
    assert isinstance(answer, ingest_pb2.StreamRecordsResponse)  # noqa: S101 — narrows the type: it is EOF or this
    return answer


__all__ = ["Header", "SourceFailed", "Submission", "batch_message"]
