"""The command `tune`: how large the transactions of one's own table should be."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated

import typer
from rich.bar import Bar
from rich.table import Table

from bulkgrpc.bench.curve import GAIN_MIN, Point, worth
from bulkgrpc.bench.model import BenchFailed
from bulkgrpc.cli import console
from bulkgrpc.settings import StackSettings, WorkerSettings
from bulkgrpc.settings import load as load_settings

SIZES = "500,1000,2000,5000,10000,20000,50000"
_BAR_COLUMNS = 24
_CHUNKS_MIN = 2
_ROWS_MIN = 20_000
"""Of a size in a round: small chunks are many, so that their median says something."""


def tune(
    dataset: Annotated[str, typer.Argument(help="The dataset's name.", show_default=False)],
    *,
    sizes: Annotated[str, typer.Option(help="Rows of a chunk to try, with commas.")] = SIZES,
    rounds: Annotated[int, typer.Option(min=1, max=100, help="How often each size is tried; medians count.")] = 3,
    commit_ms: Annotated[
        int, typer.Option(envvar="BULKGRPC_CHUNK_COMMIT_MS", min=1, help="Milliseconds that a chunk may take.")
    ] = WorkerSettings.model_fields["chunk_commit_ms"].default,
    postgres: Annotated[
        str, typer.Option(envvar="BULKGRPC_POSTGRES", help="PostgreSQL connection string of libpq.", show_default=False)
    ] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")] = False,
) -> None:
    """Measure how many rows a transaction on your own table should have, on your own server.

    A chunk is what a worker writes in one transaction. Larger ones are faster, up to a point, and all of their rows are
    seen later. Where that point is depends on the table's width, its indexes and the disk's commits. Workers find it by
    themselves, within BULKGRPC_CHUNK_ROWS_MIN and _MAX; this shows it before the load comes, and what an index costs.

        bulkgrpc tune weather
        bulkgrpc tune weather --sizes 1000,10000,100000 --json

    It writes into a copy of the table in a schema of its own, which it drops at the end: same columns, constraints and
    indexes, without foreign keys and triggers. The rows are sampled from the table, which is only read; if it has none,
    they are made from its columns' types. The copy starts empty: on a table much larger than memory a row costs more.
    The server is busy meanwhile, for some fifteen seconds.
    """
    with console.failures():
        wanted = _sizes(sizes)
        try:
            points, sampled = _measure(
                postgres or load_settings(StackSettings).postgres, dataset, wanted, rounds, quiet=as_json
            )
        except BenchFailed as failure:
            raise console.CommandFailed(str(failure)) from failure
    best = worth(points, commit_ms / 1000)
    if as_json:
        console.print_json(_document(dataset, points, best, sampled))
        return
    rows = f"{sampled:,} rows sampled from it" if sampled else "rows made from its columns' types"
    console.print_table(_plot(points, best, f"chunks of {dataset}, of {rows}"))
    typer.echo(f"Larger chunks take longer, and are less than {GAIN_MIN:.0%} faster or take more than {commit_ms} ms.")
    typer.echo(f"The most that is worth it: BULKGRPC_CHUNK_ROWS_MAX={best.chunk_rows}")


def _sizes(text: str) -> list[int]:
    try:
        found = sorted({int(part) for part in text.split(",")})
    except ValueError:
        found = []
    if not found or found[0] < 1 or found[-1] > 1_000_000:
        raise console.CommandFailed(f"--sizes {text!r}: give numbers from 1 to 1000000 with commas, as {SIZES}")
    return found


def _measure(postgres: str, dataset: str, sizes: Sequence[int], rounds: int, *, quiet: bool) -> tuple[list[Point], int]:
    """Try all sizes in each round; return what they took, and how many rows were the table's own."""
    # Loads Arrow, which `--help` does without.
    from bulkgrpc.bench.scratch import scratch  # noqa: PLC0415

    counts = {rows: max(_CHUNKS_MIN, -(-min(_ROWS_MIN, _CHUNKS_MIN * sizes[-1]) // rows)) for rows in sizes}
    times: dict[int, list[float]] = {rows: [] for rows in sizes}
    with console.progress(rounds * len(sizes) + 1, quiet) as tell:
        tell("copying the table's shape")
        with scratch(postgres, dataset, max(rows * count for rows, count in counts.items())) as copy:
            for number in range(1, rounds + 1):
                for rows, count in counts.items():
                    tell(f"round {number} of {rounds}: chunks of {rows:,}")
                    times[rows] += copy.written_s(rows, count)
            return [Point(rows, tuple(taken)) for rows, taken in times.items()], copy.sampled


def _plot(points: Sequence[Point], best: Point, title: str) -> Table:
    """Return rates and times as bars side by side."""
    table = Table("rows", "rows/s", "", "ms a chunk", "", "", title=title, title_justify="left", box=None)
    for column in (0, 1, 3):
        table.columns[column].justify = "right"
    rate, time_s = (_bar(max(map(of, points))) for of in (_rate, _time))
    for point in points:
        table.add_row(
            f"{point.chunk_rows:,}",
            f"{point.rows_per_s:,.0f}",
            rate(point.rows_per_s),
            f"{point.median_s * 1000:.1f}",
            time_s(point.median_s),
            "◀ worth it" if point is best else "",
        )
    return table


def _rate(point: Point) -> float:
    return point.rows_per_s


def _time(point: Point) -> float:
    return point.median_s


def _bar(most: float) -> Callable[[float], Bar]:
    return lambda value: Bar(most, 0, value, width=_BAR_COLUMNS)


def _document(dataset: str, points: Sequence[Point], best: Point, sampled: int) -> dict[str, object]:
    return {
        "dataset": dataset,
        "sampled_rows": sampled,
        "sizes": [
            {
                "chunk_rows": point.chunk_rows,
                "rows_per_s": round(point.rows_per_s),
                "chunk_ms_p50": round(point.median_s * 1000, 3),
                "chunk_ms_max": round(max(point.chunk_s) * 1000, 3),
                "chunks": len(point.chunk_s),
            }
            for point in points
        ],
        "chunk_rows_worth": best.chunk_rows,
    }
