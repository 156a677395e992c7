"""What is measured, and the figures. Values only; rates are ratios to a bare COPY of the same run."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

DRAIN_RATIO_MIN = 0.6
WHOLE_RATIO_MIN = 0.35
VISIBLE_P50_MS_MAX = 15.0
SERVER_RSS_MB_MAX = 300.0
WORKER_RSS_MB_MAX = 500.0

Report = Callable[[str], None]
"""Told in a few words what is under way."""


class BenchFailed(Exception):
    """A measurement could not be made, or a count was not exact. `str()` is one line that says which."""


@dataclass(frozen=True, slots=True)
class Load:
    """What the throughput measurements send.

    rows: in all, a multiple of `tenants` x `batch_rows` so that every batch is full. chunk_rows: of a worker's
    transaction, and of a bare COPY's. samples: batches of the latency measurement.
    """

    rows: int
    batch_rows: int
    workers: int
    tenants: int
    chunk_rows: int
    rounds: int
    samples: int

    @property
    def tenant_rows(self) -> int:
        """Rows of each tenant."""
        return self.rows // self.tenants

    @classmethod
    def of(cls, rows: int, batch_rows: int, workers: int, rounds: int, samples: int) -> Load:
        """Round `rows` up to full batches for twice as many tenants as workers, at least four."""
        tenants = max(4, 2 * workers)
        step = tenants * batch_rows
        return cls(-(-rows // step) * step, batch_rows, workers, tenants, 20_000, rounds, samples)


@dataclass(frozen=True, slots=True)
class Rate:
    """Rows that were written in a time."""

    rows: int
    seconds: float

    @property
    def rows_per_s(self) -> float:
        """Rows a second."""
        return self.rows / self.seconds


@dataclass(frozen=True, slots=True)
class Round:
    """One bare COPY and what was measured right after it; the ratios are of one round."""

    bare: Rate
    drain: Rate
    whole: Rate

    @property
    def drain_ratio(self) -> float:
        """The drain's rate, the bare COPY's being 1."""
        return self.drain.rows_per_s / self.bare.rows_per_s

    @property
    def whole_ratio(self) -> float:
        """The whole path's rate, the bare COPY's being 1."""
        return self.whole.rows_per_s / self.bare.rows_per_s


@dataclass(frozen=True, slots=True)
class Quantiles:
    """Of times in ms."""

    p50_ms: float
    p99_ms: float
    samples: int

    @classmethod
    def of(cls, times_s: Sequence[float]) -> Quantiles:
        """Return the quantiles of at least one time, each a time that was measured (nearest rank)."""
        ordered = sorted(times_s)

        def rank(share: float) -> float:
            return ordered[max(0, -(-round(share * 100) * len(ordered) // 100) - 1)] * 1000

        return cls(rank(0.5), rank(0.99), len(ordered))


@dataclass(frozen=True, slots=True)
class Latency:
    """From handing a batch to the client until: its acknowledgement is there; its rows are visible."""

    acknowledged: Quantiles
    visible: Quantiles


@dataclass(frozen=True, slots=True)
class Results:
    """All figures of one run."""

    load: Load
    rounds: tuple[Round, ...]
    latency: Latency

    @property
    def drain_ratio(self) -> float:
        """The median over the rounds."""
        return statistics.median(item.drain_ratio for item in self.rounds)

    @property
    def whole_ratio(self) -> float:
        """The median over the rounds."""
        return statistics.median(item.whole_ratio for item in self.rounds)


@dataclass(frozen=True, slots=True)
class Sample:
    """A process' resident memory when its share of the load, 0 to 1, was done."""

    share: float
    rss_mb: float


FLAT_RATIO_MAX = 1.1
FLAT_SLACK_MB = 16.0


@dataclass(frozen=True, slots=True)
class Resident:
    """Resident memory of one process over the load, in MB (10^6 bytes).

    max_mb: the kernel's own high-water mark where it tells one, start of the process included.
    """

    name: str
    tenth_mb: float
    end_mb: float
    max_mb: float
    limit_mb: float

    @classmethod
    def of(cls, name: str, samples: Sequence[Sample], max_mb: float, limit_mb: float) -> Resident:
        """Read a process' samples: the median of the second tenth of the load, and that of the last tenth.

        Raises BenchFailed if either tenth has no sample: the load was too small for the sampling.
        """
        second = [sample.rss_mb for sample in samples if 0.1 <= sample.share < 0.2]
        last = [sample.rss_mb for sample in samples if sample.share >= 0.9]
        if not second or not last:
            raise BenchFailed(f"the load was over before the memory of the {name} was sampled: give more gigabytes")
        return cls(name, statistics.median(second), statistics.median(last), max_mb, limit_mb)

    @property
    def flat(self) -> bool:
        """Whether it ended at most a tenth (and 16 MB) above where it was after a tenth of the load."""
        return self.end_mb <= self.tenth_mb * FLAT_RATIO_MAX + FLAT_SLACK_MB

    @property
    def meets_target(self) -> bool:
        """Whether it stayed under its limit, and flat."""
        return self.flat and self.max_mb < self.limit_mb


@dataclass(frozen=True, slots=True)
class MemoryLoad:
    """What the memory run sends: bytes in all, over so many streams at once, in batches of about so many bytes."""

    total_bytes: int
    streams: int
    batch_bytes: int


@dataclass(frozen=True, slots=True)
class MemoryResults:
    """What the memory run found. accepted: until the last acknowledgement; written: until the last job ended."""

    load: MemoryLoad
    sent_bytes: int
    rows: int
    accepted_s: float
    written_s: float
    processes: tuple[Resident, ...]
