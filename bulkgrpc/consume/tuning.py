"""How many rows a chunk should have, from the measured cost of the last chunks. Pure.

A chunk takes `fixed_s + rows * row_s`: ledger, jobs and commit cost the same for any number of rows. Both parts are
measured separately, so the best size is computed, not searched for, and does not oscillate.
"""

from __future__ import annotations

import statistics
from collections import deque
from dataclasses import dataclass, field

FIXED_SHARE_WORTH = 0.04
"""At this share of fixed cost a chunk is large enough: more rows cost latency and save little."""
FIXED_SHARE_MAX = 0.5
"""The largest share of fixed cost that is accepted for the sake of latency."""
SAMPLES = 15
"""How many chunks the median is taken of: one that a checkpoint or a lock delays has no effect."""
SAMPLES_MIN = 3
STEP_MAX = 2.0
"""The largest change in one step, as a factor."""
DEAD_BAND = 1.5
"""A target within this factor of the current size changes nothing: near the optimum the cost is flat."""
ROWS_INITIAL = 20_000


@dataclass(frozen=True, slots=True)
class Cost:
    """What writing costs, in seconds. fixed_s: the transaction without its rows. row_s: one row."""

    fixed_s: float
    row_s: float

    def chunk_s(self, rows: int) -> float:
        """Return the seconds that a chunk of `rows` takes."""
        return self.fixed_s + rows * self.row_s

    def rows_worth(self, commit_s: float) -> float:
        """Return the best number of rows for chunks that may take `commit_s`.

        It is bounded by FIXED_SHARE_WORTH and by `commit_s`, but never so small that more than FIXED_SHARE_MAX of the
        time is fixed cost, as it would be where commits are slow.
        """
        row_s = max(self.row_s, 1e-9)
        in_time = (commit_s - self.fixed_s) / row_s
        return max(min(self._rows_at(FIXED_SHARE_WORTH), in_time), self._rows_at(FIXED_SHARE_MAX))

    def _rows_at(self, fixed_share: float) -> float:
        """Return the rows of a chunk whose fixed cost is `fixed_share` of its time."""
        return self.fixed_s * (1 - fixed_share) / fixed_share / max(self.row_s, 1e-9)


@dataclass(slots=True)
class ChunkTuner:
    """Decides `rows`, the bound of the next chunk, between `rows_min` and `rows_max`, both inclusive.

    commit_s: seconds that a chunk's transaction may take.
    """

    rows_min: int
    rows_max: int
    commit_s: float
    rows: int = ROWS_INITIAL
    _samples: deque[Cost] = field(default_factory=lambda: deque(maxlen=SAMPLES))

    def __post_init__(self) -> None:
        """Start within the bounds; if they contradict each other, the upper one wins."""
        self.rows_min = min(self.rows_min, self.rows_max)
        self.rows = self._bounded(self.rows)

    def rows_within(self, seconds: float) -> int:
        """Return the rows of a chunk that takes so long: at most `rows`, and all of them while nothing is known."""
        if len(self._samples) < SAMPLES_MIN:
            return self.rows
        return min(self.rows, self._bounded(self._cost.rows_worth(seconds)))

    def measured(self, rows: int, rows_s: float, total_s: float) -> None:
        """Learn from a committed chunk: its rows, the seconds for writing them, the seconds of its transaction.

        A chunk of less than half the bound is ignored: the load is too small for the bound to matter, and a row of a
        small chunk costs more.
        """
        if rows < self.rows / 2:
            return
        self._samples.append(Cost(max(total_s - rows_s, 0.0), rows_s / rows))
        if len(self._samples) < SAMPLES_MIN:
            return
        target = self._bounded(self._cost.rows_worth(self.commit_s))
        if not self.rows / DEAD_BAND <= target <= self.rows * DEAD_BAND:
            self.rows = self._bounded(min(max(target, self.rows / STEP_MAX), self.rows * STEP_MAX))

    def too_slow(self, rows: int) -> None:
        """Learn that a chunk of `rows` timed out: the next one has at most half of them."""
        self.rows = self._bounded(min(self.rows, rows / STEP_MAX))

    @property
    def _cost(self) -> Cost:
        return Cost(
            statistics.median(sample.fixed_s for sample in self._samples),
            statistics.median(sample.row_s for sample in self._samples),
        )

    def _bounded(self, rows: float) -> int:
        return round(min(max(rows, self.rows_min), self.rows_max))
