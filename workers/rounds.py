"""A thread that works in rounds, and waits in between: of parked messages, of the staged rows of atomic jobs."""

from __future__ import annotations

import threading
from collections.abc import Callable

FAILED_WAIT_S = 1.0
"""How long to wait after a round that failed."""


class RoundsThread:
    """Runs rounds until `stopping` is set. round_: does what there is to do; returns how long to wait, seconds.

    on_failed: called with what a round raised, while it is handled. close: called then, and at the end.
    """

    def __init__(
        self,
        name: str,
        round_: Callable[[], float],
        on_failed: Callable[[Exception], None],
        close: Callable[[], None],
        stopping: threading.Event,
    ) -> None:
        self._round, self._on_failed, self._close, self._stopping = round_, on_failed, close, stopping
        self._wake = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    @property
    def runs(self) -> bool:
        """Whether the thread was started and has not ended."""
        return self._thread.is_alive()

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def wake(self) -> None:
        """Begin the next round now."""
        self._wake.set()

    def join(self, timeout_s: float) -> None:
        """Wait until the thread has ended, `timeout_s` at most."""
        self._thread.join(timeout_s)

    def _run(self) -> None:
        wait_s = 0.0
        while not self._stopping.is_set():
            self._wake.wait(wait_s)
            self._wake.clear()
            if self._stopping.is_set():
                break
            try:
                wait_s = self._round()
            except Exception as error:  # noqa: BLE001 — if the thread ended, its work would wait for another worker
                self._on_failed(error)
                self._close()
                wait_s = FAILED_WAIT_S
        self._close()
