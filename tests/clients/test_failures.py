"""What the loaders of docs/clients.md do when a server refuses for now, breaks a stream, or drops all of them."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import grpc
import pytest

from bulkgrpc.errors import Reason, TooMuch
from tests.clients.snippets import LOADERS, WITHIN_S, checkout, executed, require
from tests.unit.fake_server import Stream, fake_server

pytestmark = pytest.mark.timeout(WITHIN_S)
RETRY_AFTER_S = 1.7
BATCHES = 10
LAST_ARGUMENT = {
    "Go": ("-rows 10000", " -retry-for 6s"),
    "Java": ("10000", " 6"),
    "TypeScript": ("../../../proto", " 6"),
}
"""The end of each command, and what makes it give up after 6 s."""
__all__ = ["checkout"]


@pytest.mark.parametrize(("section", "tools"), LOADERS)
async def test_a_loader_waits_as_long_as_asked_and_continues_a_broken_stream(
    checkout: Path, section: str, tools: tuple[str, ...]
) -> None:
    require(section, tools)
    moments: list[float] = []

    async def refuse(stream: Stream) -> None:
        moments.append(time.monotonic())
        await stream.refuse(TooMuch(Reason.TOO_MANY_STREAMS, "too many streams", retry_after_s=RETRY_AFTER_S))

    async def break_in_the_middle(stream: Stream) -> None:
        moments.append(time.monotonic())
        await stream.open()
        await stream.receive(5)
        await stream.acknowledge(3)
        await stream.context.abort(grpc.StatusCode.UNAVAILABLE, "gone")

    async def finish(stream: Stream) -> None:
        await stream.open(3)
        await stream.receive()
        await stream.seal()

    async with fake_server(refuse, break_in_the_middle, finish) as fake:
        done = await asyncio.to_thread(executed, section, checkout, fake.address)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "SUCCEEDED" in done.stdout
    assert moments[1] - moments[0] >= RETRY_AFTER_S
    assert len(fake.streams) == 3
    assert fake.streams[2].batches == list(range(3, BATCHES))
    assert len({stream.header.idempotency_key for stream in fake.streams}) == 1


@pytest.mark.parametrize(("section", "tools"), LOADERS)
async def test_a_loader_gives_up_on_a_server_that_opens_each_stream_and_drops_it(
    checkout: Path, section: str, tools: tuple[str, ...]
) -> None:
    require(section, tools)

    async def drop(stream: Stream) -> None:
        await stream.open()
        await stream.context.abort(grpc.StatusCode.UNAVAILABLE, "gone")

    end, more = LAST_ARGUMENT[section]
    async with fake_server(drop) as fake:
        done = await asyncio.to_thread(executed, section, checkout, fake.address, (end, end + more))
    assert done.returncode != 0
    assert 2 <= len(fake.streams) <= 8
