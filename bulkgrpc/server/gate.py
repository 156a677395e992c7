"""How many streams may be open, and the end of that when the server drains."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

from bulkgrpc.errors import Reason, TooMuch, Unavailable

RETRY_AFTER_S = 1.0


class Gate:
    """Counts open streams. `drain` closes it to new ones, `expel` ends those that are open."""

    def __init__(self, streams_max: int) -> None:
        self._streams_max = streams_max
        self._open = 0
        self._draining = False
        self._empty = asyncio.Event()
        self._empty.set()
        self._expelled = asyncio.Event()

    @property
    def open_streams(self) -> int:
        """Streams that are open now."""
        return self._open

    @contextmanager
    def stream(self) -> Iterator[None]:
        """Hold a place for a stream, or refuse it at once: nothing queues here.

        Raises Unavailable (DRAINING) or TooMuch (TOO_MANY_STREAMS), both with a time after which to try again.
        """
        if self._draining:
            raise draining()
        if self._open >= self._streams_max:
            raise TooMuch(
                Reason.TOO_MANY_STREAMS,
                f"{self._streams_max} streams are open, the most this server takes: try again in a moment",
                retry_after_s=RETRY_AFTER_S,
                limit_streams=str(self._streams_max),
            )
        self._open += 1
        self._empty.clear()
        try:
            yield
        finally:
            self._open -= 1
            if self._open == 0:
                self._empty.set()

    def drain(self) -> None:
        """Refuse new streams from now on."""
        self._draining = True

    def expel(self) -> None:
        """End the open streams."""
        self._draining = True
        self._expelled.set()

    async def emptied(self) -> None:
        """Wait until no stream is open."""
        await self._empty.wait()

    async def until_expelled(self) -> NoReturn:
        """Wait for `expel`. Raises Unavailable (DRAINING) then."""
        await self._expelled.wait()
        raise draining()


def draining() -> Unavailable:
    """Return the refusal of a stream by a server that goes away."""
    return Unavailable(
        Reason.DRAINING,
        "this server is about to stop: open the job again, another server takes it",
        retry_after_s=RETRY_AFTER_S,
    )
