"""Fetched messages, until each is in the next chunk or in the dead-letter queue."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable

import structlog

from bulkgrpc import faults, metrics
from bulkgrpc.consume.assembly import ChunkBounds, ChunkBuilder, Received
from bulkgrpc.consume.dead_letters import dead_letter_reason
from bulkgrpc.consume.ownership import OwnedPartitions
from bulkgrpc.consume.ports import Fetched, WorkerPorts
from bulkgrpc.model import Outcome

log = structlog.get_logger()

FETCH_MESSAGES_MAX = 50
"""Messages taken from librdkafka at once: of the largest batches, 50 MB."""
IDLE_POLL_S = 0.1
"""How long a fetch waits while nothing is pending."""


class Intake:
    """Fetches messages and adds those that are next to `chunk`, in order.

    drained_at_s: when a fetch last returned nothing, seconds of the monotonic clock.
    """

    def __init__(self, ports: WorkerPorts, owned: OwnedPartitions, bounds: ChunkBounds) -> None:
        self._log = ports.log
        self._registry = ports.registry
        self._dead_letters = ports.dead_letters
        self._clock: Callable[[], float] = ports.clock
        self._owned = owned
        self._backlog: deque[Fetched] = deque()  # at most FETCH_MESSAGES_MAX, and what arrives while paused
        self.chunk = ChunkBuilder(bounds)
        self.drained_at_s = 0.0

    @property
    def empty(self) -> bool:
        """Whether neither the chunk nor the backlog has a message."""
        return self.chunk.empty and not self._backlog

    def fetch(self) -> bool:
        """Fetch messages if the backlog is empty. Returns whether it has messages then."""
        if not self._backlog:
            self._backlog.extend(self._log.fetch(FETCH_MESSAGES_MAX, IDLE_POLL_S if self.chunk.empty else 0))
        now_s = self._clock()
        if self._backlog:
            faults.reach("after_poll")
        else:
            self.drained_at_s = now_s
        if self.chunk.empty:
            self.chunk.started_at_s = now_s
        return bool(self._backlog)

    def poll_paused(self) -> None:
        """Poll the paused log, to stay in the group. A message that was already on its way joins the backlog."""
        self._backlog.extend(self._log.fetch(1, 0))

    def fill(self) -> Fetched | None:
        """Move messages from the backlog to the chunk, until one is empty or the other full.

        Returns the message before which messages are missing, if there is one. Raises StoreUnavailable if a dataset
        cannot be looked up: the message stays in the backlog.
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

    def _add(self, fetched: Fetched) -> None:
        """Add a message to the chunk; if it belongs to no job, store it as a dead letter first."""
        partition, offset = fetched.partition, fetched.offset
        owned = self._owned.owned[partition]
        reason = dead_letter_reason(fetched, self._registry)
        if reason or fetched.message is None:
            self._dead_letters.add(fetched, reason)
            metrics.messages_dead.add(1)
            log.warning("dead_letter", partition=partition, offset=offset, reason=reason)
            self.chunk.skip(partition, offset, owned)
        else:
            self.chunk.add(Received(partition, offset, fetched.message, fetched.payload, fetched.headers), owned)
