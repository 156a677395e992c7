"""A TCP proxy that misbehaves on demand: delay, stall one way or both, cut after some bytes or before a text, reset."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum

LOOPBACK = "127.0.0.1"
_PIECE_BYTES = 64 * 1024
_READY_S = 10.0
_RESET = struct.pack("ii", 1, 0)
"""SO_LINGER on, 0 s: closing sends RST."""


class Way(Enum):
    """A direction, seen from the side that connects."""

    TO = "to"
    FROM = "from"


@dataclass(slots=True)
class Mood:
    """How a proxy treats what passes. stalled: nothing of these ways passes. delay_s: before each piece, either way.

    cut_after_bytes: reset a connection once so many bytes came from the target since then. cut_before: reset
    a connection instead of passing on a piece from the target that holds this text. cuts_left: how many of these cuts.
    """

    stalled: frozenset[Way] = frozenset()
    delay_s: float = 0.0
    cut_after_bytes: int | None = None
    cut_before: bytes | None = None
    cuts_left: int = 0


@dataclass(eq=False, slots=True)
class _Link:
    """The two ends of one connection that passes through."""

    near: asyncio.StreamWriter
    far: asyncio.StreamWriter | None = None
    bytes_from: int = 0
    tasks: list[asyncio.Task[None]] = field(default_factory=list)

    def reset(self) -> None:
        for writer in filter(None, (self.near, self.far)):
            with contextlib.suppress(OSError):
                found = writer.get_extra_info("socket")
                found.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            writer.transport.abort()
        for task in self.tasks:
            task.cancel()


class Proxies:
    """All proxies of a rig, on one thread with an event loop of its own. A context manager."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._opened: list[Proxy] = []
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxies", daemon=True)

    def __enter__(self) -> Proxies:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        async def end() -> None:
            for proxy in self._opened:
                await proxy.close()
            rest = asyncio.all_tasks() - {asyncio.current_task()}
            for task in rest:
                task.cancel()
            await asyncio.gather(*rest, return_exceptions=True)

        asyncio.run_coroutine_threadsafe(end(), self._loop).result(_READY_S)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(_READY_S)
        self._loop.close()

    def open(self) -> Proxy:
        """Listen on a free port of the loopback interface; what comes is passed on once `target_port` is set."""
        proxy = Proxy(self._loop)
        asyncio.run_coroutine_threadsafe(proxy.listen(), self._loop).result(_READY_S)
        self._opened.append(proxy)
        return proxy


class Proxy:
    """One listening port. `set` and `reset` may be called from any thread. target_port: where it leads to."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self.port = 0
        self.target_port = 0
        self._mood = Mood()
        self._links: set[_Link] = set()
        self._changed = asyncio.Event()
        self._server: asyncio.Server | None = None
        self.cuts = 0

    async def listen(self) -> None:
        """Start listening."""
        self._server = await asyncio.start_server(self._serve, LOOPBACK, 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def close(self) -> None:
        """Stop listening; reset the open connections."""
        if self._server is not None:
            self._server.close()
        for link in list(self._links):
            link.reset()

    def set(self, mood: Mood) -> None:
        """Treat what passes from now on like this; `Mood()` passes everything unchanged."""

        def change() -> None:
            self._mood = mood
            for link in self._links:
                link.bytes_from = 0
            self._changed.set()
            self._changed = asyncio.Event()

        self._do(change)

    def reset(self) -> None:
        """Reset every connection."""

        def change() -> None:
            for link in list(self._links):
                link.reset()

        self._do(change)

    def _do(self, change: Callable[[], None]) -> None:
        done = threading.Event()

        def run() -> None:
            change()
            done.set()

        self._loop.call_soon_threadsafe(run)
        done.wait(_READY_S)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        link = _Link(writer)
        self._links.add(link)
        try:
            far_reader, link.far = await asyncio.open_connection(LOOPBACK, self.target_port)
            link.tasks = [
                asyncio.ensure_future(self._pump(link, reader, link.far, Way.TO)),
                asyncio.ensure_future(self._pump(link, far_reader, writer, Way.FROM)),
            ]
            await asyncio.gather(*link.tasks, return_exceptions=True)
        except (OSError, asyncio.CancelledError):
            pass
        finally:
            self._links.discard(link)
            link.reset()

    async def _pump(self, link: _Link, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, way: Way) -> None:
        try:
            while piece := await reader.read(_PIECE_BYTES):
                while way in self._mood.stalled:
                    await self._changed.wait()
                if self._mood.delay_s:
                    await asyncio.sleep(self._mood.delay_s)
                if way is Way.FROM and self._cuts(link, piece):
                    return
                writer.write(piece)
                await writer.drain()
            if writer.can_write_eof():
                writer.write_eof()
        except OSError:
            link.reset()

    def _cuts(self, link: _Link, piece: bytes) -> bool:
        mood = self._mood
        link.bytes_from += len(piece)
        long = mood.cut_after_bytes is not None and link.bytes_from > mood.cut_after_bytes
        if mood.cuts_left == 0 or not (long or (mood.cut_before is not None and mood.cut_before in piece)):
            return False
        mood.cuts_left -= 1
        self.cuts += 1
        link.reset()
        return True
