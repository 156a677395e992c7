"""When the worker pauses the log, resumes it, and retries the ledger. Pure: the caller passes the time.

| state    | event                                           | next state | the caller then                            |
|----------|-------------------------------------------------|------------|--------------------------------------------|
| fetching | the writer returns nothing for `PAUSE_AFTER_S`  | paused     | pauses every owned partition               |
| paused   | a chunk is applied                              | fetching   | resumes every owned partition              |
| paused   | nothing is pending                              | fetching   | resumes every owned partition              |
| paused   | pending chunks are discarded                    | fetching   | seeks each partition, which resumes it     |

A paused log is still polled, so that the worker stays in its group. Partitions are acquired only while fetching, and
after a failure of a store only when the back-off is over.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from bulkgrpc.backoff import Backoff

PAUSE_AFTER_S = 3.0
"""A writer that needs longer for a chunk is stuck: fetching stops, so that memory stays bounded.
Not sooner, because a pause discards what librdkafka has fetched ahead."""


@dataclass(slots=True)
class Backpressure:
    """The state, and the times that decide about the next one. All times in seconds of the monotonic clock."""

    paused: bool = False
    _writer_since_s: float = 0.0
    _retry_at_s: float = 0.0
    _backoff: Backoff = field(default_factory=Backoff)

    def writer_progressed(self, now_s: float) -> None:
        """Note that the writer started the only pending chunk, or returned one."""
        self._writer_since_s = now_s

    def pause_if_stuck(self, now_s: float) -> bool:
        """Pause if the writer is stuck. Returns whether the state changed."""
        if self.paused or now_s - self._writer_since_s <= PAUSE_AFTER_S:
            return False
        self.paused = True
        return True

    def resume(self) -> bool:
        """Start fetching again. Returns whether the state changed."""
        resumed, self.paused = self.paused, False
        return resumed

    def retry_later(self, now_s: float) -> float:
        """Note that a store failed. Returns the seconds until the next try; they double from failure to failure."""
        wait_s = self._backoff.advance()
        self._retry_at_s = now_s + wait_s
        return wait_s

    def recovered(self) -> None:
        """Note that a chunk was applied: the next failure starts with the shortest back-off."""
        self._backoff = Backoff()

    def may_acquire(self, now_s: float) -> bool:
        """Return whether partitions may be acquired and read from the ledger now."""
        return not self.paused and now_s >= self._retry_at_s
