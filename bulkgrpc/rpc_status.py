"""Maps a refusal to `google.rpc.Status` and back, for the gRPC server and the client."""

from __future__ import annotations

from typing import Final

import grpc
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from bulkgrpc.errors import Reason, Refusal

DOMAIN: Final = "bulkgrpc"
_CLASSES: Final[dict[int, type[Refusal]]] = {cls.code.value: cls for cls in Refusal.__subclasses__()}


def to_status(refusal: Refusal) -> status_pb2.Status:
    """Return the google.rpc.Status of a refusal: ErrorInfo always, BadRequest with a field, RetryInfo if retriable."""
    details: list[any_pb2.Any] = []

    def attach(
        detail: error_details_pb2.ErrorInfo | error_details_pb2.BadRequest | error_details_pb2.RetryInfo,
    ) -> None:
        packed = any_pb2.Any()
        packed.Pack(detail)
        details.append(packed)

    attach(error_details_pb2.ErrorInfo(reason=refusal.reason, domain=DOMAIN, metadata=refusal.metadata))
    if refusal.field:
        violation = error_details_pb2.BadRequest.FieldViolation(field=refusal.field, description=refusal.message)
        attach(error_details_pb2.BadRequest(field_violations=[violation]))
    if refusal.retry_after_s > 0:
        retry = error_details_pb2.RetryInfo()
        retry.retry_delay.FromNanoseconds(int(refusal.retry_after_s * 1e9))
        attach(retry)
    return status_pb2.Status(code=refusal.code.value, message=refusal.message, details=details)


def from_rpc_error(error: grpc.RpcError) -> Refusal | None:
    """Rebuild the refusal that a server sent; None if the error did not come from one of our servers."""
    if not isinstance(error, grpc.Call | grpc.aio.AioRpcError):
        return None
    try:
        status = rpc_status.from_call(error)
    except ValueError:
        return None
    if status is None or status.code not in _CLASSES:
        return None
    info, bad, retry = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest(), error_details_pb2.RetryInfo()
    for detail in status.details:
        for known in (info, bad, retry):
            detail.Unpack(known)
    if info.domain != DOMAIN or info.reason not in Reason.__members__:
        return None
    return _CLASSES[status.code](
        Reason(info.reason),
        status.message,
        field=bad.field_violations[0].field if bad.field_violations else "",
        retry_after_s=retry.retry_delay.ToNanoseconds() / 1e9,
        **dict(info.metadata),
    )


def grpc_code(refusal: Refusal) -> grpc.StatusCode:
    """Return the gRPC status code of a refusal."""
    return grpc.StatusCode[refusal.code.name]
