"""The send window, shared by two tasks: one adds batches and waits while it is full, one waits for batches to send."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from bulkgrpc.client.model import Batch, Progress
from bulkgrpc.client.send_window import NumberedBatch, SendWindow

OnProgress = Callable[[Progress], None]


class SourceFailed(Exception):
    """The source of the batches raised `failure`."""

    def __init__(self, failure: Exception) -> None:
        super().__init__(str(failure))
        self.failure = failure


class SendQueue:
    """A send window that can be awaited. Owned by one submission, used on one event loop.

    on_progress: called on that loop after each batch that is sent or acknowledged. one_at_a_time: send a batch only
    when all before it are acknowledged.
    """

    def __init__(self, window: SendWindow, on_progress: OnProgress | None) -> None:
        self.window = window
        self._on_progress = on_progress
        self._changed = asyncio.Event()
        self._complete = False
        self.one_at_a_time = False
        self._failure: Exception | None = None

    async def put(self, batch: Batch) -> None:
        """Add a batch. Waits while the window is full."""
        while self.window.full:
            await self._change()
        before = self.window.progress
        self.window.add(batch)
        self._notify(before)

    def complete(self, failure: Exception | None = None) -> None:
        """Mark the queue as complete: there are no more batches, or the source failed."""
        self._complete, self._failure = True, failure
        self._changed.set()

    async def wait_first(self) -> None:
        """Wait for the first batch, or until the queue is complete. Raises SourceFailed if the source failed before."""
        while not self.window.next_sequence and not self._complete:
            await self._change()
        if not self.window.next_sequence and self._failure is not None:
            raise SourceFailed(self._failure)

    async def get(self) -> NumberedBatch | None:
        """Return the next batch to send on this stream. Waits for one. None: all are sent and acknowledged.

        Raises SourceFailed once the source has failed and all its batches are acknowledged, so that the caller knows
        how much of the job is stored.
        """
        while True:
            # Write nothing while batches are unacknowledged: if the server refuses one, grpc.aio may lose the refusal.
            if self._complete and self._failure is None and self.window.all_sent and not self.window.unacknowledged:
                return None
            if not (self.one_at_a_time and self.window.unacknowledged):
                before = self.window.progress
                numbered = self.window.next_unsent()
                if numbered is not None:
                    self._notify(before)
                    return numbered
            if self._failure is not None and not self.window.unacknowledged:
                raise SourceFailed(self._failure)
            await self._change()

    def acknowledge(self, next_sequence: int) -> bool:
        """Drop every batch before `next_sequence`: it is durable. Returns whether the sequence advanced."""
        before = self.window.progress
        advanced = self.window.acknowledge(next_sequence)
        self._notify(before)
        return advanced

    async def _change(self) -> None:
        self._changed.clear()
        await self._changed.wait()

    def _notify(self, before: Progress) -> None:
        self._changed.set()
        if self._on_progress is not None and self.window.progress != before:
            self._on_progress(self.window.progress)
