"""The commands `bench`, `bench policies`, `bench memory` and `bench noisy`."""

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

# The measurements are imported where they are used: they load Arrow and gRPC, which `--help` does not need.
# ruff: noqa: PLC0415

_STARTING = "starting Kafka, PostgreSQL and Valkey"

app = typer.Typer(add_completion=False, rich_markup_mode="markdown")

DataDir = Annotated[
    Path | None,
    typer.Option(
        help="Use the stack in this directory and keep it. Default: a new stack below /var/tmp, deleted at the end."
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]


@app.callback(invoke_without_command=True)
def bench(  # noqa: PLR0917 — options, given by name
    context: typer.Context,
    rows: Annotated[int, typer.Option(min=1, help="Rows of each throughput measurement.")] = 1_000_000,
    batch_rows: Annotated[int, typer.Option(min=1, max=20_000, help="Rows per batch.")] = 1000,
    workers: Annotated[int, typer.Option(min=1, max=16, help="Workers, and connections of the bare COPY.")] = 2,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds of throughput measurements. Figures are medians.")] = 3,
    quick: Annotated[
        bool, typer.Option("--quick", help="Measure less: 100,000 rows, one round, 40 latency samples.")
    ] = False,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Measure throughput, latency and CPU time, next to a bare COPY BINARY of the same rows in the same run.

    Compare ratios: rates depend on the machine. Run nothing else on it meanwhile. The measurements take about two
    minutes. CPU time includes PostgreSQL and excludes Kafka.

    For example:

        bulkgrpc bench

        bulkgrpc bench --rows 200000 --rounds 1 --json > figures.json

    Exit codes: 0 measured, also if a target is missed; 1 a measurement failed, or a count was not exact.
    """
    if context.invoked_subcommand is not None:
        return
    from bulkgrpc.bench import environment, machine, readings, report, suite

    load = Load.of(100_000, batch_rows, workers, 1, 40) if quick else Load.of(rows, batch_rows, workers, rounds, 200)
    with _errors(), console.progress(suite.steps(load) + 1, as_json) as start_step:
        start_step(_STARTING)
        with environment.prepared(data_dir, (readings.dataset(),)) as prepared:
            described = machine.describe(prepared.postgres)
            results = suite.run(prepared, load, start_step)
    if as_json:
        typer.echo(json.dumps(report.throughput_document(described, results)))
        return
    out = Console()
    out.print(report.throughput_table(results))
    out.print(report.latency_table(results))
    out.print(report.machine_line(described), highlight=False, soft_wrap=True)


@app.command("memory")
def bench_memory(
    gigabytes: Annotated[float, typer.Option(min=0.01, help="GB that all streams send together.")] = 4.0,
    streams: Annotated[int, typer.Option(min=1, max=200, help="Concurrent streams. Each is one job.")] = 200,
    batch_kilobytes: Annotated[int, typer.Option(min=2, max=900, help="Size of a batch in KB.")] = 250,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Measure the memory of server and workers while many streams send gigabytes at the same time.

    The measurement needs about three times the gigabytes on disk: for the rows, their write-ahead log, and what Kafka
    stores for the workers.

    For example:

        bulkgrpc bench memory --gigabytes 0.2

    Exit codes: 0 measured, also if a target is missed; 1 the measurement failed, or a count was not exact.
    """
    from bulkgrpc.bench import environment, machine, memory, report, trades

    load = MemoryLoad(round(gigabytes * 1e9), streams, batch_kilobytes * 1000)
    with _errors(), console.progress(2, as_json) as start_step:
        start_step(_STARTING)
        dataset = trades.dataset()
        with environment.prepared(data_dir, (dataset,)) as prepared:
            described = machine.describe(prepared.postgres)
            start_step(f"{streams} streams send {gigabytes:g} GB")
            results = memory.measure(prepared, dataset, load)
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
    batch_rows: Annotated[int, typer.Option(min=1, max=20_000, help="Rows per batch.")] = 1000,
    workers: Annotated[int, typer.Option(min=1, max=16, help="Workers, and connections of the baselines.")] = 2,
    chunk_rows: Annotated[int, typer.Option(min=1, help="Rows of a transaction, also of the baselines.")] = 40_000,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds. Figures are medians.")] = 3,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Measure conflict policies, deduplication, validation, rejected rows and wide messages, each next to a baseline.

    Workers drain a full topic for each case. The baselines write the same rows in chunks of the same size over as many
    connections: a bare COPY BINARY, or COPY into a temporary table and INSERT … ON CONFLICT. The measurements take
    several minutes.

    For example:

        bulkgrpc bench policies --rows 100000 --rounds 1

    Exit codes: 0 measured, also if a target is missed; 1 a measurement failed, or a count was not exact.
    """
    from bulkgrpc.bench import environment, machine, policies, policy_cases, report

    load = replace(Load.of(rows, batch_rows, workers, rounds, 0), chunk_rows=chunk_rows)
    cases = policy_cases.cases()
    datasets = {case.dataset.name: case.dataset for case in cases}
    with _errors(), console.progress(policies.steps(cases, load) + 1, as_json) as start_step:
        start_step(_STARTING)
        with environment.prepared(data_dir, tuple(datasets.values())) as prepared:
            described = machine.describe(prepared.postgres)
            results = policies.run(prepared, cases, load, start_step)
    if as_json:
        typer.echo(json.dumps(report.policies_document(described, results)))
        return
    out = Console()
    out.print(report.policies_table(results))
    out.print(report.machine_line(described), highlight=False, soft_wrap=True)


@app.command("noisy")
def bench_noisy(
    seconds: Annotated[
        float, typer.Option(min=1, help="Seconds for which the quiet tenant submits, in each case.")
    ] = 20.0,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Measure what a noisy tenant does to a quiet one: the time until small jobs are visible, beside large ones.

    A quiet tenant submits a small job every 100 ms, without waiting for the ones before. The cases: it is alone; a
    noisy tenant always has more than its worker can write, in the same partition, in another partition of the same
    worker, or in one of the other worker; and unrelated processes take as much CPU time. Compare the ratios to the
    last. The measurement takes about three minutes.

    For example:

        bulkgrpc bench noisy --seconds 5

    Exit codes: 0 measured; 1 the measurement failed, or a count was not exact.
    """
    from bulkgrpc.bench import environment, machine, noisy, readings, report
    from bulkgrpc.bench.noisy_cases import NoisyLoad

    with _errors(), console.progress(noisy.steps() + 1, as_json) as start_step:
        start_step(_STARTING)
        with environment.prepared(data_dir, (readings.dataset(),)) as prepared:
            described = machine.describe(prepared.postgres)
            results = noisy.run(prepared, NoisyLoad(seconds), start_step)
    if as_json:
        typer.echo(json.dumps(report.noisy_document(described, results)))
        return
    out = Console()
    out.print(report.noisy_table(results))
    out.print(report.machine_line(described), highlight=False, soft_wrap=True)


@contextmanager
def _errors() -> Iterator[None]:
    """Turn a failure into one line on stderr and exit code 1."""
    from bulkgrpc.kafka.connection import KafkaUnavailable
    from bulkgrpc.postgres.errors import PostgresError

    try:
        yield
    except (BenchFailed, StackError, OSError, PostgresError, KafkaUnavailable) as error:
        typer.echo(f"error: {str(error).strip()}", err=True)
        raise typer.Exit(1) from error
