"""Fetched messages, until each is in the next chunk."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence

from bulkgrpc import faults
from bulkgrpc.consume.assembly import ChunkBounds, ChunkBuilder, EndReached, Fetched, received
from bulkgrpc.consume.ownership import OwnedPartitions
from bulkgrpc.consume.ports import WorkerPorts
from bulkgrpc.positions import Outcome

FETCH_MESSAGES_MAX = 50
"""Messages taken from librdkafka at once: of the largest batches, 50 MB."""
IDLE_POLL_S = 0.1
"""How long a fetch waits while nothing is pending."""
POLL_EVERY_S = 0.06
"""How often the log is polled at least: Kafka assigns and revokes partitions then."""
BACKLOG_BYTES_MAX = 8 * 1024 * 1024
"""Payload bytes of the backlog from which on nothing is fetched for its own sake: by default, those of a chunk."""
BACKLOG_MESSAGES_MAX = 2 * FETCH_MESSAGES_MAX
"""Fetched messages beyond the chunk. A writer that is stuck has the log paused before the polls exceed this."""


class Intake:
    """Fetches messages and adds those that are next to `chunk`, in order within each partition.

    The next message is of the partition that has the smallest share of the chunk, so that each has an equal share or
    all it has. Messages are fetched ahead of the chunk, so that one of a quiet partition waits less behind those of
    others. was_applied: whether the express path applied a message; it is passed over then.
    drained_at_s: when a fetch last returned nothing, seconds of the monotonic clock.
    """

    def __init__(
        self, ports: WorkerPorts, owned: OwnedPartitions, bounds: ChunkBounds, was_applied: Callable[[Fetched], bool]
    ) -> None:
        self._log = ports.log
        self._clock: Callable[[], float] = ports.clock
        self._owned = owned
        self._was_applied = was_applied
        # By partition, none of them empty. Of those with the same share of the chunk, the first is next.
        self._backlog: dict[int, deque[Fetched | EndReached]] = {}
        self._backlog_bytes = self._backlog_messages = 0
        self._polled_at_s = 0.0
        self.chunk = ChunkBuilder(bounds)
        self.drained_at_s = 0.0

    @property
    def empty(self) -> bool:
        """Whether neither the chunk nor the backlog has a message."""
        return self.chunk.empty and not self._backlog

    def fetch(self) -> bool:
        """Fetch messages if the backlog has room. Returns whether it has messages then."""
        if self._has_room:
            self._fetch(FETCH_MESSAGES_MAX - self._backlog_messages, IDLE_POLL_S if self.empty else 0)
        now_s = self._clock()
        if self._backlog:
            faults.reach("after_poll")
        else:
            self.drained_at_s = now_s
        if self.chunk.empty:
            self.chunk.started_at_s = now_s
        return bool(self._backlog)

    def poll(self, *, paused: bool) -> None:
        """Poll the log, to stay in the group, if that is due. Messages that it returns join the backlog.

        paused: whether the log is. It returns next to nothing then; else it is polled while the backlog has room, at
        least for one message.
        """
        if self._clock() - self._polled_at_s < POLL_EVERY_S:
            return
        if self._has_room and not paused:
            self._fetch(FETCH_MESSAGES_MAX - self._backlog_messages, 0)
        elif paused or self._backlog_messages < BACKLOG_MESSAGES_MAX:
            self._fetch(1, 0)

    def fill(self) -> Fetched | EndReached | None:
        """Move messages from the backlog to the chunk, until one is empty or the other full.

        Returns what a partition cannot continue with, if there is any: a message, or the end of a partition, before
        which offsets are missing; or the partition's next message, if it is of a newer format.
        """
        while self._backlog and not self.chunk.full:
            partition = min(self._backlog, key=self.chunk.share)
            fetched = self._backlog[partition][0]
            outcome = self._owned.outcome(partition, fetched.offset)
            if outcome is Outcome.GAP or (
                outcome is Outcome.NEXT and isinstance(fetched, Fetched) and fetched.newer_format
            ):
                return fetched
            if outcome is Outcome.NEXT and isinstance(fetched, Fetched):
                self._add(fetched)
                self._owned.advance(partition)
            self._remove_first(partition)
            if outcome is Outcome.NEXT and partition in self._backlog:
                self._backlog[partition] = self._backlog.pop(partition)
        return None

    def backlog(self, partition: int) -> Sequence[Fetched | EndReached]:
        """Return what was fetched of a partition and is not in a chunk, in order."""
        return tuple(self._backlog.get(partition, ()))

    def pass_over(self, partition: int, to_offset: int) -> None:
        """Continue a partition at an offset: there is no message below it. The chunk's transaction moves the ledger."""
        self.chunk.pass_over(self._owned.owned[partition], to_offset)
        self._owned.pass_over(partition, to_offset)

    def discard(self) -> None:
        """Discard the chunk and the backlog."""
        self.chunk.clear()
        self.discard_backlog(list(self._backlog))

    def discard_backlog(self, partitions: Iterable[int]) -> None:
        """Discard the backlog of partitions that were revoked, or are fetched again from another offset."""
        for partition in partitions:
            while partition in self._backlog:
                self._remove_first(partition)

    @property
    def _has_room(self) -> bool:
        return self._backlog_messages < FETCH_MESSAGES_MAX and self._backlog_bytes < BACKLOG_BYTES_MAX

    def _fetch(self, messages_max: int, timeout_s: float) -> None:
        for fetched in self._log.fetch(messages_max, timeout_s):
            self._backlog.setdefault(fetched.partition, deque()).append(fetched)
            self._backlog_messages += 1
            self._backlog_bytes += len(fetched.payload)
        for end in self._log.ends_reached():
            self._add_end(end)
        self._polled_at_s = self._clock()

    def _add_end(self, end: EndReached) -> None:
        """Add an end to the backlog if offsets before it are missing: mostly none are, and there is nothing to do."""
        backlog, owned = self._backlog.get(end.partition), self._owned.owned.get(end.partition)
        if owned is None or end.partition in self._owned.held:
            return
        next_offset = owned.next_offset
        if backlog:
            last = backlog[-1]
            next_offset = last.offset + 1 if isinstance(last, Fetched) else last.offset
        if end.offset > next_offset:
            self._backlog.setdefault(end.partition, deque()).append(end)

    def _remove_first(self, partition: int) -> None:
        messages = self._backlog[partition]
        first = messages.popleft()
        if isinstance(first, Fetched):
            self._backlog_messages -= 1
            self._backlog_bytes -= len(first.payload)
        if not messages:
            del self._backlog[partition]

    def _add(self, fetched: Fetched) -> None:
        owned = self._owned.owned[fetched.partition]
        if self._was_applied(fetched):
            self.chunk.pass_over(owned, fetched.offset + 1)
        elif (item := received(fetched)) is None:
            self.chunk.add_malformed(fetched, owned)
        else:
            self.chunk.add(item, owned)
