"""The edge of every RPC: a refusal becomes its gRPC status, anything unforeseen becomes INTERNAL and a log line."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import grpc
import structlog
from google.rpc import status_pb2
from grpc_status import rpc_status

from bulkgrpc.errors import Refusal, to_status

_log = structlog.get_logger()
Request = TypeVar("Request")
Response = TypeVar("Response")
Context = grpc.aio.ServicerContext[Any, Any]
Method = Callable[[Request, Context], Awaitable[Response]]


def guarded(name: str, method: Method[Request, Response]) -> Method[Request, Response]:
    """Return `method` with every exception turned into a gRPC status; `name` is for the log."""

    async def call(request: Request, context: Context) -> Response:
        try:
            return await method(request, context)
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            status = _status_of(name, error)
            if status is None:
                raise
        await context.abort_with_status(rpc_status.to_status(status))
        raise AssertionError("abort_with_status returned")

    return call


def refusal_in(error: BaseException) -> Refusal | None:
    """Return the refusal that an exception is, or that a TaskGroup's exception group holds; None if there is none."""
    if isinstance(error, Refusal):
        return error
    if isinstance(error, BaseExceptionGroup):
        return next(filter(None, map(refusal_in, error.exceptions)), None)
    return None


def _status_of(name: str, error: BaseException) -> status_pb2.Status | None:
    """Return the status to answer with; None for what must not be caught, such as SystemExit."""
    refusal = refusal_in(error)
    if refusal is not None:
        _log.debug("refused", method=name, reason=str(refusal.reason), message=refusal.message)
        return to_status(refusal)
    if not isinstance(error, Exception) or isinstance(error, grpc.aio.AbortError):
        return None
    _log.error("unexpected error", method=name, exc_info=error)
    code: int = grpc.StatusCode.INTERNAL.value[0]
    return status_pb2.Status(code=code, message="the server met an unexpected error; its log says which")


def metadata_of(context: Context) -> list[tuple[str, str | bytes]]:
    """Return the metadata that the client sent."""
    return [(key, value) for key, value in context.invocation_metadata() or ()]
