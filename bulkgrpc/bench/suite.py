"""Runs the measurements in rounds: each ratio compares a bare COPY with what ran right after it."""

from __future__ import annotations

from bulkgrpc.bench import bare_copy, drain, latency, readings, whole_path
from bulkgrpc.bench.environment import Environment
from bulkgrpc.bench.model import Load, Report, Results, Round


def run(environment: Environment, load: Load, report: Report) -> Results:
    """Measure throughput in `load.rounds` rounds, then latency. Raises BenchFailed."""
    dataset = readings.dataset()
    rounds = []
    for number in range(1, load.rounds + 1):
        label = f"round {number} of {load.rounds}"
        report(f"{label}: bare COPY")
        bare = bare_copy.measure(environment, dataset, load)
        report(f"{label}: drain")
        drained = drain.measure(environment, dataset, load)
        report(f"{label}: whole path")
        rounds.append(Round(bare, drained, whole_path.measure(environment, dataset, load)))
    report("latency")
    return Results(load, tuple(rounds), latency.measure(environment, dataset, load))


def steps(load: Load) -> int:
    """Return how often `run` reports."""
    return 3 * load.rounds + 1
