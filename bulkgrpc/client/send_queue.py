"""The window as two tasks share it: one adds and waits while it is full, one sends and waits while it is empty."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from bulkgrpc.client.model import Batch, Progress
from bulkgrpc.client.send_window import Numbered, Window

OnProgress = Callable[[Progress], None]


class SourceFailed(Exception):
    """What the batches are drawn from raised `failure`."""

    def __init__(self, failure: Exception) -> None:
        super().__init__(str(failure))
        self.failure = failure


class Outbox:
    """A window with waiting. Owned by one submission, used on one event loop.

    on_progress: told after each batch sent or acknowledged, on that loop. one_at_a_time: whether a batch goes out only
    when all before it are acknowledged.
    """

    def __init__(self, window: Window, on_progress: OnProgress | None) -> None:
        self.window = window
        self._on_progress = on_progress
        self._changed = asyncio.Event()
        self._complete = False
        self.one_at_a_time = False
        self._failure: Exception | None = None

    async def put(self, batch: Batch) -> None:
        """Add a batch, waiting while the window is full."""
        while self.window.full:
            await self._change()
        known = self.window.progress
        self.window.add(batch)
        self._tell(known)

    def complete(self, failure: Exception | None = None) -> None:
        """Say that no batch is to come, because there is none left or because drawing failed."""
        self._complete, self._failure = True, failure
        self._changed.set()

    async def begun(self) -> None:
        """Wait for the first batch, or the word that there is none. Raises SourceFailed if drawing failed before."""
        while not self.window.next_sequence and not self._complete:
            await self._change()
        if not self.window.next_sequence and self._failure is not None:
            raise SourceFailed(self._failure)

    async def take(self) -> Numbered | None:
        """Return the next batch to send on this stream, waiting for one; None when all were sent and acknowledged.

        Raises SourceFailed as soon as drawing failed and all that was drawn is acknowledged, so that the caller knows
        how far the job came.
        """
        while True:
            # What comes after them would be a write into the arms of a refusal, which grpc.aio may lose then.
            if self._complete and self._failure is None and self.window.all_sent and not self.window.awaits_answer:
                return None
            if not (self.one_at_a_time and self.window.awaits_answer):
                known = self.window.progress
                numbered = self.window.take()
                if numbered is not None:
                    self._tell(known)
                    return numbered
            if self._failure is not None and not self.window.awaits_answer:
                raise SourceFailed(self._failure)
            await self._change()

    def acknowledge(self, next_sequence: int) -> bool:
        """Take note that every batch before `next_sequence` is durable. Tells whether that is news."""
        known = self.window.progress
        news = self.window.acknowledge(next_sequence)
        self._tell(known)
        return news

    async def _change(self) -> None:
        self._changed.clear()
        await self._changed.wait()

    def _tell(self, known: Progress) -> None:
        self._changed.set()
        if self._on_progress is not None and self.window.progress != known:
            self._on_progress(self.window.progress)
