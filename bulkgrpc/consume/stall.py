"""Detects partitions whose messages Kafka has and does not deliver. Pure: the caller passes time and ends.

librdkafka can stop fetching a partition without an error: after a broker restart, or after a pause and a resume at the
wrong moment (https://github.com/confluentinc/librdkafka/issues/4492, …/5591). Only joining the group again helps.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from bulkgrpc.positions import Ownership

SILENT_S = 20.0
"""A partition is stalled if the log is known to have its next message for so long and nothing of it arrived."""
BEHIND_S = 180.0
"""The same while the worker never ran out of fetched messages: the message may wait behind other partitions'."""
CHECK_EVERY_S = 5.0


@dataclass(slots=True)
class StallWatch:
    """Watches the owned partitions, by the next offset that each had at the last check.

    Silence counts from when the log was first seen to have the message: before that there may have been none.
    """

    _next_offsets: Mapping[int, int] = field(default_factory=dict)
    _missing_since_s: Mapping[int, float] = field(default_factory=dict)
    _check_at_s: float = 0.0

    def stalled(
        self, owned: Mapping[int, Ownership], now_s: float, drained_at_s: float, end_of: Callable[[int], int | None]
    ) -> Mapping[int, int]:
        """Return the stalled partitions and their next offsets.

        drained_at_s: when the worker last had no fetched message left, of any partition. end_of: returns the offset
        after a partition's last message, None if the log does not answer. It is called every CHECK_EVERY_S at most, and
        only for partitions that were silent since the last check.
        """
        if now_s < self._check_at_s:
            return {}
        self._check_at_s = now_s + CHECK_EVERY_S
        next_offsets = {partition: ownership.next_offset for partition, ownership in owned.items()}
        silent = [
            partition for partition, offset in next_offsets.items() if self._next_offsets.get(partition) == offset
        ]
        self._next_offsets = next_offsets
        missing: dict[int, float] = {}
        for partition in silent:
            end = end_of(partition)
            if end is None:
                # Kafka is unavailable: each further request would time out too.
                self._missing_since_s = {}
                return {}
            if end > next_offsets[partition]:
                missing[partition] = self._missing_since_s.get(partition, now_s)
        self._missing_since_s = missing
        return {
            partition: next_offsets[partition]
            for partition, since_s in missing.items()
            if now_s - since_s >= (SILENT_S if drained_at_s > since_s + CHECK_EVERY_S else BEHIND_S)
        }

    def clear(self) -> None:
        """Forget what was seen: the partitions were restarted."""
        self._next_offsets, self._missing_since_s = {}, {}
