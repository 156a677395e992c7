"""Waiting for what is to come, with a deadline."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

LOOK_AGAIN_S = 0.05


async def eventually(found: Callable[[], T | None], within_s: float = 30) -> T:
    """Return what `found` gives, once that is neither None nor False. Fails after `within_s`."""
    async with asyncio.timeout(within_s):
        while True:
            value = await asyncio.to_thread(found)
            if value is not None and value is not False:
                return value
            await asyncio.sleep(LOOK_AGAIN_S)


def wait_for(found: Callable[[], bool], within_s: float) -> bool:
    """Wait until something is so; return whether it came to be. Not for the event loop's thread."""
    pause, ends_at_s = threading.Event(), time.monotonic() + within_s
    while not found():
        if time.monotonic() > ends_at_s:
            return False
        pause.wait(LOOK_AGAIN_S)
    return True
