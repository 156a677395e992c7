"""Exponential back-off with jitter: how long to wait between two tries. It does not wait itself."""

from __future__ import annotations

import random
from dataclasses import dataclass, field


@dataclass(slots=True)
class Backoff:
    """Waits, in seconds. The span doubles from `first_s` to `max_s`; each wait is random in the span's upper half."""

    first_s: float = 0.1
    max_s: float = 5.0
    _span_s: float = field(init=False)

    def __post_init__(self) -> None:
        self._span_s = self.first_s

    def advance(self) -> float:
        """Return how long to wait now, and double the span of the next wait."""
        wait_s = self._span_s * random.uniform(0.5, 1)  # noqa: S311 — jitter, no secret
        self._span_s = min(self._span_s * 2, self.max_s)
        return wait_s
