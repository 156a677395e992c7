"""What a client may raise. `str()` of each is one line that says what happened and what to do.

BulkError
├── Refused            the server said no, with a reason
├── Unreachable        no server answers at all
├── CallFailed         the call broke, or took too long
├── GaveUp             a submission made no progress for too long; it can be gone on with
├── NotEnded           a job did not end within the time given to `wait`
└── WrongInput         what is to be submitted is not what the dataset takes
"""

from __future__ import annotations

import grpc

from bulkgrpc import errors

_RETRIABLE_CODES = frozenset(
    {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.ABORTED,
        # What a server or a proxy makes of streams when it is stopped. A call cancelled here is not seen as an error.
        grpc.StatusCode.CANCELLED,
    }
)


_BROKEN_UNDER_WRITE = "Internal error from Core"


class BulkError(Exception):
    """Anything that the client raises by itself.

    reason: stable, for branching on; that of the server where it gave one. message: the line. field: path of the
    request's field at fault, "" if none. retriable: whether trying the same again may help. retry_after_s: seconds that
    the server asks to wait first.
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
            retriable=refusal.code in _RETRIABLE_CODES or refusal.retry_after_s > 0,
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
    """The call broke on its way, or did not answer in time."""

    def __init__(self, code: str, message: str, *, retriable: bool) -> None:
        super().__init__(code, message, retriable=retriable)


class BrokenUnderWrite(CallFailed):
    """A stream ended while a batch was being written to it.

    grpc.aio (1.85) then says INTERNAL and never what the server said, so that this may hide a refusal.
    """

    def __init__(self, target: str) -> None:
        super().__init__("INTERNAL", f"the connection to {target} broke", retriable=True)


class GaveUp(BulkError):
    """A submission made no progress for `retry_deadline_s`.

    The job stays open: submit again with `idempotency_key` and it goes on from the last acknowledged batch.
    """

    def __init__(self, idempotency_key: str, silent_s: float, last: BulkError) -> None:
        self.idempotency_key = idempotency_key
        self.last = last
        super().__init__(
            "GAVE_UP",
            f"no progress for {silent_s:.0f} s, last because: {last.message}; "
            f"submit again with the key {idempotency_key} to go on",
            retriable=True,
        )


class NotEnded(BulkError):
    """A job did not end within the time given; it goes on without anybody waiting."""

    def __init__(self, name: str, state: str, deadline_s: float) -> None:
        super().__init__(
            "NOT_ENDED", f"{name} is still {state} after {deadline_s:.0f} s: is a worker running?", retriable=True
        )


class WrongInput(BulkError):
    """What is to be submitted is not what the dataset takes."""

    def __init__(self, message: str) -> None:
        super().__init__("WRONG_INPUT", message)


def from_rpc_error(error: grpc.RpcError, target: str) -> BulkError:
    """Say what a failed call means, in the client's words."""
    refusal = errors.from_rpc_error(error)
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
        grpc.StatusCode.UNAVAILABLE: f"no TLS with {target}: {details}",
        grpc.StatusCode.DEADLINE_EXCEEDED: f"{target} did not answer in time",
        grpc.StatusCode.UNIMPLEMENTED: f"the server at {target} is no bulkgrpc server, or an older one",
    }.get(code, f"{target} answered {code.name}: {details}")
    return CallFailed(code.name, message, retriable=code in _RETRIABLE_CODES)
