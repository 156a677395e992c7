"""Admission of streams: a bound on how many are open, their share among tenants, and their end when the server drains.

| open streams               | a tenant's next stream                                                            |
|----------------------------|-----------------------------------------------------------------------------------|
| under 9 of 10 of the limit | is admitted                                                                       |
| more                       | is admitted, unless the tenant has its share                                      |
| the limit                  | replaces an idle stream of a tenant that has more, which ends; else it is refused |

A tenant's share is 9 of 10 of the limit, divided by the tenants with open streams. So one tenant alone has nearly all
slots, and never the last ones. A stream that sends nothing keeps its job, and its slot while no other tenant needs it.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn

from bulkgrpc.errors import Reason, TooMuch, Unavailable

RETRY_AFTER_S = 1.0
IDLE_AFTER_S = 5.0
"""How long the server must have waited for a stream's next message before its slot may go to another tenant."""
RESERVED = 10
"""One slot of so many is kept for tenants that have less than their share."""


class Slot:
    """The slot of an open stream. The stream says when it waits for its client, and asks whether it has to end."""

    def __init__(self, tenant: str, clock: Callable[[], float]) -> None:
        self.tenant = tenant
        self._clock = clock
        self._waits_since_s: float | None = None
        self._taken = asyncio.Event()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """The stream waits for its client while the context lasts."""
        self._waits_since_s = self._clock()
        try:
            yield
        finally:
            self._waits_since_s = None

    @property
    def idle_s(self) -> float:
        """How long the stream has waited for its client; 0 if it does not, or has to end already."""
        if self._waits_since_s is None or self._taken.is_set():
            return 0.0
        return self._clock() - self._waits_since_s

    def take(self) -> None:
        """Have the stream end."""
        self._taken.set()

    async def until_taken(self) -> NoReturn:
        """Wait until another tenant needs the slot. Raises Unavailable (IDLE_STREAM) then."""
        await self._taken.wait()
        raise Unavailable(
            Reason.IDLE_STREAM,
            f"no message came for {IDLE_AFTER_S:g} s, and another tenant needs the slot; the job stays open: open it "
            "again under its idempotency key when there is something to send",
            retry_after_s=RETRY_AFTER_S,
        )


class Admission:
    """Counts open streams. `drain` refuses new ones; `disconnect` ends those that are open."""

    def __init__(self, streams_max: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._streams_max = streams_max
        self._clock = clock
        self._slots: dict[Slot, None] = {}
        self._tenants = Counter[str]()
        self._draining = False
        self._idle = asyncio.Event()
        self._idle.set()
        self._disconnecting = asyncio.Event()

    @property
    def open_streams(self) -> int:
        """Streams that are open now."""
        return len(self._slots)

    @contextmanager
    def admit(self, tenant: str) -> Iterator[Slot]:
        """Admit a stream while the context lasts, or refuse it at once: streams are not queued.

        Raises Unavailable (DRAINING) or TooMuch (TOO_MANY_STREAMS), both with a time after which to retry.
        """
        if self._draining:
            raise draining()
        self._make_room(tenant)
        slot = Slot(tenant, self._clock)
        self._slots[slot] = None
        self._tenants[tenant] += 1
        self._idle.clear()
        try:
            yield slot
        finally:
            del self._slots[slot]
            self._tenants[tenant] -= 1
            if not self._tenants[tenant]:
                del self._tenants[tenant]
            if not self._slots:
                self._idle.set()

    def _make_room(self, tenant: str) -> None:
        """Check that the tenant may have one more stream; end an idle one of another tenant if no slot is left."""
        shared = self._streams_max - self._streams_max // RESERVED
        own = self._tenants[tenant]
        if len(self._slots) < shared:
            return
        share = max(1, shared // len(self._tenants.keys() | {tenant}))
        if own and own >= share and self._streams_max >= RESERVED:
            raise self._too_many(f"{own} of them are of tenant {tenant}, and the rest is kept for others")
        if len(self._slots) < self._streams_max:
            return
        idle = self._longest_idle(own)
        if idle is None:
            raise self._too_many("none of them is idle")
        idle.take()

    def _longest_idle(self, own: int) -> Slot | None:
        """Return the stream that has been idle for longest, of tenants with more than `own` + 1; None if none is."""
        found = [slot for slot in self._slots if slot.idle_s >= IDLE_AFTER_S and self._tenants[slot.tenant] > own + 1]
        return max(found, key=lambda slot: slot.idle_s, default=None)

    def _too_many(self, why: str) -> TooMuch:
        return TooMuch(
            Reason.TOO_MANY_STREAMS,
            f"{len(self._slots)} streams are open, the limit of this server is {self._streams_max}, and {why}: retry "
            "in a moment",
            retry_after_s=RETRY_AFTER_S,
            limit_streams=str(self._streams_max),
        )

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
