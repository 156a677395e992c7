"""CPU time between two moments, and the ratios of pairs."""

from __future__ import annotations

import os

import pytest

from tools.bench_pairs import Phase, Sampler, Series, phase_of, summary


def test_cpu_time_is_interpolated_between_samples() -> None:
    series = Series("worker", [(10.0, 1.0), (11.0, 2.0), (13.0, 3.0)])
    assert series.cpu_between(10.5, 12.0) == pytest.approx(1.0)
    assert series.cpu_between(10.0, 13.0) == pytest.approx(2.0)


def test_cpu_time_of_a_process_that_exits_or_has_not_started_counts_as_far_as_it_ran() -> None:
    series = Series("worker", [(10.0, 1.0), (11.0, 2.0)])
    assert series.cpu_between(5.0, 20.0) == pytest.approx(1.0)
    assert series.cpu_between(15.0, 20.0) == 0.0
    assert Series("worker").cpu_between(0.0, 1.0) == 0.0


def test_the_drain_counts_from_when_the_workers_continue() -> None:
    worker = Series("worker", [(10.0, 1.0), (20.0, 1.0), (30.0, 3.0), (40.0, 3.0)], stopped_s=20.0)
    postgres = Series("postgres", [(10.0, 0.0), (20.0, 4.0), (30.0, 5.0), (40.0, 5.0)])
    drain = phase_of([worker, postgres], (10.0, 30.0, 1_000_000), from_stopped=True)
    assert drain.service == pytest.approx(2.0)
    assert drain.postgres == pytest.approx(1.0)
    whole = phase_of([worker, postgres], (10.0, 30.0, 500_000), from_stopped=False)
    assert whole.total == pytest.approx(14.0)


def test_a_ratio_is_of_one_pair() -> None:
    old = {"drain": Phase(2.0, 1.0), "whole": Phase(4.0, 4.0)}
    new = {"drain": Phase(1.0, 2.0), "whole": Phase(4.0, 2.0)}
    ratios = dict(summary([(old, new), (old, old)]))
    assert ratios["drain service"] == [0.5, 1.0]
    assert ratios["drain total"] == [1.0, 1.0]
    assert ratios["whole total"] == [0.75, 1.0]


def test_a_sampler_reads_the_cpu_time_of_this_process() -> None:
    sampler = Sampler(os.getpid(), os.getpid())
    sampler.start()
    while not sampler.series[os.getpid()].samples:
        sum(range(10_000))
    sampler.stop()
    assert sampler.series[os.getpid()].samples[-1][1] > 0
