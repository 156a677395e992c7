"""Waiting for what is to come, with a deadline."""

from __future__ import annotations

import asyncio
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
