"""The exceptions of the client. `str()` of each is one line: what happened, and what to do.

BulkError
├── Refused            the server refused the call, with a reason
├── Unreachable        no server answers
├── CallFailed         the connection broke, or the call timed out
├── GaveUp             a submission made no progress for too long; it can be resumed
├── NotEnded           a job did not end within the deadline of `wait`
└── WrongInput         the items to submit are not records of the dataset
"""

from __future__ import annotations

import grpc

from bulkgrpc import errors, rpc_status
from bulkgrpc.model import JobBlock

_RETRIABLE_CODES = frozenset(
    {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.ABORTED,
        # The status that a server or proxy ends streams with when it stops. A call cancelled by this client is no
        # error.
        grpc.StatusCode.CANCELLED,
    }
)


_BROKEN_UNDER_WRITE = "Internal error from Core"


class BulkError(Exception):
    """Base class of the client's exceptions.

    reason: stable, for programs; the server's reason if it sent one. message: one line. field: path of the request's
    invalid field, "" if none. retriable: whether a retry may help. retry_after_s: seconds to wait before a retry, as
    the server asked.
    """

    def __init__(
        self, reason: str, message: str, *, field: str = "", retriable: bool = False, retry_after_s: float = 0.0
    ) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.field = field
        self.retriable = retriable
        self.retry_after_s = retry_after_s


class Refused(BulkError):
    """The server refused the call; `reason` is one of `bulkgrpc.errors.Reason`."""

    def __init__(self, refusal: errors.Refusal) -> None:
        super().__init__(
            refusal.reason.value,
            refusal.message,
            field=refusal.field,
            retriable=rpc_status.grpc_code(refusal) in _RETRIABLE_CODES or refusal.retry_after_s > 0,
            retry_after_s=refusal.retry_after_s,
        )
        self.refusal = refusal


class Unreachable(BulkError):
    """No server answers at the target."""

    def __init__(self, target: str, detail: str) -> None:
        self.detail = detail
        super().__init__(
            "UNREACHABLE",
            f"no server at {target}: start one with `bulkgrpc server` or name another with --server",
            retriable=True,
        )


class CallFailed(BulkError):
    """The connection broke, or the server did not answer in time."""

    def __init__(self, code: str, message: str, *, retriable: bool) -> None:
        super().__init__(code, message, retriable=retriable)


class BrokenUnderWrite(CallFailed):
    """A stream ended while a batch was being written to it.

    grpc.aio (1.85) then reports INTERNAL instead of the server's status, so this may hide a refusal.
    """

    def __init__(self, target: str) -> None:
        super().__init__("INTERNAL", f"the connection to {target} broke", retriable=True)


class GaveUp(BulkError):
    """A submission made no progress for `retry_deadline_s`.

    The job stays open: submit again with `idempotency_key` to resume after the last acknowledged batch.
    """

    def __init__(self, idempotency_key: str, silent_s: float, last: BulkError) -> None:
        self.idempotency_key = idempotency_key
        self.last = last
        super().__init__(
            "GAVE_UP",
            f"no progress for {silent_s:.0f} s; last error: {last.message}; "
            f"to resume, submit again with the key {idempotency_key}",
            retriable=True,
        )


class NotEnded(BulkError):
    """A job did not end within the deadline. It continues. block: why it is blocked; None if it is not."""

    def __init__(self, name: str, state: str, deadline_s: float, block: JobBlock | None = None) -> None:
        why = "is a worker running?" if block is None else f"it is {block}"
        super().__init__("NOT_ENDED", f"{name} is still {state} after {deadline_s:.0f} s: {why}", retriable=True)
        self.block = block


class WrongInput(BulkError):
    """The items to submit are not records of the dataset."""

    def __init__(self, message: str) -> None:
        super().__init__("WRONG_INPUT", message)


def from_rpc_error(error: grpc.RpcError, target: str) -> BulkError:
    """Return the client's exception for a failed call. target: address for the message."""
    refusal = rpc_status.from_rpc_error(error)
    if refusal is not None:
        return Refused(refusal)
    code: grpc.StatusCode = error.code()
    details = " ".join(str(error.details() or "no details").split())
    tls = "ssl" in details.lower() or "handshake" in details.lower()
    if code is grpc.StatusCode.UNAVAILABLE and not tls:
        return Unreachable(target, details)
    if code is grpc.StatusCode.INTERNAL and details == _BROKEN_UNDER_WRITE:
        return BrokenUnderWrite(target)
    message = {
        grpc.StatusCode.UNAVAILABLE: f"TLS with {target} failed: {details}",
        grpc.StatusCode.DEADLINE_EXCEEDED: f"{target} did not answer in time",
        grpc.StatusCode.UNIMPLEMENTED: f"the server at {target} is not a bulkgrpc server, or an older version",
    }.get(code, f"{target} answered {code.name}: {details}")
    return CallFailed(code.name, message, retriable=code in _RETRIABLE_CODES)
