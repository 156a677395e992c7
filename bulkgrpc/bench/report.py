"""The figures as tables for people and as one JSON object for programs. Pure."""

from __future__ import annotations

import statistics
from dataclasses import asdict

from rich.table import Table

from bulkgrpc.bench import model
from bulkgrpc.bench.contest import ContestResults
from bulkgrpc.bench.machine import Machine
from bulkgrpc.bench.model import MemoryResults, Results, Round


def machine_line(machine: Machine) -> str:
    """Return the machine in a line."""
    return (
        f"{machine.cores} cores of {machine.cpu}, {machine.memory_gib:g} GiB, {machine.system}; Python "
        f"{machine.python}, PostgreSQL {machine.postgres}, Kafka {machine.kafka}; load average {machine.load_average:g}"
    )


def throughput_table(results: Results) -> Table:
    """Return rates, ratios and latencies with their targets. Rates are medians; a ratio is the median of ratios."""
    load, rounds = results.load, results.rounds
    title = (
        f"{load.rows:,} readings, batches of {load.batch_rows:,}, {load.tenants} tenants, {load.workers} workers, "
        f"median of {load.rounds}"
    )
    table = Table("measured", "figure", "ratio", "from, to", "target", "met", title=title, title_justify="left")
    spread = f"{_rate([item.bare.rows_per_s for item in rounds])} rows/s"
    table.add_row("bare COPY BINARY", spread, "1.00", "", "", "")
    for name, rates, ratio, ratios, target in (
        (
            "drain: Kafka to table",
            [item.drain.rows_per_s for item in rounds],
            results.drain_ratio,
            [item.drain_ratio for item in rounds],
            model.DRAIN_RATIO_MIN,
        ),
        (
            "whole path: client to table",
            [item.whole.rows_per_s for item in rounds],
            results.whole_ratio,
            [item.whole_ratio for item in rounds],
            model.WHOLE_RATIO_MIN,
        ),
    ):
        between = f"{min(ratios):.2f}, {max(ratios):.2f}"
        table.add_row(name, f"{_rate(rates)} rows/s", f"{ratio:.2f}", between, f">= {target:g}", _met(ratio >= target))
    visible, acknowledged = results.latency.visible, results.latency.acknowledged
    target_ms = model.VISIBLE_P50_MS_MAX
    met = _met(visible.p50_ms <= target_ms)
    table.add_row("send to visible, p50", f"{visible.p50_ms:.1f} ms", "", "", f"<= {target_ms:g} ms", met)
    table.add_row("send to visible, p99", f"{visible.p99_ms:.1f} ms", "", "", "", "")
    table.add_row("send to acknowledged, p50", f"{acknowledged.p50_ms:.1f} ms", "", "", "", "")
    table.add_row("send to acknowledged, p99", f"{acknowledged.p99_ms:.1f} ms", "", "", "", "")
    return table


def memory_table(results: MemoryResults) -> Table:
    """Return the resident memory of each process with its target."""
    title = (
        f"{results.sent_bytes / 1e9:.2f} GB over {results.load.streams} streams: acknowledged in "
        f"{results.accepted_s:.0f} s, in the table in {results.written_s:.0f} s"
    )
    table = Table(
        "process", "at 10 %", "at the end", "most", "flat", "target", "met", title=title, title_justify="left"
    )
    for item in results.processes:
        table.add_row(
            item.name,
            f"{item.tenth_mb:.0f} MB",
            f"{item.end_mb:.0f} MB",
            f"{item.max_mb:.0f} MB",
            _met(item.flat),
            f"< {item.limit_mb:.0f} MB",
            _met(item.meets_target),
        )
    return table


def contest_table(results: ContestResults) -> Table:
    """Return each contestant's rate, and its ratio to that of the one whose number stands under `of`. Medians."""
    load = results.load
    title = (
        f"{load.rows:,} rows, batches of {load.batch_rows:,}, chunks of {load.chunk_rows:,}, {load.workers} workers or "
        f"connections, median of {load.rounds}"
    )
    table = Table("", "measured", "rows/s", "ratio", "from, to", "of", "target", "met", title=title)
    table.title_justify = "left"
    numbers = {item.name: f"{number}" for number, item in enumerate(results.contestants, 1)}
    for item in results.contestants:
        rate, ratios = f"{results.rows_per_s(item):,.0f}", results.ratios(item, item.next_to)
        target, met = (f">= {item.ratio_min:g}", _met(results.met(item))) if item.ratio_min else ("", "")
        ratio, between = f"{results.ratio(item):.2f}", f"{min(ratios):.2f}, {max(ratios):.2f}"
        of = "" if item.next_to == item.name else numbers[item.next_to]
        table.add_row(numbers[item.name], item.name, rate, ratio, between if of else "", of, target, met)
    return table


def contest_document(machine: Machine, results: ContestResults) -> dict[str, object]:
    """Return everything measured, with units in the names."""
    return {
        "machine": asdict(machine),
        "load": asdict(results.load),
        "contestants": [
            {
                "name": item.name,
                "by": item.by,
                "rows_per_s": [round(rates[item.name].rows_per_s) for rates in results.rounds],
                "next_to": item.next_to,
                "ratio": round(results.ratio(item), 3),
                "ratio_min": item.ratio_min,
                "met": results.met(item),
            }
            for item in results.contestants
        ],
    }


def throughput_document(machine: Machine, results: Results) -> dict[str, object]:
    """Return everything measured, with units in the names."""
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
    """Return everything measured, with units in the names."""
    document: dict[str, object] = {"machine": asdict(machine), **asdict(results)}
    document["processes"] = [
        {**asdict(item), "flat": item.flat, "target_met": item.meets_target} for item in results.processes
    ]
    return document


def _round(item: Round) -> dict[str, float]:
    return {
        "bare_rows_per_s": round(item.bare.rows_per_s),
        "drain_rows_per_s": round(item.drain.rows_per_s),
        "whole_rows_per_s": round(item.whole.rows_per_s),
        "drain_ratio": round(item.drain_ratio, 3),
        "whole_ratio": round(item.whole_ratio, 3),
    }


def _rate(rates: list[float]) -> str:
    return f"{statistics.median(rates):,.0f}"


def _met(met: bool) -> str:
    return "yes" if met else "no"
