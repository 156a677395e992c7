"""Compare the CPU time of two checkouts: run their `bulkgrpc bench` in alternating pairs on one stack.

    python -m tools.bench_pairs OLD/.venv/bin/bulkgrpc NEW/.venv/bin/bulkgrpc --pairs 8

CPU time varies less from run to run than rates do. It is measured from outside, the same way for both checkouts, so an
old one needs no support for it: a thread samples the CPU time of the bench's workers, server and client and of
PostgreSQL, and the table `bulk.jobs` has the times between which the jobs ran. Kafka is not counted: its JVM compiles
code in the background. The exit code is 1 if a median ratio (new divided by old) is above --max.
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import shutil
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from bulkgrpc.bench.environment import DATABASE
from bulkgrpc.postgres.databases import connection_to
from bulkgrpc.stack import Stack

SAMPLE_INTERVAL_S = 0.02
FIND_INTERVAL_S = 0.2
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
# The jobs of a phase have idempotency keys `drain-…` or `whole-…`, in old and new checkouts.
PHASES = ("drain", "whole")
_JOBS = """
    SELECT extract(epoch FROM min(create_time))::float8, extract(epoch FROM max(end_time))::float8, sum(accepted)::int8
    FROM bulk.jobs WHERE idempotency_key LIKE %s
"""


@dataclass(slots=True)
class Series:
    """The CPU time of one process: samples (Unix time in s, CPU time in s), and the last time it was seen stopped."""

    role: str
    samples: list[tuple[float, float]] = field(default_factory=list)
    stopped_s: float = 0.0

    def cpu_between(self, start_s: float, end_s: float) -> float:
        """Return the CPU seconds used between two times, by linear interpolation between samples."""
        return self._at(end_s) - self._at(start_s)

    def _at(self, time_s: float) -> float:
        before = (0.0, self.samples[0][1]) if self.samples else (0.0, 0.0)
        for sample in self.samples:
            if sample[0] >= time_s:
                share = (time_s - before[0]) / (sample[0] - before[0]) if sample[0] > before[0] else 1.0
                return before[1] + share * (sample[1] - before[1])
            before = sample
        return before[1]


class Sampler(threading.Thread):
    """Samples the CPU time of a bench's child processes and of PostgreSQL until `stop` is called."""

    def __init__(self, bench_pid: int, postgres_pid: int) -> None:
        super().__init__(name="sampler", daemon=True)
        self._bench = psutil.Process(bench_pid)
        self._postgres = psutil.Process(postgres_pid)
        self._stopping = threading.Event()
        self.series: dict[int, Series] = {postgres_pid: Series("postgres")}

    def run(self) -> None:
        """Sample until stopped."""
        backends: list[int] = []
        next_find_s = 0.0
        while not self._stopping.wait(SAMPLE_INTERVAL_S):
            if time.monotonic() >= next_find_s:
                backends = self._find()
                next_find_s = time.monotonic() + FIND_INTERVAL_S
            now_s = time.time()
            for pid, series in self.series.items():
                if series.role == "postgres":
                    trees = [_stat(pid), *map(_stat, backends)]
                    series.samples.append((now_s, sum(found[1] for found in trees if found)))
                elif found := _stat(pid):
                    series.samples.append((now_s, found[1]))
                    if found[0] == "T":
                        series.stopped_s = now_s

    def stop(self) -> None:
        """End the thread."""
        self._stopping.set()
        self.join()

    def _find(self) -> list[int]:
        """Find new processes of the bench; return PostgreSQL's other processes."""
        try:
            for process in self._bench.children(recursive=True):
                role = _role(" ".join(process.cmdline())) if process.pid not in self.series else None
                if role is not None:
                    self.series[process.pid] = Series(role)
            return [process.pid for process in self._postgres.children(recursive=True)]
        except psutil.Error:
            return []


@dataclass(frozen=True, slots=True)
class Phase:
    """CPU seconds per million rows of one phase: of the service's own processes, and of PostgreSQL."""

    service: float
    postgres: float

    @property
    def total(self) -> float:
        """Both together."""
        return self.service + self.postgres


def phase_of(series: Sequence[Series], jobs: tuple[float, float, int], *, from_stopped: bool) -> Phase:
    """Return the CPU time of a phase. jobs: first create time, last end time (Unix, s), records.

    from_stopped: start when the workers were last stopped instead, since the drain stops them while it fills the topic.
    """
    start_s, end_s, rows = jobs
    if from_stopped:
        start_s = max([start_s, *(one.stopped_s for one in series if one.stopped_s < end_s)])
    used = {True: 0.0, False: 0.0}
    for one in series:
        used[one.role == "postgres"] += one.cpu_between(start_s, end_s + SAMPLE_INTERVAL_S)
    return Phase(used[False] / rows * 1e6, used[True] / rows * 1e6)


def run_bench(binary: Path, stack: Stack, arguments: Sequence[str]) -> dict[str, Phase]:
    """Run one bench and return the CPU time of its phases. Raises SystemExit with the bench's error if it fails."""
    postgres_pid = stack.part("postgres").pid
    assert postgres_pid is not None  # noqa: S101 — the stack is up
    command = [str(binary), "bench", "--json", "--rounds", "1", "--data-dir", str(stack.data_dir), *arguments]
    # Not in this directory: `python -m workers.process` would import this checkout's modules.
    bench = subprocess.Popen(command, cwd=stack.data_dir, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    sampler = Sampler(bench.pid, postgres_pid)
    sampler.start()
    output, errors = bench.communicate()
    sampler.stop()
    if bench.returncode != 0:
        raise SystemExit(f"{binary} failed: {errors.strip()}")
    json.loads(output)
    series = list(sampler.series.values())
    database = stack.addresses.postgres.rpartition("/")[0] + f"/{DATABASE}"
    phases = {}
    with connection_to(database) as connection:
        for name in PHASES:
            row = connection.execute(_JOBS, (f"{name}-%",)).fetchone()
            if row is None or row[1] is None:
                raise SystemExit(f"{binary}: the bench left no ended jobs of the phase {name}")
            phases[name] = phase_of(series, (row[0], row[1], row[2]), from_stopped=name == "drain")
    return phases


def summary(pairs: Sequence[tuple[dict[str, Phase], dict[str, Phase]]]) -> list[tuple[str, list[float]]]:
    """Return the ratios new / old of each phase and part, one for each pair."""
    return [
        (f"{phase} {part}", [getattr(new[phase], part) / getattr(old[phase], part) for old, new in pairs])
        for phase in PHASES
        for part in ("service", "postgres", "total")
    ]


def _role(command_line: str) -> str | None:
    if "workers" in command_line and "process" in command_line:
        return "worker"
    if "bulkgrpc.server" in command_line:
        return "server"
    return "client" if "spawn_main" in command_line else None


def _stat(pid: int) -> tuple[str, float] | None:
    """Return a process's state and its CPU seconds, including children that it has waited for; None if it exited."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    fields = text.rpartition(")")[2].split()
    return fields[0], sum(map(int, fields[11:15])) / _TICKS_PER_S


def main() -> None:
    """Run the pairs and print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old", type=Path, help="the old checkout's bulkgrpc")
    parser.add_argument("new", type=Path, help="the new checkout's bulkgrpc")
    parser.add_argument("--pairs", type=int, default=8, help="pairs of runs (default: 8)")
    parser.add_argument("--rows", type=int, default=400_000, help="rows of each measurement (default: 400000)")
    parser.add_argument("--max", type=float, default=1.03, help="highest accepted median of a total (default: 1.03)")
    options = parser.parse_args()
    options.old, options.new = options.old.absolute(), options.new.absolute()
    stack = Stack(Path("/var/tmp") / f"bulkgrpc-pairs-{secrets.token_hex(4)}")  # noqa: S108 — a random name
    pairs = []
    try:
        stack.up()
        for number in range(1, options.pairs + 1):
            # Every other pair starts with the new checkout, so that drift of the machine affects both.
            order = (options.old, options.new) if number % 2 else (options.new, options.old)
            found = {binary: run_bench(binary, stack, ["--rows", str(options.rows)]) for binary in order}
            pairs.append((found[options.old], found[options.new]))
            old, new = pairs[-1]
            texts = [f"{phase} {old[phase].total:.2f} -> {new[phase].total:.2f}" for phase in PHASES]
            print(f"pair {number} of {options.pairs}: {', '.join(texts)} CPU s per million rows", flush=True)
    finally:
        stack.destroy()
        shutil.rmtree(stack.data_dir, ignore_errors=True)
    exceeded = False
    for name, ratios in summary(pairs):
        median = statistics.median(ratios)
        exceeded |= name.endswith("total") and median > options.max
        print(f"{name:<15} new / old: median {median:.3f}, from {min(ratios):.3f} to {max(ratios):.3f}")
    sys.exit(exceeded)


if __name__ == "__main__":
    main()
