"""Maps a refusal to `google.rpc.Status` and back, for the gRPC server and the client."""

from __future__ import annotations

from typing import Final

import grpc
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from bulkgrpc.errors import Reason, Refusal

DOMAIN: Final = "bulkgrpc"
MESSAGE_BYTES_MAX: Final = 1200
"""Bytes of a status message as UTF-8. It is in the trailers up to three times, percent- and base64-encoded, and clients
accept 8 KiB of them: with more, the call fails for its header size instead of for what it was refused for."""
_END_BYTES: Final = 400
"""The end of a long message stays: it says what to do."""
_FACT_BYTES_MAX: Final = 200
"""Bytes of a field's path and of each fact in `ErrorInfo.metadata`."""
_CLASSES: Final[dict[int, type[Refusal]]] = {cls.code.value: cls for cls in Refusal.__subclasses__()}


def to_status(refusal: Refusal) -> status_pb2.Status:
    """Return the google.rpc.Status of a refusal: ErrorInfo always, BadRequest with a field, RetryInfo if retriable.

    A message longer than MESSAGE_BYTES_MAX is without its middle.
    """
    message = shortened(refusal.message)
    details: list[any_pb2.Any] = []

    def attach(
        detail: error_details_pb2.ErrorInfo | error_details_pb2.BadRequest | error_details_pb2.RetryInfo,
    ) -> None:
        packed = any_pb2.Any()
        packed.Pack(detail)
        details.append(packed)

    facts = {name: shortened(value, _FACT_BYTES_MAX, 0) for name, value in refusal.metadata.items()}
    attach(error_details_pb2.ErrorInfo(reason=refusal.reason, domain=DOMAIN, metadata=facts))
    if refusal.field:
        field = shortened(refusal.field, _FACT_BYTES_MAX, 0)
        violation = error_details_pb2.BadRequest.FieldViolation(field=field, description=message)
        attach(error_details_pb2.BadRequest(field_violations=[violation]))
    if refusal.retry_after_s > 0:
        retry = error_details_pb2.RetryInfo()
        retry.retry_delay.FromNanoseconds(int(refusal.retry_after_s * 1e9))
        attach(retry)
    return status_pb2.Status(code=refusal.code.value, message=message, details=details)


def shortened(text: str, bytes_max: int = MESSAGE_BYTES_MAX, end_bytes: int = _END_BYTES) -> str:
    """Return a text of at most `bytes_max` bytes of UTF-8: a longer one loses its middle, not its last `end_bytes`."""
    encoded = text.encode("utf-8", "replace")
    if len(encoded) <= bytes_max:
        return text
    cut = f" … ({len(encoded)} bytes, shortened) … ".encode()
    start, end = encoded[: bytes_max - len(cut) - end_bytes], encoded[len(encoded) - end_bytes :]
    return (start + cut + end).decode("utf-8", "ignore")


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
