"""Fetched messages, until each is in the next chunk."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable

from bulkgrpc import faults
from bulkgrpc.consume.assembly import ChunkBounds, ChunkBuilder, Fetched, Received
from bulkgrpc.consume.ownership import OwnedPartitions
from bulkgrpc.consume.ports import WorkerPorts
from bulkgrpc.model import Outcome

FETCH_MESSAGES_MAX = 50
"""Messages taken from librdkafka at once: of the largest batches, 50 MB."""
IDLE_POLL_S = 0.1
"""How long a fetch waits while nothing is pending."""
POLL_EVERY_S = 0.06
"""How often the log is polled at least: Kafka assigns and revokes partitions then."""
BACKLOG_MESSAGES_MAX = 2 * FETCH_MESSAGES_MAX
"""Fetched messages beyond the chunk. A writer that is stuck has the log paused before the polls exceed this."""


class Intake:
    """Fetches messages and adds those that are next to `chunk`, in order.

    drained_at_s: when a fetch last returned nothing, seconds of the monotonic clock.
    """

    def __init__(self, ports: WorkerPorts, owned: OwnedPartitions, bounds: ChunkBounds) -> None:
        self._log = ports.log
        self._clock: Callable[[], float] = ports.clock
        self._owned = owned
        self._backlog: deque[Fetched] = deque()  # BACKLOG_MESSAGES_MAX, and what arrives while paused
        self._polled_at_s = 0.0
        self.chunk = ChunkBuilder(bounds)
        self.drained_at_s = 0.0

    @property
    def empty(self) -> bool:
        """Whether neither the chunk nor the backlog has a message."""
        return self.chunk.empty and not self._backlog

    def fetch(self) -> bool:
        """Fetch messages if the backlog is empty. Returns whether it has messages then."""
        if not self._backlog:
            self._fetch(FETCH_MESSAGES_MAX, IDLE_POLL_S if self.chunk.empty else 0)
        now_s = self._clock()
        if self._backlog:
            faults.reach("after_poll")
        else:
            self.drained_at_s = now_s
        if self.chunk.empty:
            self.chunk.started_at_s = now_s
        return bool(self._backlog)

    def poll(self, *, paused: bool) -> None:
        """Poll the log, to stay in the group, if that is due. A message that it returns joins the backlog.

        paused: whether the log is. It returns next to nothing then; else it is polled while the backlog has room.
        """
        if self._clock() - self._polled_at_s >= POLL_EVERY_S and (paused or len(self._backlog) < BACKLOG_MESSAGES_MAX):
            self._fetch(1, 0)

    def fill(self) -> Fetched | None:
        """Move messages from the backlog to the chunk, until one is empty or the other full.

        Returns the message before which messages are missing, if there is one.
        """
        while self._backlog and not self.chunk.full:
            fetched = self._backlog[0]
            outcome = self._owned.outcome(fetched.partition, fetched.offset)
            if outcome is Outcome.GAP:
                return fetched
            if outcome is Outcome.NEXT:
                self._add(fetched)
                self._owned.advance(fetched.partition)
            self._backlog.popleft()
        return None

    def discard(self) -> None:
        """Discard the chunk and the backlog."""
        self.chunk.clear()
        self._backlog.clear()

    def discard_backlog(self, partitions: Iterable[int]) -> None:
        """Discard the backlog of partitions that are fetched again from another offset."""
        restarted = set(partitions)
        self._backlog = deque(fetched for fetched in self._backlog if fetched.partition not in restarted)

    def _fetch(self, messages_max: int, timeout_s: float) -> None:
        self._backlog.extend(self._log.fetch(messages_max, timeout_s))
        self._polled_at_s = self._clock()

    def _add(self, fetched: Fetched) -> None:
        owned = self._owned.owned[fetched.partition]
        if fetched.message is None:
            self.chunk.add_malformed(fetched, owned)
        else:
            self.chunk.add(
                Received(
                    fetched.partition, fetched.offset, fetched.message, fetched.payload, fetched.headers, fetched.key
                ),
                owned,
            )
