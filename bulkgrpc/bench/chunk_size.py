"""The time of chunks by their size, and which size to recommend. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

GAIN_MIN = 0.05
"""A larger chunk whose rate is higher by less than this share only adds latency."""


@dataclass(frozen=True, slots=True)
class ChunkTimes:
    """Measured chunks of one size. times_s: the time of each transaction; at least one."""

    chunk_rows: int
    times_s: tuple[float, ...]

    @property
    def median_s(self) -> float:
        """The median time of a chunk."""
        return statistics.median(self.times_s)

    @property
    def rows_per_s(self) -> float:
        """The rate, by the median time."""
        return self.chunk_rows / self.median_s


def recommended(sizes: Sequence[ChunkTimes], commit_s: float) -> ChunkTimes:
    """Return the smallest size whose rate is within GAIN_MIN of the best, among those that take at most `commit_s`.

    sizes: ascending; at least one. If even the smallest takes longer than `commit_s`, return that one.
    """
    fast_enough = [size for size in sizes if size.median_s <= commit_s] or sizes[:1]
    best = max(size.rows_per_s for size in fast_enough)
    return next(size for size in fast_enough if size.rows_per_s * (1 + GAIN_MIN) >= best)
