"""A submission through something that closes idle connections, as load balancers and firewalls do."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest

from bulkgrpc.client import AsyncBulkClient, Batch, ClientConfig, GaveUp
from bulkgrpc.v1 import ingest_pb2
from tests.support.processes import Service

pytest_plugins = ["tests.integration.service_parts"]
pytestmark = pytest.mark.timeout(180)
RECORDS = Batch.of(ingest_pb2.RecordBatch(records=[b"\n\x02S1"]).SerializeToString())
GIVES_UP_SOON = ClientConfig(retry_deadline_s=0.5)


@dataclass(slots=True)
class IdleProxy:
    """A TCP proxy that closes a connection on which nothing has passed for `idle_s`. cuts: how many it closed."""

    target: str
    idle_s: float
    cuts: int = 0
    cut: asyncio.Condition = field(default_factory=asyncio.Condition)
    address: str = ""
    connections: set[asyncio.Task[None]] = field(default_factory=set)

    def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections.add(asyncio.create_task(self._serve(reader, writer)))

    async def close(self) -> None:
        for connection in self.connections:
            connection.cancel()
        await asyncio.gather(*self.connections, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        host, port = self.target.rsplit(":", 1)
        far_reader, far_writer = await asyncio.open_connection(host, int(port))
        now_s = asyncio.get_running_loop().time
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self.idle_s) as idle, asyncio.TaskGroup() as ways:
                    for source, sink in ((reader, far_writer), (far_reader, writer)):
                        ways.create_task(self._pass(source, sink, lambda: idle.reschedule(now_s() + self.idle_s)))
        finally:
            for end in (writer, far_writer):
                end.close()
            for end in (writer, far_writer):
                with contextlib.suppress(OSError):
                    await end.wait_closed()
        async with self.cut:
            self.cuts += 1
            self.cut.notify_all()

    async def _pass(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, passed: Callable[[], None]) -> None:
        with contextlib.suppress(OSError):
            while data := await source.read(65536):
                passed()
                sink.write(data)
                await sink.drain()
        sink.close()


@asynccontextmanager
async def idle_proxy(target: str, idle_s: float) -> AsyncIterator[IdleProxy]:
    proxy = IdleProxy(target, idle_s)
    server = await asyncio.start_server(proxy.accept, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()
    proxy.address = f"{host}:{port}"
    try:
        yield proxy
    finally:
        server.close()
        await proxy.close()


async def after_cuts(proxy: IdleProxy, cuts: int) -> AsyncIterator[Batch]:
    """Yield a batch, and another one once the proxy has cut so many connections."""
    yield RECORDS
    async with proxy.cut:
        await proxy.cut.wait_for(lambda: proxy.cuts >= cuts)
    yield RECORDS


async def test_a_quiet_stream_that_is_cut_is_opened_again_without_counting_as_a_failure(
    running: Service, tenant: str
) -> None:
    async with (
        idle_proxy(running.address, idle_s=1.2) as proxy,
        AsyncBulkClient(proxy.address, tenant=tenant, config=GIVES_UP_SOON) as client,
    ):
        job = await client.submit("sensor_readings", after_cuts(proxy, 3))
        assert (await job.get()).counts.accepted == 2
    assert proxy.cuts >= 3


async def test_a_stream_that_is_cut_at_once_every_time_is_given_up(running: Service, tenant: str) -> None:
    async with (
        idle_proxy(running.address, idle_s=0.2) as proxy,
        AsyncBulkClient(proxy.address, tenant=tenant, config=GIVES_UP_SOON) as client,
    ):
        with pytest.raises(GaveUp):
            await client.submit("sensor_readings", after_cuts(proxy, 1000))
