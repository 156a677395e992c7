"""The figures as tables for people and as one JSON object for programs. Pure. Tables fit into 80 columns."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict

from rich.table import Table

from bulkgrpc.bench import model
from bulkgrpc.bench.machine import Machine
from bulkgrpc.bench.model import MemoryResults, Rate, Results, Round
from bulkgrpc.bench.noisy_cases import QUIET_INTERVAL_S, QUIET_ROWS, NoisyResults
from bulkgrpc.bench.policy_cases import PolicyResults


def machine_line(machine: Machine) -> str:
    """Return the machine in one line."""
    return (
        f"{machine.cores} cores of {machine.cpu}, {machine.memory_gib:g} GiB, {machine.system}; Python "
        f"{machine.python}, PostgreSQL {machine.postgres}, Kafka {machine.kafka}; load average {machine.load_average:g}"
    )


def throughput_table(results: Results) -> Table:
    """Return rates, ratios to the bare COPY and CPU seconds per million rows, with the targets.

    Rates and CPU times are medians of the rounds; a ratio is the median of the rounds' ratios.
    """
    load, rounds = results.load, results.rounds
    title = (
        f"{load.rows:,} readings, batches of {load.batch_rows:,}, {load.tenants} tenants, {load.workers} workers, "
        f"median of {load.rounds}"
    )
    table = _table(title, "throughput", ">rows/s", ">ratio", "from, to", "target", "met", ">CPU s per\nmillion rows")
    bare = [item.bare for item in rounds]
    table.add_row("bare COPY BINARY", _rows_per_s(bare), "1.00", "", "", "", _cpu(bare))
    drain, whole = [item.drain for item in rounds], [item.whole for item in rounds]
    drain_ratios, whole_ratios = [item.drain_ratio for item in rounds], [item.whole_ratio for item in rounds]
    for name, rates, ratio, ratios, target in (
        ("drain", drain, results.drain_ratio, drain_ratios, model.DRAIN_RATIO_MIN),
        ("whole path", whole, results.whole_ratio, whole_ratios, model.WHOLE_RATIO_MIN),
    ):
        spread = f"{min(ratios):.2f}, {max(ratios):.2f}"
        table.add_row(
            name, _rows_per_s(rates), f"{ratio:.2f}", spread, f">= {target:g}", _yes_no(ratio >= target), _cpu(rates)
        )
    table.caption = "drain: Kafka to table. whole path: client to table. CPU: without Kafka."
    return table


def latency_table(results: Results) -> Table:
    """Return the quantiles of both latencies, with the target."""
    table = _table("", "latency at low load", ">p50", ">p99", "target p50", "met")
    visible, acknowledged = results.latency.visible, results.latency.acknowledged
    target_ms = model.VISIBLE_P50_MS_MAX
    met = _yes_no(visible.p50_ms <= target_ms)
    table.add_row(
        "send to visible", f"{visible.p50_ms:.1f} ms", f"{visible.p99_ms:.1f} ms", f"<= {target_ms:g} ms", met
    )
    table.add_row("send to acknowledged", f"{acknowledged.p50_ms:.1f} ms", f"{acknowledged.p99_ms:.1f} ms", "", "")
    return table


def memory_table(results: MemoryResults) -> Table:
    """Return the resident memory of each process, with its target."""
    title = (
        f"{results.sent_bytes / 1e9:.2f} GB over {results.load.streams} streams: acknowledged in "
        f"{results.accepted_s:.0f} s, in the table in {results.written_s:.0f} s"
    )
    table = _table(title, "process", ">at 10 %", ">at the end", ">maximum", "flat", "target", "met")
    for item in results.processes:
        table.add_row(
            item.name,
            f"{item.tenth_mb:.0f} MB",
            f"{item.end_mb:.0f} MB",
            f"{item.max_mb:.0f} MB",
            _yes_no(item.flat),
            f"< {item.limit_mb:.0f} MB",
            _yes_no(item.meets_target),
        )
    return table


def policies_table(results: PolicyResults) -> Table:
    """Return each case's rate, and its ratio to its baseline, whose number is in the column `of`. Medians."""
    load = results.load
    title = (
        f"{load.rows:,} rows, batches of {load.batch_rows:,}, chunks of {load.chunk_rows:,}, {load.workers} workers or "
        f"connections, median of {load.rounds}"
    )
    table = _table(title, ">#", "case", ">rows/s", ">ratio", "from, to", ">of", "target", "met")
    table.columns[1].overflow = "fold"
    numbers = {item.name: f"{number}" for number, item in enumerate(results.cases, 1)}
    for case in results.cases:
        rate, ratios = f"{results.rows_per_s(case):,.0f}", results.ratios(case)
        target, met = (f">= {case.ratio_min:g}", _yes_no(results.met(case))) if case.ratio_min else ("", "")
        ratio, spread = f"{results.ratio(case):.2f}", f"{min(ratios):.2f}, {max(ratios):.2f}"
        of = "" if case.baseline == case.name else numbers[case.baseline]
        table.add_row(numbers[case.name], case.name, rate, ratio, spread if of else "", of, target, met)
    return table


def noisy_table(results: NoisyResults) -> Table:
    """Return the latency of the quiet tenant in each case, and its ratio to that beside an unrelated load."""
    title = (
        f"from submission to visible: a job of {QUIET_ROWS} rows every {QUIET_INTERVAL_S * 1000:.0f} ms, "
        f"{results.load.samples} jobs in each case"
    )
    table = _table(title, "beside", ">p50 ms", ">ratio", ">p99 ms", ">ratio", ">noisy\nrows/s", ">CPUs")
    for item in results.cases:
        p50_ratio, p99_ratio = results.ratios(item)
        table.add_row(
            item.case.value,
            f"{item.visible.p50_ms:,.1f}",
            f"{p50_ratio:.2f}",
            f"{item.visible.p99_ms:,.1f}",
            f"{p99_ratio:.2f}",
            f"{item.noisy_rows_per_s:,.0f}" if item.noisy_rows_per_s else "",
            f"{item.cpu_cores:.2f}",
        )
    table.caption = "ratio: to the quiet tenant's time beside the unrelated load."
    return table


def noisy_document(machine: Machine, results: NoisyResults) -> dict[str, object]:
    """Return all figures of `bench noisy`, with units in the names."""
    return {
        "machine": asdict(machine),
        "load": asdict(results.load),
        "cases": [
            {
                "name": item.case.value,
                "visible": asdict(item.visible),
                "p50_ratio": round(results.ratios(item)[0], 3),
                "p99_ratio": round(results.ratios(item)[1], 3),
                "noisy_rows_per_s": round(item.noisy_rows_per_s),
                "cpu_cores": round(item.cpu_cores, 3),
            }
            for item in results.cases
        ],
    }


def policies_document(machine: Machine, results: PolicyResults) -> dict[str, object]:
    """Return all figures of `bench policies`, with units in the names."""
    return {
        "machine": asdict(machine),
        "load": asdict(results.load),
        "cases": [
            {
                "name": case.name,
                "writer": case.writer,
                "rows_per_s": [round(rates[case.name].rows_per_s) for rates in results.rounds],
                "cpu_s_per_million_rows": [
                    round(rates[case.name].cpu_s_per_million_rows, 3) for rates in results.rounds
                ],
                "baseline": case.baseline,
                "ratio": round(results.ratio(case), 3),
                "ratio_min": case.ratio_min,
                "met": results.met(case),
            }
            for case in results.cases
        ],
    }


def throughput_document(machine: Machine, results: Results) -> dict[str, object]:
    """Return all figures of `bench`, with units in the names."""
    return {
        "machine": asdict(machine),
        "load": asdict(results.load),
        "rounds": [_round(item) for item in results.rounds],
        "drain_ratio": round(results.drain_ratio, 3),
        "whole_ratio": round(results.whole_ratio, 3),
        "latency": asdict(results.latency),
        "targets_met": {
            "drain_ratio": results.drain_ratio >= model.DRAIN_RATIO_MIN,
            "whole_ratio": results.whole_ratio >= model.WHOLE_RATIO_MIN,
            "visible_p50_ms": results.latency.visible.p50_ms <= model.VISIBLE_P50_MS_MAX,
        },
    }


def memory_document(machine: Machine, results: MemoryResults) -> dict[str, object]:
    """Return all figures of `bench memory`, with units in the names."""
    document: dict[str, object] = {"machine": asdict(machine), **asdict(results)}
    document["processes"] = [
        {**asdict(item), "flat": item.flat, "target_met": item.meets_target} for item in results.processes
    ]
    return document


def _round(item: Round) -> dict[str, float]:
    rates = {"bare": item.bare, "drain": item.drain, "whole": item.whole}
    return {
        **{f"{name}_rows_per_s": round(rate.rows_per_s) for name, rate in rates.items()},
        "drain_ratio": round(item.drain_ratio, 3),
        "whole_ratio": round(item.whole_ratio, 3),
        **{f"{name}_cpu_s_per_million_rows": round(rate.cpu_s_per_million_rows, 3) for name, rate in rates.items()},
    }


def _table(title: str, *columns: str) -> Table:
    """Return an empty table without outer padding. A column whose name starts with `>` is right-aligned."""
    table = Table(title=title or None, title_justify="left", caption_justify="left", show_edge=False, pad_edge=False)
    for name in columns:
        table.add_column(name.removeprefix(">"), justify="right" if name.startswith(">") else "left")
    return table


def _rows_per_s(rates: Sequence[Rate]) -> str:
    return f"{statistics.median(rate.rows_per_s for rate in rates):,.0f}"


def _cpu(rates: Sequence[Rate]) -> str:
    return f"{statistics.median(rate.cpu_s_per_million_rows for rate in rates):.2f}"


def _yes_no(met: bool) -> str:
    return "yes" if met else "no"
