"""Partitions and queues whose next message has a newer format than this worker reads: they wait for a newer worker.

Pure: the caller passes the time.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

LOG_EVERY_S = 300.0
"""How often the log says that the same message is waited at."""
Key = TypeVar("Key", bound=Hashable)


@dataclass(slots=True)
class WaitLog(Generic[Key]):
    """Which waits are to be logged: each new one, and those that last, rarely.

    Of each waiting partition or queue: what it waits at, and when that was logged, seconds of the monotonic clock.
    """

    _logged: dict[Key, tuple[object, float]] = field(default_factory=dict)

    def due(self, key: Key, waits_at: object, now_s: float) -> bool:
        """Return whether a wait is to be logged now, and note that it is.

        | what it waited at when it was logged last | logged                  | result |
        |-------------------------------------------|-------------------------|--------|
        | nothing, or something else                | any                     | True   |
        | the same                                  | within LOG_EVERY_S      | False  |
        | the same                                  | before that             | True   |
        """
        logged = self._logged.get(key)
        if logged is not None and logged[0] == waits_at and now_s - logged[1] < LOG_EVERY_S:
            return False
        self._logged[key] = (waits_at, now_s)
        return True
