"""One measurement after the other, in rounds: each ratio is of a bare COPY and what ran right after it."""

from __future__ import annotations

from bulkgrpc.bench import bare, drain, latency, readings, whole
from bulkgrpc.bench.ground import Ground
from bulkgrpc.bench.model import Load, Report, Results, Round


def run(ground: Ground, load: Load, report: Report) -> Results:
    """Measure throughput in `load.rounds` rounds, then latency. Raises BenchFailed."""
    dataset = readings.dataset()
    rounds = []
    for number in range(1, load.rounds + 1):
        where = f"round {number} of {load.rounds}"
        report(f"{where}: bare COPY")
        copied = bare.measure(ground, dataset, load)
        report(f"{where}: drain")
        drained = drain.measure(ground, dataset, load)
        report(f"{where}: whole path")
        rounds.append(Round(copied, drained, whole.measure(ground, dataset, load)))
    report("latency")
    return Results(load, tuple(rounds), latency.measure(ground, dataset, load))


def steps(load: Load) -> int:
    """Return how many times `run` reports."""
    return 3 * load.rounds + 1
