"""Admission of streams: a bound on how many are open, and their end when the server drains."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

from bulkgrpc.errors import Reason, TooMuch, Unavailable

RETRY_AFTER_S = 1.0


class Admission:
    """Counts open streams. `drain` refuses new ones; `disconnect` ends those that are open."""

    def __init__(self, streams_max: int) -> None:
        self._streams_max = streams_max
        self._open = 0
        self._draining = False
        self._idle = asyncio.Event()
        self._idle.set()
        self._disconnecting = asyncio.Event()

    @property
    def open_streams(self) -> int:
        """Streams that are open now."""
        return self._open

    @contextmanager
    def admit(self) -> Iterator[None]:
        """Admit a stream while the context lasts, or refuse it at once: streams are not queued.

        Raises Unavailable (DRAINING) or TooMuch (TOO_MANY_STREAMS), both with a time after which to retry.
        """
        if self._draining:
            raise draining()
        if self._open >= self._streams_max:
            raise TooMuch(
                Reason.TOO_MANY_STREAMS,
                f"{self._streams_max} streams are open, the limit of this server: retry in a moment",
                retry_after_s=RETRY_AFTER_S,
                limit_streams=str(self._streams_max),
            )
        self._open += 1
        self._idle.clear()
        try:
            yield
        finally:
            self._open -= 1
            if self._open == 0:
                self._idle.set()

    def drain(self) -> None:
        """Refuse new streams from now on."""
        self._draining = True

    def disconnect(self) -> None:
        """Refuse new streams and end the open ones."""
        self._draining = True
        self._disconnecting.set()

    async def until_idle(self) -> None:
        """Wait until no stream is open."""
        await self._idle.wait()

    async def until_disconnected(self) -> NoReturn:
        """Wait for `disconnect`. Raises Unavailable (DRAINING) then."""
        await self._disconnecting.wait()
        raise draining()


def draining() -> Unavailable:
    """Return the refusal of a stream by a server that stops."""
    return Unavailable(
        Reason.DRAINING,
        "this server is stopping: open the job again, another server accepts it",
        retry_after_s=RETRY_AFTER_S,
    )
