"""The cases of `bench noisy`: where a noisy tenant is, seen from a quiet one, and what it does to its latency. Pure."""

from __future__ import annotations

import enum
import itertools
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from bulkgrpc.bench.model import BenchFailed, Quantiles
from bulkgrpc.kafka.partition import partition_of

PARTITIONS = 4
WORKERS = 2
QUIET_PARTITION = 0
QUIET_INTERVAL_S = 0.1
QUIET_ROWS = 100


class Case(enum.Enum):
    """What runs beside the quiet tenant. The value is the name in reports."""

    ALONE = "alone"
    SAME_PARTITION = "noisy: same partition"
    SAME_WORKER = "noisy: same worker"
    """In another partition of the worker that has the quiet tenant's."""
    OTHER_WORKER = "noisy: other worker"
    UNRELATED = "unrelated CPU load"
    """Processes that do nothing useful, and take as much CPU time as the noisy cases did on average."""


NOISY = (Case.SAME_PARTITION, Case.SAME_WORKER, Case.OTHER_WORKER)


def noisy_partitions(assignment: Sequence[Sequence[int]]) -> dict[Case, int]:
    """Return the partition of the noisy tenant in each case. assignment: the partitions of each worker.

    Raises BenchFailed unless QUIET_PARTITION's worker has another one, and another worker has one.
    """
    with_quiet = [sorted(partitions) for partitions in assignment if QUIET_PARTITION in partitions]
    others = [sorted(partitions) for partitions in assignment if QUIET_PARTITION not in partitions and partitions]
    beside = [partition for partitions in with_quiet for partition in partitions if partition != QUIET_PARTITION]
    if not beside or not others:
        raise BenchFailed(f"the workers have the partitions {assignment}: none beside partition {QUIET_PARTITION}")
    return {
        Case.SAME_PARTITION: QUIET_PARTITION,
        Case.SAME_WORKER: beside[0],
        Case.OTHER_WORKER: others[0][0],
    }


def tenant_on(partition: int, prefix: str) -> str:
    """Return a tenant whose batches go to a partition of a topic with PARTITIONS."""
    names = (f"{prefix}-{number}" for number in itertools.count())
    return next(name for name in names if partition_of(name, PARTITIONS) == partition)


@dataclass(frozen=True, slots=True)
class NoisyLoad:
    """The load of `bench noisy`. seconds: for which the quiet tenant submits jobs, in each case."""

    seconds: float

    @property
    def samples(self) -> int:
        """Jobs of the quiet tenant in each case."""
        return max(1, round(self.seconds / QUIET_INTERVAL_S))


@dataclass(frozen=True, slots=True)
class NoisyCase:
    """The figures of one case.

    visible: from the submission of a quiet job until its rows are visible. noisy_rows_per_s: rows of the noisy tenant
    that were written, from its first batch until its last job ended. cpu_cores: CPU seconds per second of all processes
    but the quiet client and the observer, while the quiet tenant submitted.
    """

    case: Case
    visible: Quantiles
    noisy_rows_per_s: float
    cpu_cores: float


@dataclass(frozen=True, slots=True)
class NoisyResults:
    """All figures of one run of `bench noisy`, in the order of `Case`."""

    load: NoisyLoad
    cases: tuple[NoisyCase, ...]

    def ratios(self, measured: NoisyCase) -> tuple[float, float]:
        """Return p50 and p99 of a case divided by those beside an unrelated load."""
        unrelated = next(item.visible for item in self.cases if item.case is Case.UNRELATED)
        return measured.visible.p50_ms / unrelated.p50_ms, measured.visible.p99_ms / unrelated.p99_ms


def unrelated_cores(cases: Sequence[NoisyCase]) -> float:
    """Return what the noisy tenant cost on average: CPU seconds per second more than alone, at least 0."""
    alone = next(item.cpu_cores for item in cases if item.case is Case.ALONE)
    return max(0.0, statistics.mean(item.cpu_cores for item in cases if item.case in NOISY) - alone)
