"""Whether a server process is live and ready, for the HTTP endpoint. Unavailable stores change neither."""

from __future__ import annotations

import asyncio
import time
from typing import Final, NoReturn

BEAT_S: Final = 1.0
STUCK_AFTER_S: Final = 60.0
"""An event loop that has not run its tasks for so long is stuck."""


class Health:
    """One task of the event loop calls `run`; another thread asks."""

    def __init__(self) -> None:
        self._beat_at_s = time.monotonic()
        self._not_ready = "the server starts"

    async def run(self) -> NoReturn:
        """Beat until cancelled."""
        while True:
            self._beat_at_s = time.monotonic()
            await asyncio.sleep(BEAT_S)

    def serves(self) -> None:
        """Report from now on that the server serves."""
        self._not_ready = ""

    def drains(self) -> None:
        """Report from now on that it takes no new streams."""
        self._not_ready = "the server drains"

    def live(self) -> str:
        """Return why the process is to be restarted; empty if it is not."""
        stuck_s = time.monotonic() - self._beat_at_s
        return f"the event loop has not run its tasks for {stuck_s:.0f} s" if stuck_s > STUCK_AFTER_S else ""

    def ready(self) -> str:
        """Return why the process takes no streams; empty if it does."""
        return self._not_ready or self.live()
