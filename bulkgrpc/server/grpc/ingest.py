"""IngestService: one ingest session per stream. Requests stay raw bytes: Python never makes an object per record."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import datetime
from typing import Any, Final

import grpc

from bulkgrpc.ingest.session import IngestSession, SessionParts
from bulkgrpc.model import Job
from bulkgrpc.server.grpc.access import INGEST, current_caller
from bulkgrpc.server.grpc.conversion import to_job
from bulkgrpc.server.grpc.interceptors import Context, metadata_value
from bulkgrpc.v1 import ingest_pb2

JOB_METADATA: Final = "bulkgrpc-job"
_TRACEPARENT: Final = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")


class _Stream:
    """The transport of one stream: reads its messages as bytes."""

    def __init__(self, context: Context, now: Callable[[], datetime]) -> None:
        self._context = context
        self._now = now
        found = metadata_value(context, "traceparent")
        self.trace_context = found if _TRACEPARENT.fullmatch(found) else ""

    async def receive(self) -> bytes | None:
        """Return the next message; None after the half-close. A broken connection cancels the call."""
        # Not the request iterator: it keeps each message until the next one is requested.
        raw: bytes | object = await self._context.read()
        return raw if isinstance(raw, bytes) else None


class _SubmitStream(_Stream):
    """A SubmitRecords stream: the job's name is in the initial metadata, nothing is acknowledged."""

    async def send_opened(self, job: Job, *, replayed: bool) -> None:
        """Send the initial metadata."""
        await self._context.send_initial_metadata(((JOB_METADATA, job.spec.key.name),))

    async def send_acknowledged(self, next_sequence: int) -> None:
        """Send nothing: the answer acknowledges the whole job."""


class _AcknowledgedStream(_Stream):
    """A StreamRecords stream."""

    async def send_opened(self, job: Job, *, replayed: bool) -> None:
        """Send `opened`."""
        message = ingest_pb2.JobOpened(job=to_job(job, self._now()), next_sequence=job.next_sequence, replayed=replayed)
        await self._context.write(ingest_pb2.StreamRecordsResponse(opened=message))

    async def send_acknowledged(self, next_sequence: int) -> None:
        """Send `acknowledged`."""
        message = ingest_pb2.BatchesAcknowledged(next_sequence=next_sequence)
        await self._context.write(ingest_pb2.StreamRecordsResponse(acknowledged=message))


class IngestServicer:
    """The RPCs of `ingest.proto`."""

    def __init__(self, parts: SessionParts) -> None:
        self._parts = parts

    async def submit_records(self, _: object, context: Context) -> ingest_pb2.SubmitRecordsResponse:
        """Accept a whole job and answer once."""
        now = self._parts.now
        sealed = await IngestSession(self._parts, current_caller(), _SubmitStream(context, now)).run()
        return ingest_pb2.SubmitRecordsResponse(job=to_job(sealed.job, now()), replayed=sealed.replayed)

    async def stream_records(self, _: object, context: Context) -> None:
        """Accept a job and acknowledge its batches as they are stored."""
        now = self._parts.now
        sealed = await IngestSession(self._parts, current_caller(), _AcknowledgedStream(context, now)).run()
        message = ingest_pb2.JobSealed(job=to_job(sealed.job, now()), replayed=sealed.replayed)
        await context.write(ingest_pb2.StreamRecordsResponse(sealed=message))


def ingest_handler(servicer: IngestServicer) -> Any:
    """Return the service's handler, made by hand: the generated one would deserialize every record."""
    return grpc.method_handlers_generic_handler(
        INGEST,
        {
            "SubmitRecords": grpc.stream_unary_rpc_method_handler(
                servicer.submit_records, response_serializer=ingest_pb2.SubmitRecordsResponse.SerializeToString
            ),
            "StreamRecords": grpc.stream_stream_rpc_method_handler(
                servicer.stream_records, response_serializer=ingest_pb2.StreamRecordsResponse.SerializeToString
            ),
        },
    )
