"""What the server's tests share: a client, a reader of the topic, a proxy to cut."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import grpc
import pytest
from confluent_kafka import Consumer, TopicPartition
from google.protobuf.descriptor_pb2 import FileDescriptorSet

from bulkgrpc.datasets.sources import compile_proto, proto_root
from bulkgrpc.errors import Refusal
from bulkgrpc.kafka.message import from_headers
from bulkgrpc.model import Message
from bulkgrpc.rpc_status import from_rpc_error
from bulkgrpc.server.serving import Serving
from bulkgrpc.v1 import (
    datasets_pb2,
    datasets_pb2_grpc,
    ingest_pb2,
    ingest_pb2_grpc,
    jobs_pb2,
    jobs_pb2_grpc,
)

DATASET = "datasets/sensor_readings"
DEADLINE_S = 30.0
Request = ingest_pb2.StreamRecordsRequest
Response = ingest_pb2.StreamRecordsResponse


def header(**fields: Any) -> Request:
    fields.setdefault("dataset", DATASET)
    return Request(header=ingest_pb2.JobHeader(**fields))


def batch(sequence: int, records: int = 2) -> Request:
    return Request(batch=ingest_pb2.RecordBatch(sequence=sequence, records=[b"\n\x02S1"] * records))


def seal(batches: int) -> Request:
    return Request(seal=ingest_pb2.Seal(batch_count=batches))


async def finish(call: Any, batches: int) -> None:
    """Seal a job after `batches` batches and half-close its stream."""
    await call.write(seal(batches))
    await call.done_writing()


def sealed(requests: tuple[Request, ...]) -> tuple[Request, ...]:
    """Return the requests with the seal after their last batch; as they are if there is no header or already a seal."""
    if not requests or not requests[0].HasField("header") or requests[-1].HasField("seal"):
        return requests
    batches = [request.batch.sequence + 1 for request in requests if request.HasField("batch")]
    return (*requests, seal(batches[-1] if batches else 0))


def a_key() -> str:
    return uuid.uuid4().hex


@dataclass
class Peer:
    """A client of a server, as one tenant."""

    address: str
    channel: grpc.aio.Channel
    metadata: list[tuple[str, str]] = field(default_factory=list)

    @property
    def ingest(self) -> Any:
        return ingest_pb2_grpc.IngestServiceStub(self.channel)  # type: ignore[no-untyped-call]

    @property
    def jobs(self) -> Any:
        return jobs_pb2_grpc.JobServiceStub(self.channel)  # type: ignore[no-untyped-call]

    @property
    def datasets(self) -> Any:
        return datasets_pb2_grpc.DatasetServiceStub(self.channel)  # type: ignore[no-untyped-call]

    def stream(self, requests: Iterable[Request] | None = None, **options: Any) -> Any:
        options.setdefault("timeout", DEADLINE_S)
        return self.ingest.StreamRecords(requests, metadata=self.metadata, **options)

    async def whole(self, *requests: Request) -> list[Response]:
        """Send a whole job and, unless the last request is one, its seal; return all answers."""
        return await self.exchange(*sealed(requests))

    async def exchange(self, *requests: Request) -> list[Response]:
        """Send a stream as it is and half-close it; return all answers."""
        for _ in range(STATUS_TRIES):
            try:
                return [answer async for answer in self.stream(iter(requests))]
            except grpc.aio.AioRpcError as error:
                # A server that ends a stream while grpc.aio is at a write: the client never learns the status (1.85.1).
                if error.details() != "Internal error from Core":
                    raise
        raise AssertionError("no attempt returned the status")

    async def submit(self, *requests: Request) -> ingest_pb2.SubmitRecordsResponse:
        """Send a whole job as `whole` does; return the answer."""
        return await self.submit_exactly(*sealed(requests))

    async def submit_exactly(self, *requests: Request) -> ingest_pb2.SubmitRecordsResponse:
        """Send a submission as it is and half-close it; return the answer."""
        same = [ingest_pb2.SubmitRecordsRequest.FromString(request.SerializeToString()) for request in requests]
        answer: ingest_pb2.SubmitRecordsResponse = await self.ingest.SubmitRecords(
            iter(same), metadata=self.metadata, timeout=DEADLINE_S
        )
        return answer

    async def job(self, name: str) -> jobs_pb2.Job:
        answer = await self.jobs.GetJob(jobs_pb2.GetJobRequest(name=name), metadata=self.metadata, timeout=DEADLINE_S)
        found: jobs_pb2.Job = answer.job
        return found

    async def register(self) -> None:
        await self.datasets.RegisterDataset(registration(), metadata=self.metadata, timeout=DEADLINE_S)


STATUS_TRIES = 5


@asynccontextmanager
async def peer(address: str, tenant: str = "", token: str = "") -> AsyncIterator[Peer]:
    pairs = [("bulkgrpc-tenant", tenant)] if tenant else []
    pairs += [("authorization", f"Bearer {token}")] if token else []
    async with grpc.aio.insecure_channel(address, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
        yield Peer(address, channel, pairs)


def registration(message: str = "SensorReading", file: str = "sensors.proto") -> datasets_pb2.RegisterDatasetRequest:
    descriptors = FileDescriptorSet.FromString(compile_proto(proto_root() / "examples" / "v1" / file))
    return datasets_pb2.RegisterDatasetRequest(descriptors=descriptors, message_type=f"examples.v1.{message}")


async def refusal(call: Awaitable[object]) -> tuple[grpc.StatusCode, Refusal]:
    """Await a call that must be refused; return its code and our refusal."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    found = from_rpc_error(caught.value)
    assert found is not None, caught.value
    return caught.value.code(), found


async def next_answer(call: Any) -> Response:
    """Read the next answer of a stream whose requests are written one by one."""
    answer = await asyncio.wait_for(call.read(), DEADLINE_S)
    if answer is grpc.aio.EOF:
        await call  # raises what ended it
        raise AssertionError(f"the stream ended: {await call.code()}")
    assert isinstance(answer, Response)
    return answer


async def rest(call: Any) -> list[Response]:
    """Read what is left of a stream whose requests were written one by one."""
    answers: list[Response] = []
    while (answer := await asyncio.wait_for(call.read(), DEADLINE_S)) is not grpc.aio.EOF:
        assert isinstance(answer, Response)
        answers.append(answer)
    return answers


async def eventually(check: Callable[[], Awaitable[bool]], deadline_s: float = DEADLINE_S) -> None:
    """Ask until the answer is yes, at most `deadline_s`."""
    async with asyncio.timeout(deadline_s):
        while not await check():  # noqa: ASYNC110 — what is asked is in another process
            await asyncio.sleep(0.01)


def read_topic(kafka: str, topic: str) -> list[tuple[Message, bytes]]:
    """Return all that is on a topic now, a partition after the other."""
    consumer = Consumer({"bootstrap.servers": kafka, "group.id": a_key(), "enable.auto.commit": False})
    found: list[tuple[Message, bytes]] = []
    try:
        for partition in consumer.list_topics(topic, timeout=DEADLINE_S).topics[topic].partitions:
            place = TopicPartition(topic, partition, 0)
            _, end = consumer.get_watermark_offsets(place, timeout=DEADLINE_S)
            consumer.assign([place])
            offset = 0
            while offset < end:
                message = consumer.poll(DEADLINE_S)
                assert message is not None
                assert message.error() is None, message.error()
                headers: Any = message.headers()
                found.append((from_headers(headers), message.value() or b""))
                offset = (message.offset() or 0) + 1
    finally:
        consumer.close()
    return found


class Proxy:
    """A TCP proxy to one address that can be cut off and repaired."""

    def __init__(self, host: str, port: int) -> None:
        self._target = (host, port)
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._through = True
        self.port = 0

    async def __aenter__(self) -> Proxy:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.cut()
        if self._server is not None:
            self._server.close()

    async def cut(self) -> None:
        """Break every connection and every later one."""
        self._through = False
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def repair(self) -> None:
        self._through = True

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        other: asyncio.StreamWriter | None = None
        try:
            if self._through:
                other_reader, other = await asyncio.open_connection(*self._target)
                await asyncio.gather(_pipe(reader, other), _pipe(other_reader, writer))
        except (OSError, asyncio.CancelledError):
            pass
        finally:
            self._tasks.discard(task)
            for end in (writer, other):
                if end is not None:
                    end.transport.abort()


async def _pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    writer.close()


def through(url: str, proxy: Proxy) -> str:
    """Return a URL with its port replaced by a proxy's."""
    parts = urlsplit(url)
    login = parts.netloc.rpartition("@")[0]
    return urlunsplit(parts._replace(netloc=f"{login + '@' if login else ''}127.0.0.1:{proxy.port}"))


def proxy_to(url: str) -> Proxy:
    parts = urlsplit(url)
    assert parts.hostname is not None
    assert parts.port is not None
    return Proxy(parts.hostname, parts.port)


ServeWith = Callable[..., AbstractAsyncContextManager[tuple[Serving, Peer]]]
