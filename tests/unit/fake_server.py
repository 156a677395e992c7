"""A server without Kafka or PostgreSQL: a test decides what it does with streams."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
from grpc_status import rpc_status

from bulkgrpc.errors import Refusal
from bulkgrpc.rpc_status import to_status
from bulkgrpc.v1 import ingest_pb2, jobs_pb2

Request = ingest_pb2.StreamRecordsRequest
Response = ingest_pb2.StreamRecordsResponse
JOB = "tenants/t/jobs/00000000-0000-5000-8000-000000000000"
DEADLINE_S = 20.0


@dataclass(slots=True)
class Stream:
    """One stream as the fake server sees it. batches: their sequences, in order of arrival."""

    context: Any
    header: ingest_pb2.JobHeader
    requests: AsyncIterator[Request]
    batches: list[int] = field(default_factory=list)

    async def open(self, next_sequence: int = 0, *, replayed: bool = False) -> None:
        opened = ingest_pb2.JobOpened(job=jobs_pb2.Job(name=JOB), next_sequence=next_sequence, replayed=replayed)
        await self.context.write(Response(opened=opened))

    async def receive(self, count: int | None = None) -> None:
        """Take batches until there were `count` of them; without, acknowledge them, until the client seals."""
        while count is None or len(self.batches) < count:
            request = await anext(self.requests, None)
            if request is None or request.HasField("seal"):
                return
            self.batches.append(request.batch.sequence)
            if count is None:
                await self.acknowledge(request.batch.sequence + 1)

    async def acknowledge(self, next_sequence: int) -> None:
        acknowledged = ingest_pb2.BatchesAcknowledged(next_sequence=next_sequence)
        await self.context.write(Response(acknowledged=acknowledged))

    async def seal(self) -> None:
        job = jobs_pb2.Job(name=JOB, state=jobs_pb2.JOB_STATE_SEALED)
        await self.context.write(Response(sealed=ingest_pb2.JobSealed(job=job)))

    async def refuse(self, refusal: Refusal) -> None:
        await self.context.abort_with_status(rpc_status.to_status(to_status(refusal)))


Script = Callable[[Stream], Awaitable[None]]


@dataclass(slots=True)
class FakeServer:
    """Plays a script a stream, the last one again and again. streams: those that came."""

    address: str
    streams: list[Stream] = field(default_factory=list)


@asynccontextmanager
async def fake_server(*scripts: Script) -> AsyncIterator[FakeServer]:
    fake = FakeServer("")

    async def stream_records(requests: AsyncIterator[Request], context: Any) -> None:
        first = await anext(requests)
        stream = Stream(context, first.header, requests)
        fake.streams.append(stream)
        await scripts[min(len(fake.streams), len(scripts)) - 1](stream)

    handler = grpc.stream_stream_rpc_method_handler(stream_records, Request.FromString, Response.SerializeToString)

    async def watch_job(request: jobs_pb2.WatchJobRequest, context: Any) -> None:
        job = jobs_pb2.Job(name=request.name, state=jobs_pb2.JOB_STATE_SUCCEEDED)
        await context.write(jobs_pb2.WatchJobResponse(job=job))

    watch = grpc.unary_stream_rpc_method_handler(
        watch_job, jobs_pb2.WatchJobRequest.FromString, jobs_pb2.WatchJobResponse.SerializeToString
    )
    server = grpc.aio.server()
    server.add_generic_rpc_handlers(
        (
            grpc.method_handlers_generic_handler("bulkgrpc.v1.IngestService", {"StreamRecords": handler}),
            grpc.method_handlers_generic_handler("bulkgrpc.v1.JobService", {"WatchJob": watch}),
        )
    )
    fake.address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    try:
        yield fake
    finally:
        await server.stop(0)


async def seal_everything(stream: Stream) -> None:
    """The script of a server that takes and seals whatever comes."""
    await stream.open(stream.header.first_sequence)
    taken = -1
    while len(stream.batches) > taken:
        taken = len(stream.batches)
        await stream.receive(taken + 1)
        await stream.acknowledge(stream.header.first_sequence + len(stream.batches))
    await stream.seal()
