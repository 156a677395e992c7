"""Every refusal of a call: its reason, its message, whether a retry helps. Knows no transport.

The codes are the canonical ones of `google.rpc.Code`; `bulkgrpc.rpc_status` maps a refusal to gRPC and back.

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


class Code(enum.Enum):
    """What kind of refusal it is. The values are those of `google.rpc.Code`."""

    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    UNAVAILABLE = 14
    UNAUTHENTICATED = 16


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
    DATASET_BLOCKED = "DATASET_BLOCKED"
    DATASET_NOT_BLOCKED = "DATASET_NOT_BLOCKED"
    DATASET_HAS_JOBS = "DATASET_HAS_JOBS"
    TABLE_IN_USE = "TABLE_IN_USE"
    TABLE_NOT_OWNED = "TABLE_NOT_OWNED"
    TABLE_BUSY = "TABLE_BUSY"
    DATASET_EXISTS = "DATASET_EXISTS"
    DATASET_INCOMPATIBLE = "DATASET_INCOMPATIBLE"
    RIGHT_MISSING = "RIGHT_MISSING"
    JOB_NOT_FOUND = "JOB_NOT_FOUND"
    IDEMPOTENCY_CONFLICT = "IDEMPOTENCY_CONFLICT"
    JOB_BUSY = "JOB_BUSY"
    JOB_SEALED = "JOB_SEALED"
    JOB_ENDED = "JOB_ENDED"
    JOB_NOT_ENDED = "JOB_NOT_ENDED"
    JOB_NOT_BLOCKED = "JOB_NOT_BLOCKED"
    JOB_NOT_REVERTIBLE = "JOB_NOT_REVERTIBLE"
    BATCH_CONFLICT = "BATCH_CONFLICT"
    SEAL_TIMEOUT = "SEAL_TIMEOUT"
    SEQUENCE_BACKWARD = "SEQUENCE_BACKWARD"
    SEQUENCE_GAP = "SEQUENCE_GAP"
    RESUME_NOT_READY = "RESUME_NOT_READY"
    BATCH_TOO_LARGE = "BATCH_TOO_LARGE"
    TOO_MANY_STREAMS = "TOO_MANY_STREAMS"
    IDLE_STREAM = "IDLE_STREAM"
    NO_TOKEN = "NO_TOKEN"
    INVALID_TOKEN = "INVALID_TOKEN"
    TOKEN_EXPIRED = "TOKEN_EXPIRED"
    TLS_VERSION = "TLS_VERSION"
    MISSING_SCOPE = "MISSING_SCOPE"
    FOREIGN_TENANT = "FOREIGN_TENANT"
    WRONG_TENANT = "WRONG_TENANT"
    KAFKA_UNAVAILABLE = "KAFKA_UNAVAILABLE"
    POSTGRES_UNAVAILABLE = "POSTGRES_UNAVAILABLE"
    REDIS_UNAVAILABLE = "REDIS_UNAVAILABLE"
    KEYS_UNAVAILABLE = "KEYS_UNAVAILABLE"
    TOPIC_MISSING = "TOPIC_MISSING"
    TOPIC_REPLACED = "TOPIC_REPLACED"
    DRAINING = "DRAINING"


class Refusal(Exception):
    """A refused call. `str()` of it is one line that names the cause, the limit and the way out.

    reason: why, stable. field: path of the request's field at fault, "" if none. retry_after_s: seconds after which
    a retry helps, 0 if it does not. metadata: facts for `ErrorInfo.metadata`.
    """

    code: ClassVar[Code]
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
    """The request breaks a rule; the same request can never succeed."""

    code = Code.INVALID_ARGUMENT


class NotFound(Refusal):
    """What the request names does not exist, or is not the caller's."""

    code = Code.NOT_FOUND


class Conflict(Refusal):
    """What the request would create exists already and differs."""

    code = Code.ALREADY_EXISTS


class Busy(Refusal):
    """Another caller holds what the request needs."""

    code = Code.ABORTED
    default_retry_after_s = 1.0


class OutOfOrder(Refusal):
    """A batch is not the next one."""

    code = Code.OUT_OF_RANGE


class NotNow(Refusal):
    """The state of the job does not allow the request."""

    code = Code.FAILED_PRECONDITION


class TooMuch(Refusal):
    """The request is over a limit."""

    code = Code.RESOURCE_EXHAUSTED


class Unauthenticated(Refusal):
    """The caller is not authenticated."""

    code = Code.UNAUTHENTICATED


class Denied(Refusal):
    """The caller may not do this."""

    code = Code.PERMISSION_DENIED


class TooLate(Refusal):
    """The answer could not be given in time; a retry returns the same job."""

    code = Code.DEADLINE_EXCEEDED
    default_retry_after_s = 1.0


class Unavailable(Refusal):
    """A part that the request needs is unavailable; nothing is lost, and a retry helps."""

    code = Code.UNAVAILABLE
    default_retry_after_s = 1.0
