"""Whether a worker is live and ready, for the HTTP endpoint. Unavailable stores change neither."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

STUCK_AFTER_S = 60.0
"""A poll loop that takes so long for a step is stuck: a step waits for stores for some seconds at most."""


class Health:
    """clock: that of the poll loop."""

    def __init__(self, stopping: threading.Event, clock: Callable[[], float] = time.monotonic) -> None:
        self._stopping, self._clock = stopping, clock
        self._stepped_at_s: Callable[[], float] = lambda: 0.0

    def watch(self, stepped_at_s: Callable[[], float]) -> None:
        """Ask the poll loop from now on when its last step began; 0 before the first."""
        self._stepped_at_s = stepped_at_s

    def live(self) -> str:
        """Return why the worker is to be restarted; empty if it is not."""
        stepped_at_s = self._stepped_at_s()
        stuck_s = self._clock() - stepped_at_s
        if stepped_at_s and stuck_s > STUCK_AFTER_S and not self._stopping.is_set():
            return f"the poll loop has not moved for {stuck_s:.0f} s"
        return ""

    def ready(self) -> str:
        """Return why the worker takes no work; empty if it does."""
        if self._stopping.is_set():
            return "the worker drains"
        return self.live() if self._stepped_at_s() else "the worker starts"
