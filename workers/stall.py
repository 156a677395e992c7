"""Notices partitions of which Kafka has messages that do not come. Pure: told the time and where partitions end.

librdkafka can lose the thread of a partition: after a broker's restart, or a pause and a resume at a bad moment, it
fetches no more and says nothing (https://github.com/confluentinc/librdkafka/issues/4492, …/5591). Only joining anew
helps then.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from bulkgrpc.words import Ownership

SILENT_S = 20.0
"""A partition of which nothing came for so long is looked at."""
LOOK_EVERY_S = 5.0


@dataclass(slots=True)
class StallWatch:
    """Watches the partitions held. Each is known by the offset that it needs next, and since when."""

    _since: dict[int, tuple[int, float]] = field(default_factory=dict)
    _look_at_s: float = 0.0

    def stalled(
        self, held: Mapping[int, Ownership], now_s: float, end_of: Callable[[int], int | None]
    ) -> Mapping[int, int]:
        """Return the offsets that partitions have waited for too long, although Kafka has them.

        end_of: tells the offset after a partition's last message, None if Kafka does not answer. Asked only of
        partitions that were silent, and only every LOOK_EVERY_S.
        """
        self._since = {
            partition: known
            if (known := self._since.get(partition)) and known[0] == owned.next_offset
            else (owned.next_offset, now_s)
            for partition, owned in held.items()
        }
        if now_s < self._look_at_s:
            return {}
        self._look_at_s = now_s + LOOK_EVERY_S
        found = {}
        for partition, (offset, since_s) in self._since.items():
            if now_s - since_s < SILENT_S:
                continue
            end = end_of(partition)
            if end is None:
                # Kafka is away: it would not tell of the others either, each after a while.
                return {}
            if end > offset:
                found[partition] = offset
        return found

    def clear(self) -> None:
        """Begin anew."""
        self._since = {}
