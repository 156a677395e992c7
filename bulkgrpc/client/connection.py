"""The channel to a server: metadata of every call, unary calls with a deadline and repeated tries, raw streams."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from typing import Any, Protocol, TypeVar

import grpc

from bulkgrpc.client import errors
from bulkgrpc.client.config import ClientConfig, Tls, channel_options
from bulkgrpc.client.retry import Patience, pause_s
from bulkgrpc.v1 import datasets_pb2_grpc, ingest_pb2, jobs_pb2_grpc

STREAM_RECORDS = "/bulkgrpc.v1.IngestService/StreamRecords"
TENANT_METADATA = "bulkgrpc-tenant"
Answer = TypeVar("Answer")
Answer_co = TypeVar("Answer_co", covariant=True)
RecordStream = grpc.aio.StreamStreamCall[bytes, ingest_pb2.StreamRecordsResponse]


class AnswerStream(Protocol[Answer_co]):
    """What is needed of a call that streams its answers."""

    def __aiter__(self) -> AsyncIterator[Answer_co]:
        """Give the answers."""

    def cancel(self) -> bool:
        """End the call."""

    def done(self) -> bool:
        """Tell whether the call has ended."""


class Connection:
    """A channel and what is said on it by every call. Owned by one client; opened on its event loop."""

    def __init__(self, target: str, tenant: str, token: str, tls: Tls | None, config: ClientConfig) -> None:
        self.target = target
        self.config = config
        self.reached = False
        said = {TENANT_METADATA: tenant, "authorization": token and f"Bearer {token}"}
        self._metadata = tuple((name, value) for name, value in said.items() if value)
        options = channel_options()
        self._channel = (
            grpc.aio.insecure_channel(target, options)
            if tls is None
            else grpc.aio.secure_channel(target, tls.credentials(), options)
        )
        self._stream_records: Any = self._channel.stream_stream(
            STREAM_RECORDS, response_deserializer=ingest_pb2.StreamRecordsResponse.FromString
        )
        self.jobs = jobs_pb2_grpc.JobServiceStub(self._channel)  # type: ignore[no-untyped-call]
        self.datasets = datasets_pb2_grpc.DatasetServiceStub(self._channel)  # type: ignore[no-untyped-call]

    async def close(self) -> None:
        """Close the channel; calls under way are cancelled."""
        await self._channel.close()

    def open_stream(self) -> RecordStream:
        """Open a StreamRecords stream whose requests are bytes. Its owner cancels it and watches its deadlines."""
        stream: RecordStream = self._stream_records(metadata=self._metadata)
        return stream

    def understand(self, error: grpc.RpcError) -> errors.BulkError:
        """Say what a failed call means, and remember whether a server answered at all."""
        understood = errors.from_rpc_error(error, self.target)
        if isinstance(understood, errors.Refused):
            self.reached = True
        return understood

    async def follow(
        self, method: Callable[..., AnswerStream[Answer]], request: object
    ) -> AsyncGenerator[Answer, None]:
        """Make a call that streams its answers, and give them; a stream that breaks is opened again.

        So the answer that a stream begins with may come more than once. Raises BulkError if there is no answer for
        `call_deadline_s`, or trying again does not help.
        """
        now_s = asyncio.get_running_loop().time
        patience = Patience(self.config, reached=self.reached)
        while True:
            stream = method(request, metadata=self._metadata)
            try:
                async for answer in stream:
                    self.reached = True
                    patience = patience.progressed()
                    yield answer
                return
            except grpc.RpcError as error:
                failure = self.understand(error)
            except asyncio.CancelledError:
                # grpc.aio raises this also for a call that the server cancelled.
                task = asyncio.current_task()
                if task is None or task.cancelling() or not stream.done():
                    raise
                failure = errors.CallFailed("CANCELLED", f"{self.target} cancelled the call", retriable=True)
            finally:
                stream.cancel()
            patience = patience.failed(now_s(), reached=self.reached)
            pause = pause_s(self.config, patience.failures, failure.retry_after_s, random.random())  # noqa: S311 - no secret
            if not failure.retriable or patience.exhausted(now_s() + pause, self.config.call_deadline_s):
                raise failure
            await asyncio.sleep(pause)

    async def call(self, method: Callable[..., Awaitable[Answer]], request: object) -> Answer:
        """Make a unary call, trying again while that may help, within `call_deadline_s` in all.

        Only for calls that may be made twice; all of ours may. Raises BulkError: what the server refused the call with,
        also if it did not answer the last try in time.
        """
        refused: errors.BulkError | None = None
        now_s = asyncio.get_running_loop().time
        ends_at_s = now_s() + self.config.call_deadline_s
        patience = Patience(self.config, reached=self.reached)
        while True:
            left_s = max(0.001, ends_at_s - now_s())
            try:
                answer = await method(request, timeout=left_s, metadata=self._metadata)
            except grpc.RpcError as error:
                failure = self.understand(error)
                if isinstance(failure, errors.Refused):
                    refused = failure
                elif refused is not None and now_s() >= ends_at_s:
                    raise refused from error
            else:
                self.reached = True
                return answer
            patience = patience.failed(now_s(), reached=self.reached)
            pause = pause_s(self.config, patience.failures, failure.retry_after_s, random.random())  # noqa: S311 - no secret
            again_at_s = now_s() + pause
            if not failure.retriable or again_at_s >= ends_at_s:
                raise failure
            if patience.exhausted(again_at_s, self.config.call_deadline_s):
                raise failure
            await asyncio.sleep(pause)
