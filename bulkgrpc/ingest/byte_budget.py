"""The budget of bytes in flight to the record log: a slow log makes streams wait here instead of filling memory."""

from __future__ import annotations

import asyncio
import collections


class ByteBudget:
    """A number of bytes, granted first come, first served. Belongs to one event loop.

    A stream that waits here reads nothing from its connection, so flow control stops its client.
    """

    def __init__(self, capacity_bytes: int) -> None:
        self._capacity_bytes = capacity_bytes
        self._free_bytes = capacity_bytes
        self._waiting: collections.deque[tuple[asyncio.Future[None], int]] = collections.deque()

    @property
    def in_use_bytes(self) -> int:
        """Bytes granted and not yet released."""
        return self._capacity_bytes - self._free_bytes

    async def acquire(self, size_bytes: int) -> int:
        """Wait for `size_bytes`, at most the whole budget; return how many bytes to release."""
        granted = min(size_bytes, self._capacity_bytes)
        if not self._waiting and granted <= self._free_bytes:
            self._free_bytes -= granted
            return granted
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((turn, granted))
        try:
            await turn
        except asyncio.CancelledError:
            # Cancelled after the grant and before this task ran: no one else can release these bytes.
            if turn.done() and not turn.cancelled():
                self.release(granted)
            else:
                self._waiting.remove((turn, granted))
                self._grant()
            raise
        return granted

    def release(self, size_bytes: int) -> None:
        """Release bytes and grant waiting requests, in order."""
        self._free_bytes += size_bytes
        assert self._free_bytes <= self._capacity_bytes, "bytes were released twice"  # noqa: S101 — an invariant
        self._grant()

    def _grant(self) -> None:
        while self._waiting and self._waiting[0][1] <= self._free_bytes:
            turn, granted = self._waiting.popleft()
            self._free_bytes -= granted
            turn.set_result(None)
