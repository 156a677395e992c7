"""The loads and the figures of the benchmark. Values only. Rates are compared with a bare COPY of the same run."""

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
"""Receives a short description of each step when it starts."""


class BenchFailed(Exception):
    """A measurement failed, or a count was not exact. `str()` is one line that says which."""


@dataclass(frozen=True, slots=True)
class Load:
    """The load of the throughput and latency measurements.

    rows: in all; a multiple of `tenants` x `batch_rows`, so that every batch is full. chunk_rows: rows of one
    transaction of the bare COPY, and at most of a worker. rounds: how often throughput is measured. samples: batches of
    the latency measurement.
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
    """Rows written, and what they took.

    cpu_s: user and system time of all processes that took part, PostgreSQL's included and Kafka's not: its JVM compiles
    code in the background, so that its time varies from run to run.
    """

    rows: int
    seconds: float
    cpu_s: float

    @property
    def rows_per_s(self) -> float:
        """Rows per second."""
        return self.rows / self.seconds

    @property
    def cpu_s_per_million_rows(self) -> float:
        """CPU seconds per million rows."""
        return self.cpu_s / self.rows * 1e6


@dataclass(frozen=True, slots=True)
class Round:
    """One bare COPY and what was measured right after it."""

    bare: Rate
    drain: Rate
    whole: Rate

    @property
    def drain_ratio(self) -> float:
        """The rate of the drain divided by that of the bare COPY."""
        return self.drain.rows_per_s / self.bare.rows_per_s

    @property
    def whole_ratio(self) -> float:
        """The rate of the whole path divided by that of the bare COPY."""
        return self.whole.rows_per_s / self.bare.rows_per_s


@dataclass(frozen=True, slots=True)
class Quantiles:
    """Quantiles of times, in ms."""

    p50_ms: float
    p99_ms: float
    samples: int

    @classmethod
    def of(cls, times_s: Sequence[float]) -> Quantiles:
        """Return the quantiles of at least one time. Each is a measured time (nearest rank)."""
        ordered = sorted(times_s)

        def rank(share: float) -> float:
            return ordered[max(0, -(-round(share * 100) * len(ordered) // 100) - 1)] * 1000

        return cls(rank(0.5), rank(0.99), len(ordered))


@dataclass(frozen=True, slots=True)
class Latency:
    """Times from handing a batch to the client: until its acknowledgement arrives, and until its rows are visible."""

    acknowledged: Quantiles
    visible: Quantiles


@dataclass(frozen=True, slots=True)
class Results:
    """All figures of one run of `bench`."""

    load: Load
    rounds: tuple[Round, ...]
    latency: Latency

    @property
    def drain_ratio(self) -> float:
        """The median ratio of the rounds."""
        return statistics.median(item.drain_ratio for item in self.rounds)

    @property
    def whole_ratio(self) -> float:
        """The median ratio of the rounds."""
        return statistics.median(item.whole_ratio for item in self.rounds)


@dataclass(frozen=True, slots=True)
class Sample:
    """A process's resident memory when a share of its load, 0 to 1, was done."""

    share: float
    rss_mb: float


FLAT_RATIO_MAX = 1.1
FLAT_SLACK_MB = 16.0


@dataclass(frozen=True, slots=True)
class Resident:
    """Resident memory of one process during the load, in MB (10^6 bytes).

    tenth_mb: after a tenth of the load. max_mb: the kernel's high-water mark if it has one, which includes the start of
    the process.
    """

    name: str
    tenth_mb: float
    end_mb: float
    max_mb: float
    limit_mb: float

    @classmethod
    def of(cls, name: str, samples: Sequence[Sample], max_mb: float, limit_mb: float) -> Resident:
        """Summarize a process's samples by the medians of the second and the last tenth of the load.

        Raises BenchFailed if either tenth has no sample: the load was too small.
        """
        second = [sample.rss_mb for sample in samples if 0.1 <= sample.share < 0.2]
        last = [sample.rss_mb for sample in samples if sample.share >= 0.9]
        if not second or not last:
            raise BenchFailed(f"the load ended before the memory of the {name} was sampled: use more gigabytes")
        return cls(name, statistics.median(second), statistics.median(last), max_mb, limit_mb)

    @property
    def flat(self) -> bool:
        """Whether memory at the end is at most a tenth and 16 MB above that after a tenth of the load."""
        return self.end_mb <= self.tenth_mb * FLAT_RATIO_MAX + FLAT_SLACK_MB

    @property
    def meets_target(self) -> bool:
        """Whether memory stayed below the limit, and flat."""
        return self.flat and self.max_mb < self.limit_mb


@dataclass(frozen=True, slots=True)
class MemoryLoad:
    """The load of the memory measurement. batch_bytes: the approximate size of a batch."""

    total_bytes: int
    streams: int
    batch_bytes: int


@dataclass(frozen=True, slots=True)
class MemoryResults:
    """The figures of `bench memory`. accepted_s: until the last acknowledgement. written_s: until all jobs ended."""

    load: MemoryLoad
    sent_bytes: int
    rows: int
    accepted_s: float
    written_s: float
    processes: tuple[Resident, ...]
