"""How many rows a chunk should have: from what chunks cost, measured while they are written. Pure.

A chunk takes `fixed_s + rows * row_s`: the ledger, the jobs and the commit cost the same however many rows there are.
Both parts are measured apart, so that no size has to be tried to find out, and nothing swings.
"""

from __future__ import annotations

import statistics
from collections import deque
from dataclasses import dataclass, field

FIXED_SHARE_WORTH = 0.04
"""Larger chunks than those whose fixed cost is this share of their time are not worth their latency."""
FIXED_SHARE_MAX = 0.5
"""Not even for the sake of latency are chunks made so small that more of their time is fixed cost."""
SAMPLES = 15
"""Chunks whose median counts: a checkpoint or a lock that holds up one of them changes nothing."""
SAMPLES_MIN = 3
STEP_MAX = 2.0
"""How much larger or smaller at once."""
DEAD_BAND = 1.5
"""What is nearer to the present size than this factor is left alone: near the best size all are nearly as good."""
ROWS_AT_START = 20_000


@dataclass(frozen=True, slots=True)
class Cost:
    """What writing took: fixed_s, of the transaction without its rows; row_s, of a row."""

    fixed_s: float
    row_s: float

    def chunk_s(self, rows: int) -> float:
        """Return what a chunk of so many rows takes."""
        return self.fixed_s + rows * self.row_s

    def rows_worth(self, commit_s: float) -> float:
        """Return the rows after which more only cost latency, or after which a chunk takes `commit_s`.

        Where commits are slow, at least as many as keep half of the time for rows.
        """
        row_s = max(self.row_s, 1e-9)
        in_time = (commit_s - self.fixed_s) / row_s
        return max(min(self._rows_at(FIXED_SHARE_WORTH), in_time), self._rows_at(FIXED_SHARE_MAX))

    def _rows_at(self, fixed_share: float) -> float:
        """Return the rows of a chunk whose fixed cost is a share of its time."""
        return self.fixed_s * (1 - fixed_share) / fixed_share / max(self.row_s, 1e-9)


@dataclass(slots=True)
class ChunkTuner:
    """Sets the rows of the next chunk, within [rows_min, rows_max]. commit_s: what a chunk may take."""

    rows_min: int
    rows_max: int
    commit_s: float
    rows: int = ROWS_AT_START
    _samples: deque[Cost] = field(default_factory=lambda: deque(maxlen=SAMPLES))

    def __post_init__(self) -> None:
        """Begin within the bounds; the upper one wins."""
        self.rows_min = min(self.rows_min, self.rows_max)
        self.rows = self._bounded(self.rows)

    def measured(self, rows: int, rows_s: float, total_s: float) -> None:
        """Take in a chunk that was committed: its rows, the time of writing them, the time of the whole transaction.

        A chunk of far fewer rows than the bound is passed over: the load is too small for the bound to matter, and a
        row of a small chunk costs more.
        """
        if rows < self.rows / 2:
            return
        self._samples.append(Cost(max(total_s - rows_s, 0.0), rows_s / rows))
        if len(self._samples) < SAMPLES_MIN:
            return
        cost = Cost(
            statistics.median(sample.fixed_s for sample in self._samples),
            statistics.median(sample.row_s for sample in self._samples),
        )
        aim = self._bounded(cost.rows_worth(self.commit_s))
        if not self.rows / DEAD_BAND <= aim <= self.rows * DEAD_BAND:
            self.rows = self._bounded(min(max(aim, self.rows / STEP_MAX), self.rows * STEP_MAX))

    def too_slow(self, rows: int) -> None:
        """Take in a chunk of so many rows that could not be written in a transaction's time."""
        self.rows = self._bounded(min(self.rows, rows / STEP_MAX))

    def _bounded(self, rows: float) -> int:
        return round(min(max(rows, self.rows_min), self.rows_max))
