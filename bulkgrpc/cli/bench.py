"""The commands `bench`, `bench policies` and `bench memory`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from bulkgrpc.bench.model import BenchFailed, Load, MemoryLoad
from bulkgrpc.cli import console
from bulkgrpc.stack import StackError

# The measurements are imported where they are needed: they load Arrow and gRPC, which `--help` does without.
# ruff: noqa: PLC0415

app = typer.Typer(help="Measure throughput, latency and memory on a stack of its own.")

DataDir = Annotated[
    Path | None,
    typer.Option(help="Use the stack in this directory and keep it. Default: one below /var/tmp, deleted afterwards."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]


@app.callback(invoke_without_command=True)
def bench(  # noqa: PLR0917 — options, given by name
    context: typer.Context,
    rows: Annotated[int, typer.Option(min=1, help="Rows of each throughput measurement.")] = 1_000_000,
    batch_rows: Annotated[int, typer.Option(min=1, max=20_000, help="Rows in a batch.")] = 1000,
    workers: Annotated[int, typer.Option(min=1, max=16, help="Workers, and connections of the bare COPY.")] = 2,
    rounds: Annotated[int, typer.Option(min=1, help="How often throughput is measured; medians count.")] = 3,
    quick: Annotated[bool, typer.Option("--quick", help="100,000 rows, one round, 40 latency samples.")] = False,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Measure throughput and latency next to a bare COPY BINARY of the same rows, in one run.

    Ratios tell, rates depend on the machine: let nothing else run. Every count is checked; if one is not exact, the
    exit code is 1. A missed target is shown and is no error.

        bulkgrpc bench --json > figures.json
    """
    if context.invoked_subcommand is not None:
        return
    from bulkgrpc.bench import machine, readings, report, suite
    from bulkgrpc.bench.ground import ground

    load = Load.of(100_000, batch_rows, workers, 1, 40) if quick else Load.of(rows, batch_rows, workers, rounds, 200)
    with _errors(), console.progress(suite.steps(load) + 1, as_json) as tell:
        tell("starting Kafka, PostgreSQL and Valkey")
        with ground(data_dir, (readings.dataset(),)) as place:
            described = machine.describe(place.postgres)
            results = suite.run(place, load, tell)
    if as_json:
        typer.echo(json.dumps(report.throughput_document(described, results)))
        return
    out = Console()
    out.print(report.throughput_table(results))
    out.print(report.machine_line(described), highlight=False, soft_wrap=True)


@app.command("memory")
def bench_memory(
    gigabytes: Annotated[float, typer.Option(min=0.01, help="What all streams send together, in GB.")] = 4.0,
    streams: Annotated[int, typer.Option(min=1, max=200, help="Streams at once, each a job of its own.")] = 200,
    batch_kilobytes: Annotated[int, typer.Option(min=2, max=900, help="Size of a batch, in KB.")] = 250,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Measure what server and workers hold in memory while many streams send gigabytes at once.

    Needs about three times the gigabytes on disk: rows, their write-ahead log, and what Kafka holds for the workers.

        bulkgrpc bench memory --gigabytes 0.2
    """
    from bulkgrpc.bench import machine, memory, report, trades
    from bulkgrpc.bench.ground import ground

    load = MemoryLoad(round(gigabytes * 1e9), streams, batch_kilobytes * 1000)
    with _errors(), console.progress(2, as_json) as tell:
        tell("starting Kafka, PostgreSQL and Valkey")
        dataset = trades.dataset()
        with ground(data_dir, (dataset,)) as place:
            described = machine.describe(place.postgres)
            tell(f"{streams} streams send {gigabytes:g} GB")
            results = memory.measure(place, dataset, load)
    if as_json:
        typer.echo(json.dumps(report.memory_document(described, results)))
        return
    out = Console()
    out.print(report.memory_table(results))
    out.print(report.machine_line(described), highlight=False, soft_wrap=True)


@app.command("policies")
def bench_policies(
    *,
    rows: Annotated[int, typer.Option(min=1, help="Rows of each measurement.")] = 800_000,
    batch_rows: Annotated[int, typer.Option(min=1, max=20_000, help="Rows in a batch.")] = 1000,
    workers: Annotated[int, typer.Option(min=1, max=16, help="Workers, and connections of the baselines.")] = 2,
    chunk_rows: Annotated[int, typer.Option(min=1, help="Rows of a transaction, of workers and by hand.")] = 40_000,
    rounds: Annotated[int, typer.Option(min=1, help="How often each is measured; medians count.")] = 3,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Measure conflict policies, validation, refused rows and wide messages, each next to what it costs without us.

    Workers drain a full topic of each; beside them, of the same rows in chunks of the same size over as many
    connections: a bare COPY BINARY, and staging with INSERT … ON CONFLICT as one would write it by hand. Every count is
    checked. A missed target is shown and is no error.

        bulkgrpc bench policies --rows 100000 --rounds 1
    """
    from bulkgrpc.bench import contest, machine, policies, report
    from bulkgrpc.bench.ground import ground

    load = replace(Load.of(rows, batch_rows, workers, rounds, 0), chunk_rows=chunk_rows)
    contestants = contest.contestants()
    datasets = {contestant.dataset.name: contestant.dataset for contestant in contestants}
    with _errors(), console.progress(policies.steps(contestants, load) + 1, as_json) as tell:
        tell("starting Kafka, PostgreSQL and Valkey")
        with ground(data_dir, tuple(datasets.values())) as place:
            described = machine.describe(place.postgres)
            results = policies.run(place, contestants, load, tell)
    if as_json:
        typer.echo(json.dumps(report.contest_document(described, results)))
        return
    out = Console()
    out.print(report.contest_table(results))
    out.print(report.machine_line(described), highlight=False, soft_wrap=True)


@contextmanager
def _errors() -> Iterator[None]:
    """Turn a failure into one line on stderr and exit code 1."""
    import psycopg

    try:
        yield
    except (BenchFailed, StackError, OSError, psycopg.Error) as error:
        typer.echo(f"error: {str(error).strip()}", err=True)
        raise typer.Exit(1) from error
