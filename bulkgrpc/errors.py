"""Every refusal: its reason, what it says, whether trying again helps. The one place that maps it to gRPC.

Refusal
├── Invalid              INVALID_ARGUMENT, names the field
├── NotFound             NOT_FOUND
├── Conflict             ALREADY_EXISTS
├── Busy                 ABORTED, retriable
├── OutOfOrder           OUT_OF_RANGE
├── NotNow               FAILED_PRECONDITION
├── TooMuch              RESOURCE_EXHAUSTED
├── Unauthenticated      UNAUTHENTICATED
├── Denied               PERMISSION_DENIED
├── TooLate              DEADLINE_EXCEEDED, retriable
└── Unavailable          UNAVAILABLE, retriable
"""

from __future__ import annotations

import enum
from typing import ClassVar

import grpc
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

DOMAIN = "bulkgrpc"


class Reason(enum.StrEnum):
    """Why a call was refused: `ErrorInfo.reason`. Stable; clients may branch on it."""

    EMPTY_STREAM = "EMPTY_STREAM"
    MISSING_HEADER = "MISSING_HEADER"
    MISSING_BATCH = "MISSING_BATCH"
    MISSING_SEAL = "MISSING_SEAL"
    MALFORMED_BATCH = "MALFORMED_BATCH"
    INVALID_FIELD = "INVALID_FIELD"
    INVALID_DATASET = "INVALID_DATASET"
    DATASET_NOT_FOUND = "DATASET_NOT_FOUND"
    DATASET_VERSION_NOT_FOUND = "DATASET_VERSION_NOT_FOUND"
    DATASET_HAS_JOBS = "DATASET_HAS_JOBS"
    TABLE_IN_USE = "TABLE_IN_USE"
    TABLE_BUSY = "TABLE_BUSY"
    DATASET_EXISTS = "DATASET_EXISTS"
    DATASET_INCOMPATIBLE = "DATASET_INCOMPATIBLE"
    JOB_NOT_FOUND = "JOB_NOT_FOUND"
    IDEMPOTENCY_CONFLICT = "IDEMPOTENCY_CONFLICT"
    JOB_BUSY = "JOB_BUSY"
    JOB_SEALED = "JOB_SEALED"
    JOB_ENDED = "JOB_ENDED"
    JOB_NOT_ENDED = "JOB_NOT_ENDED"
    BATCH_CONFLICT = "BATCH_CONFLICT"
    SEAL_TIMEOUT = "SEAL_TIMEOUT"
    SEQUENCE_BACKWARD = "SEQUENCE_BACKWARD"
    SEQUENCE_GAP = "SEQUENCE_GAP"
    RESUME_NOT_READY = "RESUME_NOT_READY"
    BATCH_TOO_LARGE = "BATCH_TOO_LARGE"
    TOO_MANY_STREAMS = "TOO_MANY_STREAMS"
    NO_TOKEN = "NO_TOKEN"
    INVALID_TOKEN = "INVALID_TOKEN"
    MISSING_SCOPE = "MISSING_SCOPE"
    FOREIGN_TENANT = "FOREIGN_TENANT"
    KAFKA_UNAVAILABLE = "KAFKA_UNAVAILABLE"
    POSTGRES_UNAVAILABLE = "POSTGRES_UNAVAILABLE"
    DRAINING = "DRAINING"


class Refusal(Exception):
    """A call that is refused. `str()` of it is one line that names the cause, the limit and the way out.

    reason: why, stable. field: path of the request's field at fault, "" if none. retry_after_s: seconds after which
    trying again helps, 0 if it does not. metadata: facts for `ErrorInfo.metadata`.
    """

    code: ClassVar[grpc.StatusCode]
    default_retry_after_s: ClassVar[float] = 0.0

    def __init__(
        self, reason: Reason, message: str, *, field: str = "", retry_after_s: float | None = None, **metadata: str
    ) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.field = field
        self.retry_after_s = self.default_retry_after_s if retry_after_s is None else retry_after_s
        self.metadata = metadata


class Invalid(Refusal):
    """The request breaks a rule; the same request will never pass."""

    code = grpc.StatusCode.INVALID_ARGUMENT


class NotFound(Refusal):
    """What the request names is not there, or not the caller's."""

    code = grpc.StatusCode.NOT_FOUND


class Conflict(Refusal):
    """What the request would make is there already, and is different."""

    code = grpc.StatusCode.ALREADY_EXISTS


class Busy(Refusal):
    """Somebody else holds what the request needs."""

    code = grpc.StatusCode.ABORTED
    default_retry_after_s = 1.0


class OutOfOrder(Refusal):
    """A batch is not the next one."""

    code = grpc.StatusCode.OUT_OF_RANGE


class NotNow(Refusal):
    """The state of the job does not allow the request."""

    code = grpc.StatusCode.FAILED_PRECONDITION


class TooMuch(Refusal):
    """The request is over a limit."""

    code = grpc.StatusCode.RESOURCE_EXHAUSTED


class Unauthenticated(Refusal):
    """Who the caller is could not be shown."""

    code = grpc.StatusCode.UNAUTHENTICATED


class Denied(Refusal):
    """The caller may not do this."""

    code = grpc.StatusCode.PERMISSION_DENIED


class TooLate(Refusal):
    """The answer could not be given in time; nothing is half known: the same call finds the same job."""

    code = grpc.StatusCode.DEADLINE_EXCEEDED
    default_retry_after_s = 1.0


class Unavailable(Refusal):
    """A part that the request needs is away; nothing is lost, trying again helps."""

    code = grpc.StatusCode.UNAVAILABLE
    default_retry_after_s = 1.0


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
    return status_pb2.Status(code=refusal.code.value[0], message=refusal.message, details=details)


_CLASSES: dict[grpc.StatusCode, type[Refusal]] = {cls.code: cls for cls in Refusal.__subclasses__()}


def from_rpc_error(error: grpc.RpcError) -> Refusal | None:
    """Rebuild the refusal that a server sent; None if the error did not come from one of our servers."""
    if not isinstance(error, grpc.Call | grpc.aio.AioRpcError):
        return None
    try:
        status = rpc_status.from_call(error)
    except ValueError:
        return None
    if status is None or error.code() not in _CLASSES:
        return None
    info, bad, retry = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest(), error_details_pb2.RetryInfo()
    for detail in status.details:
        for known in (info, bad, retry):
            detail.Unpack(known)
    if info.domain != DOMAIN or info.reason not in Reason.__members__:
        return None
    return _CLASSES[error.code()](
        Reason(info.reason),
        status.message,
        field=bad.field_violations[0].field if bad.field_violations else "",
        retry_after_s=retry.retry_delay.ToNanoseconds() / 1e9,
        **dict(info.metadata),
    )
