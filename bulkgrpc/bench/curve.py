"""What chunks of different sizes take, and which size is worth it. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

GAIN_MIN = 0.05
"""A larger chunk that is faster by less than this share only adds latency."""


@dataclass(frozen=True, slots=True)
class Point:
    """Chunks of one size. chunk_s: of each the time of its transaction, at least one."""

    chunk_rows: int
    chunk_s: tuple[float, ...]

    @property
    def median_s(self) -> float:
        """The time of a chunk."""
        return statistics.median(self.chunk_s)

    @property
    def rows_per_s(self) -> float:
        """Rows a second, by the median time."""
        return self.chunk_rows / self.median_s


def worth(points: Sequence[Point], commit_s: float) -> Point:
    """Return the smallest size beyond which more rows gain less than GAIN_MIN, of those that take at most `commit_s`.

    points: by size, at least one. Where even the smallest takes longer, that one.
    """
    quick = [point for point in points if point.median_s <= commit_s] or points[:1]
    best = max(point.rows_per_s for point in quick)
    return next(point for point in quick if point.rows_per_s * (1 + GAIN_MIN) >= best)
