"""One submission: sends batches on a stream, and opens a new stream after each broken one, until the job is sealed.

If anything is raised here, the job stays open: only the Seal message seals it, and it is sent after all batches. In
every other case the stream is cancelled.
"""

from __future__ import annotations

import asyncio
import random
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field

import grpc

from bulkgrpc.client.connection import Connection, RecordStream
from bulkgrpc.client.errors import BrokenUnderWrite, BulkError, CallFailed, GaveUp, Refused, WrongInput
from bulkgrpc.client.model import options_message
from bulkgrpc.client.retry import RetryState, backoff_s
from bulkgrpc.client.send_queue import SendQueue, SourceFailed
from bulkgrpc.client.send_window import NumberedBatch
from bulkgrpc.datasets.framing import varint
from bulkgrpc.errors import NotNow, Reason
from bulkgrpc.model import JobOptions, JobState, is_dataset, is_idempotency_key
from bulkgrpc.v1 import ingest_pb2, jobs_pb2
from bulkgrpc.wire.v1 import wire_pb2

_SEQUENCE_TAG = b"\x08"
"""Field 1, varint: `RecordBatch.sequence`."""
_QUIET_S = 1.0
"""A stream that breaks after so long without a batch was closed by something between that closes idle connections."""


@dataclass(frozen=True, slots=True)
class Header:
    """The header that opens a job, the same on every stream of a submission except for the first sequence."""

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
        )
        return wire_pb2.StreamMessage(header=header).SerializeToString()


def batch_message(numbered: NumberedBatch) -> bytes:
    """Return the stream message of a batch. The sequence is prepended; the payload is not parsed."""
    batch = _SEQUENCE_TAG + varint(numbered.sequence) + numbered.batch.payload
    return wire_pb2.StreamMessage(batch=batch).SerializeToString()


class Submission:
    """The consecutive streams of one submission, until one of them seals the job.

    opened: the job as the server last returned it; None before the first stream. replayed: whether the job was sealed
    before this submission, so that nothing was sent.
    """

    def __init__(self, connection: Connection, header: Header, queue: SendQueue) -> None:
        self._connection = connection
        self._config = connection.config
        self._header = header
        self._queue = queue
        self._now_s = asyncio.get_running_loop().time
        self._retry = RetryState(self._config, reached=connection.reached)
        self._seal_sent = False
        self._token = ""
        self._token_replaced = False
        self._quiet_since_s: float | None = None
        self.opened: jobs_pb2.Job | None = None
        self.replayed = False

    async def run(self) -> jobs_pb2.Job:
        """Submit everything and return the sealed job.

        No stream is opened before the first batch. A stream that breaks while there is nothing to send is opened again,
        however often. Raises BulkError if the server refuses, is unreachable, or there is no progress for
        `retry_deadline_s`; SourceFailed if the source failed.
        """
        await self._queue.wait_first()
        while True:
            try:
                return await self._stream()
            except BulkError as failure:
                await self._pause(failure)

    async def _pause(self, failure: BulkError) -> None:
        """Wait until the next stream may be opened. Raises the failure if a retry cannot help or takes too long."""
        if self._connection.tokens.replaces(self._token, failure, repeated=self._token_replaced):
            self._token_replaced = True
            await asyncio.sleep(failure.retry_after_s)
            return
        if not failure.retriable:
            raise failure
        if self._was_quiet(failure):
            self._retry = self._retry.after_progress()
            await asyncio.sleep(backoff_s(self._config, 1, failure.retry_after_s, random.random()))  # noqa: S311 - no secret
            return
        self._retry = self._retry.after_failure(self._now_s(), reached=self._connection.reached)
        pause = backoff_s(self._config, self._retry.failures, failure.retry_after_s, random.random())  # noqa: S311 - no secret
        if self._retry.exhausted(self._now_s() + pause, self._config.retry_deadline_s):
            if self.opened is None and not self._retry.reached:
                raise failure
            raise GaveUp(self._header.idempotency_key, self._retry.failing_s(self._now_s()), failure)
        await asyncio.sleep(pause)

    async def _stream(self) -> jobs_pb2.Job:
        """Open a stream, send the batches and the seal, and return the sealed job."""
        first_sequence = self._queue.window.rewind()
        self._seal_sent, self._quiet_since_s = False, None
        self._token = await self._connection.tokens.current()
        call = self._connection.open_stream(self._token)
        try:
            async with asyncio.timeout(self._config.open_deadline_s) as watch:
                await call.write(self._header.message(first_sequence))
                opened = (await _read(call)).opened
                self._on_opened(opened)
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
            failure = self._connection.to_bulk_error(error)
            # The server's status was lost. If batches are sent one at a time, its next refusal is received.
            self._queue.one_at_a_time = isinstance(failure, BrokenUnderWrite)
            raise failure from error
        except asyncio.InvalidStateError as error:
            # grpc.aio raises this for a write on a call that has ended. Its status has the reason.
            raise await self._why_ended(call) from error
        finally:
            call.cancel()

    def _on_opened(self, opened: ingest_pb2.JobOpened) -> None:
        self._connection.reached = True
        self._token_replaced = False
        self._quiet_since_s = self._now_s()
        # A repeated answer is not progress: a server that accepts each stream and drops it must not be retried forever.
        first = self.opened is None
        progress = first or opened.replayed
        # If an earlier stream of this submission sealed the job and the answer was lost, this is not a replay.
        self.replayed = opened.replayed and first
        self.opened = opened.job
        if not opened.replayed and opened.next_sequence < self._queue.window.first_sequence:
            raise CallFailed(
                "LOST_BATCHES",
                f"{opened.job.name} resumes at batch {opened.next_sequence}, but all batches before "
                f"{self._queue.window.first_sequence} were acknowledged: submit all records again with a new key",
                retriable=False,
            )
        # Batches of an earlier submission are skipped, except the last: the server compares it with the one that it
        # has, and refuses a source with other batches.
        known = opened.next_sequence - (first and not opened.replayed and opened.next_sequence > 0)
        if self._queue.acknowledge(known) or progress:
            self._retry = self._retry.after_progress()

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
            while (numbered := await self._queue.get()) is not None:
                self._quiet_since_s = None
                if watch.when() is None:
                    watch.reschedule(self._now_s() + self._config.acknowledge_deadline_s)
                await call.write(batch_message(numbered))
            self._seal_sent, self._quiet_since_s = True, None
            watch.reschedule(self._now_s() + self._config.acknowledge_deadline_s)
            seal = ingest_pb2.Seal(batch_count=self._queue.window.next_sequence)
            await call.write(wire_pb2.StreamMessage(seal=seal).SerializeToString())
            await call.done_writing()
        except (grpc.RpcError, asyncio.InvalidStateError):
            # The call ended during the write. `_receive` raises the reason.
            return

    async def _receive(self, call: RecordStream, watch: asyncio.Timeout) -> jobs_pb2.Job:
        while True:
            answer = await _read(call)
            if answer.HasField("sealed"):
                self._queue.acknowledge(self._queue.window.next_sequence)
                return answer.sealed.job
            if self._queue.acknowledge(answer.acknowledged.next_sequence):
                self._queue.one_at_a_time = False
                self._retry = self._retry.after_progress()
                waits = self._queue.window.unacknowledged or self._seal_sent
                self._quiet_since_s = None if waits else self._now_s()
                watch.reschedule(self._now_s() + self._config.acknowledge_deadline_s if waits else None)

    def _was_quiet(self, failure: BulkError) -> bool:
        """Return whether the stream broke while the source had nothing to send: nothing was lost or refused."""
        since_s = self._quiet_since_s
        return since_s is not None and self._now_s() - since_s >= _QUIET_S and not isinstance(failure, Refused)

    async def _why_ended(self, call: RecordStream) -> BulkError:
        code, details = await call.code(), await call.details()
        return CallFailed(code.name, f"{self._connection.target} ended the stream: {details}", retriable=True)


def _ended_before_seal(job: jobs_pb2.Job) -> bool:
    early = (JobState.CANCELLED, JobState.EXPIRED, JobState.FAILED)
    return JobState(job.state or JobState.OPEN) in early and not job.HasField("seal_time")


def _ended(job: jobs_pb2.Job) -> NotNow:
    """Return the refusal that a stream receives when its job ends, for a job that ended between two streams."""
    why = f": {job.failure_reason}" if job.failure_reason else ""
    return NotNow(
        Reason.JOB_ENDED,
        f"{job.name} ended as {JobState(job.state).name} before all batches were sent{why}; submit the remaining "
        "records as another job",
    )


async def _read(call: RecordStream) -> ingest_pb2.StreamRecordsResponse:
    try:
        answer = await call.read()
    except asyncio.CancelledError as error:
        # grpc.aio also raises this if the server cancelled the call. Only a request to this task is a cancellation.
        task = asyncio.current_task()
        if task is None or task.cancelling() or not call.done():
            raise
        raise CallFailed("CANCELLED", "the server cancelled the stream", retriable=True) from error
    if answer is grpc.aio.EOF:
        raise CallFailed("UNAVAILABLE", "the server ended the stream before the job was sealed", retriable=True)
    assert isinstance(answer, ingest_pb2.StreamRecordsResponse)  # noqa: S101 — narrows the type: it is EOF or this
    return answer


__all__ = ["Header", "SourceFailed", "Submission", "batch_message"]


def check(header: Header) -> None:
    """Check a header before anything is sent. Raises WrongInput."""
    if not is_dataset(header.dataset.removeprefix("datasets/")):
        raise WrongInput(
            f"{header.dataset!r} is not a dataset name: use a letter, then letters, digits and _, all lower case"
        )
    if not is_idempotency_key(header.idempotency_key):
        raise WrongInput("an idempotency key is 1 to 128 printable ASCII characters without spaces")
