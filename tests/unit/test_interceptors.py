"""What every RPC passes through: metrics, refusals to statuses, identity and scopes."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any

import grpc
import pytest
from grpc_status import rpc_status

from bulkgrpc import metrics
from bulkgrpc.errors import Denied, Reason, Unauthenticated, Unavailable
from bulkgrpc.ingest.identity import ADMIN, READ, WRITE, Caller, Credentials
from bulkgrpc.server.grpc.access import DATASETS, INGEST, JOBS, LEDGER, REQUIRED_SCOPES, current_caller
from bulkgrpc.server.grpc.interceptors import (
    CallInterceptor,
    IdentityInterceptor,
    MetricsInterceptor,
    RefusalInterceptor,
    TlsInterceptor,
)
from bulkgrpc.v1 import datasets_pb2, ingest_pb2, jobs_pb2, ledger_pb2

GET_JOB = f"/{JOBS}/GetJob"


class Context:
    """Takes the status that a call is ended with."""

    def __init__(self) -> None:
        self.status: Any = None
        self.metadata: list[tuple[str, str]] = []
        self.auth: dict[str, list[bytes]] = {}

    def auth_context(self) -> dict[str, list[bytes]]:
        return self.auth

    def invocation_metadata(self) -> list[tuple[str, str]]:
        return self.metadata

    def code(self) -> int:
        return int(grpc.StatusCode.UNAVAILABLE.value[0])

    async def abort_with_status(self, status: Any) -> None:
        self.status = status
        raise RuntimeError("aborted")


async def ended_with(method: Callable[..., Awaitable[None]]) -> Any:
    context: Any = Context()
    with pytest.raises(RuntimeError, match="aborted"):
        await RefusalInterceptor().around(GET_JOB, method)(None, context)
    return context.status


async def test_an_unexpected_error_is_internal_and_tells_nothing_of_its_insides() -> None:
    async def method(_: object, __: object) -> None:
        raise ZeroDivisionError("secret")

    status = await ended_with(method)
    assert status.code.name == "INTERNAL"
    assert "secret" not in status.details


async def test_a_refusal_inside_a_task_group_is_the_answer() -> None:
    async def refuse() -> None:
        raise Unavailable(Reason.DRAINING, "away")

    async def method(_: object, __: object) -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(refuse())
            await asyncio.sleep(60)

    status = await ended_with(method)
    assert (status.code.name, status.details) == ("UNAVAILABLE", "away")
    assert dict(status.trailing_metadata)[rpc_status.GRPC_DETAILS_METADATA_KEY]


async def test_a_cancelled_call_stays_cancelled() -> None:
    async def method(_: object, __: object) -> None:
        raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        await RefusalInterceptor().around(GET_JOB, method)(None, Context())  # type: ignore[arg-type]


def test_every_rpc_of_ours_requires_a_scope() -> None:
    services = [
        file.DESCRIPTOR.services_by_name[name.rpartition(".")[2]]
        for file, name in ((ingest_pb2, INGEST), (jobs_pb2, JOBS), (datasets_pb2, DATASETS), (ledger_pb2, LEDGER))
    ]
    rpcs = {f"/{service.full_name}/{method.name}" for service in services for method in service.methods}
    assert set(REQUIRED_SCOPES) == rpcs
    assert set(REQUIRED_SCOPES.values()) == {READ, WRITE, ADMIN}


class Known:
    """Identifies every caller as one with the given scopes."""

    def __init__(self, *scopes: str) -> None:
        self._scopes = frozenset(scopes)
        self.credentials: list[Credentials] = []

    async def identify(self, credentials: Credentials) -> Caller:
        self.credentials.append(credentials)
        return Caller("acme", self._scopes)


async def test_a_method_knows_its_caller_and_runs_only_with_the_scope_of_its_rpc() -> None:
    async def method(_: object, __: object) -> str:
        return current_caller().tenant

    context: Any = Context()
    context.metadata = [("authorization", "Bearer x"), ("bulkgrpc-tenant", "acme")]
    known = Known(READ)
    assert await IdentityInterceptor(known).around(GET_JOB, method)(None, context) == "acme"
    assert known.credentials == [Credentials("Bearer x", "acme")]
    with pytest.raises(Denied) as caught:
        await IdentityInterceptor(Known(WRITE, ADMIN)).around(GET_JOB, method)(None, context)
    assert caught.value.reason is Reason.MISSING_SCOPE


async def test_calls_are_counted_by_rpc_and_status(monkeypatch: pytest.MonkeyPatch) -> None:
    counted: list[dict[str, str]] = []
    counter = SimpleNamespace(add=lambda _, attributes: counted.append(attributes))
    monkeypatch.setattr(metrics, "server_calls", counter)

    async def answered(_: object, __: object) -> None:
        return

    async def aborted(_: object, __: object) -> None:
        raise grpc.aio.AbortError

    async def cancelled(_: object, __: object) -> None:
        raise asyncio.CancelledError

    context: Any = Context()
    for method, error in ((answered, None), (aborted, grpc.aio.AbortError), (cancelled, asyncio.CancelledError)):
        call = MetricsInterceptor().around(GET_JOB, method)(None, context)
        if error is None:
            await call
        else:
            with pytest.raises(error):
                await call
    assert counted == [{"rpc": GET_JOB, "code": code} for code in ("OK", "UNAVAILABLE", "CANCELLED")]


async def test_other_services_and_unknown_methods_are_left_alone() -> None:
    class Marking(CallInterceptor):
        def around(self, name: str, method: Any) -> Any:
            raise AssertionError(name)

    handler: Any = grpc.unary_unary_rpc_method_handler(lambda request, context: None)
    for name, found in (("/grpc.health.v1.Health/Check", handler), (GET_JOB, None)):

        async def continuation(_: object, found: Any = found) -> Any:
            return found

        assert await Marking().intercept_service(continuation, SimpleNamespace(method=name)) is found


@pytest.mark.parametrize(
    ("auth", "refused"),
    [({}, False), ({"ssl_tls_version": [b"TLSv1.3"]}, False), ({"ssl_tls_version": [b"TLSv1.2"]}, True)],
)
async def test_tls_before_1_3_is_refused_whatever_the_key_of_the_server_is(
    auth: dict[str, list[bytes]], refused: bool
) -> None:
    async def method(_: object, __: object) -> str:
        return "answer"

    context: Any = Context()
    context.auth = auth
    call = TlsInterceptor().around(GET_JOB, method)(None, context)
    if refused:
        with pytest.raises(Unauthenticated, match=r"TLS 1\.3"):
            await call
    else:
        assert await call == "answer"
