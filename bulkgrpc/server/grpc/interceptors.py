"""What every RPC of ours passes through, outermost first: metrics, refusals to statuses, identity."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import structlog
from google.rpc import status_pb2
from grpc_status import rpc_status

from bulkgrpc import metrics
from bulkgrpc.errors import Reason, Refusal, Unauthenticated
from bulkgrpc.ingest.identity import TENANT_METADATA, Credentials, Identification
from bulkgrpc.rpc_status import to_status
from bulkgrpc.server.grpc.access import REQUIRED_SCOPES, set_caller

_log = structlog.get_logger()
Context = grpc.aio.ServicerContext[Any, Any]
Method = Callable[[Any, Context], Awaitable[Any]]
Continuation = Callable[[grpc.HandlerCallDetails], Awaitable[Any]]

_HANDLERS: dict[str, Callable[..., Any]] = {
    "unary_unary": grpc.unary_unary_rpc_method_handler,
    "unary_stream": grpc.unary_stream_rpc_method_handler,
    "stream_unary": grpc.stream_unary_rpc_method_handler,
    "stream_stream": grpc.stream_stream_rpc_method_handler,
}


class CallInterceptor(grpc.aio.ServerInterceptor):
    """Wraps the method of an RPC of ours; other services, such as health checks, stay as they are."""

    async def intercept_service(self, continuation: Continuation, handler_call_details: Any) -> Any:
        """Return the handler of a call with its method wrapped by `around`."""
        handler = await continuation(handler_call_details)
        name = handler_call_details.method
        if handler is None or name not in REQUIRED_SCOPES:
            return handler
        kind = next(kind for kind in _HANDLERS if getattr(handler, kind) is not None)
        return _HANDLERS[kind](
            self.around(name, getattr(handler, kind)),
            request_deserializer=handler.request_deserializer,
            response_serializer=handler.response_serializer,
        )

    def around(self, name: str, method: Method) -> Method:
        """Return `method`, the one of the RPC `name`, wrapped."""
        raise NotImplementedError


class MetricsInterceptor(CallInterceptor):
    """Counts calls and records how long they take, by RPC and status."""

    def around(self, name: str, method: Method) -> Method:
        """Return `method` with its calls measured."""

        async def call(request: Any, context: Context) -> Any:
            begun_s = time.monotonic()
            code = grpc.StatusCode.CANCELLED.name
            try:
                answer = await method(request, context)
                code = grpc.StatusCode.OK.name
                return answer
            except grpc.aio.AbortError:
                code = _code_name(context.code())
                raise
            finally:
                attributes = {"rpc": name, "code": code}
                metrics.server_calls.add(1, attributes)
                metrics.server_call_seconds.record(time.monotonic() - begun_s, attributes)

        return call


class RefusalInterceptor(CallInterceptor):
    """Ends a refused call with the refusal's status, and any other exception with INTERNAL and a log line."""

    def around(self, name: str, method: Method) -> Method:
        """Return `method` with every exception turned into a status."""

        async def call(request: Any, context: Context) -> Any:
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


class TlsInterceptor(CallInterceptor):
    """Refuses calls over TLS before 1.3: a server with an RSA key cannot refuse the handshake."""

    def around(self, name: str, method: Method) -> Method:
        """Return `method`, called over TLS 1.3 or without TLS."""

        async def call(request: Any, context: Context) -> Any:
            versions = context.auth_context().get("ssl_tls_version", ())
            if any(version != b"TLSv1.3" for version in versions):
                raise Unauthenticated(Reason.TLS_VERSION, "the connection has TLS 1.2: TLS 1.3 is needed")
            return await method(request, context)

        return call


class IdentityInterceptor(CallInterceptor):
    """Identifies the caller and checks that it has the scope of the RPC."""

    def __init__(self, identification: Identification) -> None:
        self._identification = identification

    def around(self, name: str, method: Method) -> Method:
        """Return `method`, which can then call `current_caller`."""

        async def call(request: Any, context: Context) -> Any:
            caller = await self._identification.identify(credentials_of(context))
            caller.require(REQUIRED_SCOPES[name])
            set_caller(caller)
            return await method(request, context)

        return call


def interceptors(identification: Identification) -> list[CallInterceptor]:
    """Return the interceptors of a server, outermost first."""
    return [MetricsInterceptor(), RefusalInterceptor(), TlsInterceptor(), IdentityInterceptor(identification)]


def credentials_of(context: Context) -> Credentials:
    """Return what the metadata of a call says of its caller."""
    return Credentials(metadata_value(context, "authorization"), metadata_value(context, TENANT_METADATA))


def metadata_value(context: Context, name: str) -> str:
    """Return the first value of a metadata key; "" if the client did not send it."""
    for key, value in context.invocation_metadata() or ():
        if key == name:
            return value if isinstance(value, str) else value.decode("ascii", "replace")
    return ""


def _code_name(code: object) -> str:
    """Return the name of a status code; grpc.aio (1.85) returns its number."""
    return next((known.name for known in grpc.StatusCode if code in (known, known.value[0])), str(code))


def refusal_in(error: BaseException) -> Refusal | None:
    """Return the refusal that an exception is, or that an exception group contains; None if there is none."""
    if isinstance(error, Refusal):
        return error
    if isinstance(error, BaseExceptionGroup):
        return next(filter(None, map(refusal_in, error.exceptions)), None)
    return None


def _status_of(name: str, error: BaseException) -> status_pb2.Status | None:
    """Return the status that a call ends with; None for what must not be caught, such as SystemExit."""
    refusal = refusal_in(error)
    if refusal is not None:
        _log.debug("call_refused", rpc=name, reason=str(refusal.reason), message=refusal.message)
        return to_status(refusal)
    if not isinstance(error, Exception) or isinstance(error, grpc.aio.AbortError):
        return None
    _log.error("call_failed", rpc=name, exc_info=error)
    code: int = grpc.StatusCode.INTERNAL.value[0]
    return status_pb2.Status(code=code, message="the server met an unexpected error; its log says which")
