"""Exponential back-off with full jitter."""

from __future__ import annotations

import random
from dataclasses import dataclass, field


@dataclass(slots=True)
class Backoff:
    """Waits in seconds that double from `first_s` up to `most_s`, each drawn from the upper half of its span."""

    first_s: float = 0.1
    most_s: float = 5.0
    _span_s: float = field(init=False)
    next_s: float = field(init=False)

    def __post_init__(self) -> None:
        self._span_s = self.first_s
        self._draw()

    def take(self) -> float:
        """Return how long to wait now; the next wait is longer."""
        wait_s = self.next_s
        self._span_s = min(self._span_s * 2, self.most_s)
        self._draw()
        return wait_s

    def _draw(self) -> None:
        self.next_s = self._span_s * random.uniform(0.5, 1)  # noqa: S311 — jitter, no secret
