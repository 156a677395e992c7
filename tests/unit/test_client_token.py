"""A client whose token is a function: called for the first call, and again when the token has ended."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable
from itertools import count

import pytest

from bulkgrpc.client import AsyncBulkClient, Batch, CallFailed, ClientConfig, Refused, Token, WrongInput
from bulkgrpc.errors import Reason, Unauthenticated
from tests.unit.fake_server import Stream, fake_server, seal_everything

pytestmark = pytest.mark.timeout(20)
NEVER_AGAIN = ClientConfig(retry_deadline_s=0.001, connect_deadline_s=0.001)
"""A client that gives up at the first failure that counts."""
BATCHES = [Batch(b"x" * 10, 1)] * 4


def numbered() -> Callable[[], str]:
    numbers = count(1)
    return lambda: f"token-{next(numbers)}"


def asynchronous(make: Callable[[], str]) -> Token:
    async def token() -> str:
        return make()

    return token


def token_of(stream: Stream) -> str:
    return str(dict(stream.context.invocation_metadata())["authorization"])


async def expire(stream: Stream) -> None:
    await stream.open(stream.header.first_sequence)
    # All that there is: a status that arrives during a write is lost in grpc.aio.
    await stream.receive(len(BATCHES) - stream.header.first_sequence)
    await stream.acknowledge(stream.header.first_sequence + 1)
    await stream.refuse(Unauthenticated(Reason.TOKEN_EXPIRED, "the token has expired", retry_after_s=0.01))


async def reject(stream: Stream) -> None:
    await stream.refuse(Unauthenticated(Reason.INVALID_TOKEN, "the token is not accepted"))


@pytest.mark.parametrize(
    "kind", [lambda make: make, asynchronous, functools.partial], ids=["plain", "async", "partial"]
)
async def test_a_token_that_ends_is_replaced_and_no_failure_is_counted(
    kind: Callable[[Callable[[], str]], Token],
) -> None:
    async with (
        fake_server(expire, expire, seal_everything) as fake,
        AsyncBulkClient(fake.address, token=kind(numbered()), config=NEVER_AGAIN) as client,
    ):
        await client.submit("d", BATCHES)
    assert [token_of(stream) for stream in fake.streams] == ["Bearer token-1", "Bearer token-2", "Bearer token-3"]
    assert [stream.header.first_sequence for stream in fake.streams] == [0, 1, 2]


async def test_a_token_that_ended_between_two_submissions_is_replaced() -> None:
    async with (
        fake_server(seal_everything, reject, seal_everything) as fake,
        AsyncBulkClient(fake.address, token=numbered(), config=NEVER_AGAIN) as client,
    ):
        await client.submit("d", BATCHES)
        await client.submit("d", BATCHES)
    assert [token_of(stream) for stream in fake.streams] == ["Bearer token-1", "Bearer token-1", "Bearer token-2"]


async def test_a_function_whose_tokens_are_never_accepted_is_called_twice() -> None:
    async with fake_server(reject) as fake, AsyncBulkClient(fake.address, token=numbered()) as client:
        with pytest.raises(Refused, match="not accepted"):
            await client.submit("d", BATCHES)
    assert [token_of(stream) for stream in fake.streams] == ["Bearer token-1", "Bearer token-2"]


async def test_a_fixed_token_that_has_ended_is_not_tried_forever() -> None:
    async with fake_server(expire, reject) as fake, AsyncBulkClient(fake.address, token="fixed") as client:
        with pytest.raises(Refused, match="not accepted"):
            await client.submit("d", BATCHES)
    assert len(fake.streams) == 2


async def test_what_the_function_raises_is_raised_by_the_call() -> None:
    def no_token() -> str:
        raise OSError("the issuer does not answer")

    async with AsyncBulkClient("127.0.0.1:1", token=no_token) as client:
        with pytest.raises(OSError, match="issuer"):
            await client.submit("d", BATCHES)
        with pytest.raises(OSError, match="issuer"):
            await client.get_job("tenants/t/jobs/j")


async def test_a_function_that_returns_no_token_is_named() -> None:
    async with AsyncBulkClient("127.0.0.1:1", token=lambda: "") as client:
        with pytest.raises(WrongInput, match="`token` returned ''"):
            await client.get_job("tenants/t/jobs/j")


@pytest.mark.parametrize("token", ["abc\n", "a b", "é"])
async def test_what_is_no_token_is_said_before_a_call(token: str) -> None:
    async with fake_server(seal_everything) as fake:
        for given in (token, lambda: token):
            async with AsyncBulkClient(fake.address, token=given) as client:
                with pytest.raises(WrongInput, match="the line break after it"):
                    await client.submit("d", BATCHES)
        assert not fake.streams


async def test_a_function_that_does_not_return_is_not_awaited_for_ever() -> None:
    async def never() -> str:
        await asyncio.Event().wait()
        return ""

    async with (
        fake_server(seal_everything) as fake,
        AsyncBulkClient(fake.address, token=never, config=ClientConfig(call_deadline_s=0.05)) as client,
    ):
        with pytest.raises(CallFailed, match=r"did not return within 0\.05 s"):
            await client.submit("d", BATCHES)
