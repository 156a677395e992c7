"""Notices partitions of which Kafka has messages that do not come. Pure: told the time and where partitions end.

librdkafka can lose the thread of a partition: after a broker's restart, or a pause and a resume at a bad moment, it
fetches no more and says nothing (https://github.com/confluentinc/librdkafka/issues/4492, …/5591). Only joining anew
helps then.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from bulkgrpc.model import Ownership

SILENT_S = 20.0
"""A partition whose next message Kafka is known to have, and of which nothing came for so long, is stalled."""
BEHIND_S = 180.0
"""The same where the worker never came to the end of what was fetched: the message may wait behind those of others."""
LOOK_EVERY_S = 5.0


@dataclass(slots=True)
class StallWatch:
    """Watches the partitions held. Each is known by the offset that it needed at the last look.

    Silence counts only from when Kafka was seen to have the message: of a partition that had nothing to say, one may
    have come to Kafka just now.
    """

    _needed: Mapping[int, int] = field(default_factory=dict)
    _missed_since_s: Mapping[int, float] = field(default_factory=dict)
    _look_at_s: float = 0.0

    def stalled(
        self, held: Mapping[int, Ownership], now_s: float, empty_s: float, end_of: Callable[[int], int | None]
    ) -> Mapping[int, int]:
        """Return the offsets that partitions have waited for too long, although Kafka has them.

        empty_s: when there was last nothing to be taken from what was fetched, of any partition. end_of: tells the
        offset after a partition's last message, None if Kafka does not answer. Asked only of partitions that were
        silent since the last look, and only every LOOK_EVERY_S.
        """
        if now_s < self._look_at_s:
            return {}
        self._look_at_s = now_s + LOOK_EVERY_S
        needed = {partition: owned.next_offset for partition, owned in held.items()}
        silent = [partition for partition, offset in needed.items() if self._needed.get(partition) == offset]
        self._needed = needed
        missed: dict[int, float] = {}
        for partition in silent:
            end = end_of(partition)
            if end is None:
                # Kafka is away: it would not tell of the others either, each after a while.
                self._missed_since_s = {}
                return {}
            if end > needed[partition]:
                missed[partition] = self._missed_since_s.get(partition, now_s)
        self._missed_since_s = missed
        return {
            partition: needed[partition]
            for partition, since_s in missed.items()
            if now_s - since_s >= (SILENT_S if empty_s > since_s + LOOK_EVERY_S else BEHIND_S)
        }

    def clear(self) -> None:
        """Begin anew."""
        self._needed, self._missed_since_s = {}, {}
