"""The channel to a server: metadata of every call, unary calls with deadline and retries, raw streams."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from typing import Any, Protocol, TypeVar

import grpc

from bulkgrpc.client import errors, fork
from bulkgrpc.client.config import ClientConfig, Tls, Token, channel_options
from bulkgrpc.client.retry import RetryState, backoff_s
from bulkgrpc.client.token import TokenSource
from bulkgrpc.v1 import datasets_pb2_grpc, ingest_pb2, jobs_pb2_grpc, ledger_pb2_grpc

STREAM_RECORDS = "/bulkgrpc.v1.IngestService/StreamRecords"
TENANT_METADATA = "bulkgrpc-tenant"
Response = TypeVar("Response")
Response_co = TypeVar("Response_co", covariant=True)
RecordStream = grpc.aio.StreamStreamCall[bytes, ingest_pb2.StreamRecordsResponse]


class ResponseStream(Protocol[Response_co]):
    """A call whose responses are a stream."""

    def __aiter__(self) -> AsyncIterator[Response_co]:
        """Iterate over the responses."""

    def cancel(self) -> bool:
        """End the call."""

    def done(self) -> bool:
        """Return whether the call has ended."""


class Connection:
    """A channel and the metadata of every call. Owned by one client, opened on its event loop.

    reached: whether a server has answered. tokens: where the token of each call comes from.
    """

    def __init__(self, target: str, tenant: str, token: Token, tls: Tls | None, config: ClientConfig) -> None:
        fork.opened()
        self.target = target
        self.tokens = TokenSource(token, config.call_deadline_s)
        self._tenant = tenant
        self.config = config
        self.reached = False
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
        self.ledger = ledger_pb2_grpc.LedgerServiceStub(self._channel)  # type: ignore[no-untyped-call]

    async def close(self) -> None:
        """Close the channel. Running calls are cancelled."""
        await self._channel.close()

    def open_stream(self, token: str) -> RecordStream:
        """Open a StreamRecords stream whose requests are bytes. The caller cancels it and enforces deadlines.

        token: of `tokens`. Raises RuntimeError after a fork.
        """
        fork.check()
        stream: RecordStream = self._stream_records(metadata=self._metadata(token))
        return stream

    def to_bulk_error(self, error: grpc.RpcError) -> errors.BulkError:
        """Return the client's error for a failed call. A refusal shows that the server was reached."""
        converted = errors.from_rpc_error(error, self.target)
        if isinstance(converted, errors.Refused):
            self.reached = True
        return converted

    async def stream(
        self, method: Callable[..., ResponseStream[Response]], request: object
    ) -> AsyncGenerator[Response, None]:
        """Make a call whose responses are a stream, and yield them. A broken stream is opened again.

        The first response of a stream may therefore be repeated. Raises BulkError if there is no response for
        `call_deadline_s`, or a retry cannot help.
        """
        fork.check()
        now_s = asyncio.get_running_loop().time
        retry, repeated = RetryState(self.config, reached=self.reached), False
        while True:
            token = await self.tokens.current()
            stream = method(request, metadata=self._metadata(token))
            try:
                async for response in stream:
                    self.reached, repeated = True, False
                    retry = retry.after_progress()
                    yield response
                return
            except grpc.RpcError as error:
                failure = self.to_bulk_error(error)
            except asyncio.CancelledError:
                # grpc.aio also raises this if the server cancelled the call.
                task = asyncio.current_task()
                if task is None or task.cancelling() or not stream.done():
                    raise
                failure = errors.CallFailed("CANCELLED", f"{self.target} cancelled the call", retriable=True)
            finally:
                stream.cancel()
            if self.tokens.replaces(token, failure, repeated=repeated):
                repeated = True
                continue
            retry = retry.after_failure(now_s(), reached=self.reached)
            pause = backoff_s(self.config, retry.failures, failure.retry_after_s, random.random())  # noqa: S311 - no secret
            if not failure.retriable or retry.exhausted(now_s() + pause, self.config.call_deadline_s):
                raise failure
            await asyncio.sleep(pause)

    async def call(self, method: Callable[..., Awaitable[Response]], request: object) -> Response:
        """Make a unary call, with retries while they may help, within `call_deadline_s` in all.

        Only for idempotent calls; all of ours are. Raises BulkError. If the last attempt timed out, it is the last
        refusal of the server, if there was one.
        """
        fork.check()
        refused: errors.BulkError | None = None
        now_s = asyncio.get_running_loop().time
        ends_at_s = now_s() + self.config.call_deadline_s
        retry, repeated = RetryState(self.config, reached=self.reached), False
        while True:
            token = await self.tokens.current()
            left_s = max(0.001, ends_at_s - now_s())
            try:
                response = await method(request, timeout=left_s, metadata=self._metadata(token))
            except grpc.RpcError as error:
                failure = self.to_bulk_error(error)
                if isinstance(failure, errors.Refused):
                    refused = failure
                elif refused is not None and now_s() >= ends_at_s:
                    raise refused from error
            else:
                self.reached = True
                return response
            if self.tokens.replaces(token, failure, repeated=repeated):
                repeated = True
                continue
            retry = retry.after_failure(now_s(), reached=self.reached)
            pause = backoff_s(self.config, retry.failures, failure.retry_after_s, random.random())  # noqa: S311 - no secret
            next_attempt_s = now_s() + pause
            if not failure.retriable or next_attempt_s >= ends_at_s:
                raise failure
            if retry.exhausted(next_attempt_s, self.config.call_deadline_s):
                raise failure
            await asyncio.sleep(pause)

    def _metadata(self, token: str) -> tuple[tuple[str, str], ...]:
        metadata = {TENANT_METADATA: self._tenant, "authorization": token and f"Bearer {token}"}
        return tuple((name, value) for name, value in metadata.items() if value)
