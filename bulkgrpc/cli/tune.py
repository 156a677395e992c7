"""The command `tune`: measures which chunk size suits a table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import typer
from rich.bar import Bar
from rich.table import Table

from bulkgrpc.bench.chunk_size import GAIN_MIN, ChunkTimes, recommended
from bulkgrpc.cli import console
from bulkgrpc.settings import CHUNK_COMMIT_MS, StackSettings
from bulkgrpc.settings import load as load_settings

SIZES = "500,1000,2000,5000,10000,20000,50000"
_BAR_COLUMNS = 18
_CHUNKS_MIN = 2
_ROWS_MIN = 20_000
"""Rows written for each size in a round, so that small chunks are many and their median is stable."""


def tune(
    dataset: Annotated[str, typer.Argument(help="The dataset's name.", show_default=False)],
    *,
    sizes: Annotated[str, typer.Option(help="Chunk sizes to measure, in rows, separated by commas.")] = SIZES,
    rounds: Annotated[int, typer.Option(min=1, max=100, help="Rounds. Figures are medians.")] = 3,
    commit_ms: Annotated[
        int, typer.Option(envvar="BULKGRPC_CHUNK_COMMIT_MS", min=1, help="Maximum time of a chunk in ms.")
    ] = CHUNK_COMMIT_MS,
    postgres: Annotated[
        str, typer.Option(envvar="BULKGRPC_POSTGRES", help="libpq connection string of PostgreSQL.", show_default=False)
    ] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")] = False,
) -> None:
    """Measure which chunk size suits your table on your PostgreSQL server.

    A chunk is what a worker writes in one transaction. Larger chunks are faster up to a point, and their rows become
    visible later. The best size depends on the table's columns, its indexes and the disk. Workers find it by
    themselves, between BULKGRPC_CHUNK_ROWS_MIN and BULKGRPC_CHUNK_ROWS_MAX. Use this command to know it in advance, or
    to measure the cost of an index.

    For example:

        bulkgrpc tune weather

        bulkgrpc tune weather --sizes 1000,10000,100000 --json

    The command writes into an empty copy of the table in its own schema, which it drops at the end. The copy has the
    same columns, constraints and indexes, but no foreign keys or triggers. The command only reads your table: it
    samples rows from it, or generates rows if it is empty. On a table much larger than memory, a row costs more than
    measured here. The PostgreSQL server is busy for about 15 seconds.
    """
    with console.failures():
        wanted = _sizes(sizes)
        measured, sampled = _measure(
            postgres or load_settings(StackSettings).postgres, dataset, wanted, rounds, quiet=as_json
        )
    best = recommended(measured, commit_ms / 1000)
    if as_json:
        console.print_json(_document(dataset, measured, best, sampled))
        return
    source = f"{sampled:,} rows sampled from the table" if sampled else "rows generated from the column types"
    console.print_table(_bars(measured, best, f"Chunks of {dataset}: {source}"))
    typer.echo(f"Larger chunks are less than {GAIN_MIN:.0%} faster, or take more than {commit_ms} ms.")
    typer.echo(f"Recommended: BULKGRPC_CHUNK_ROWS_MAX={best.chunk_rows}")


def _sizes(text: str) -> list[int]:
    try:
        found = sorted({int(part) for part in text.split(",")})
    except ValueError:
        found = []
    if not found or found[0] < 1 or found[-1] > 1_000_000:
        raise console.CommandFailed(
            f"--sizes {text!r}: use numbers from 1 to 1000000 separated by commas, for example {SIZES}"
        )
    return found


def _measure(
    postgres: str, dataset: str, sizes: Sequence[int], rounds: int, *, quiet: bool
) -> tuple[list[ChunkTimes], int]:
    """Measure all sizes in each round; return the times, and how many rows come from the table."""
    # Loads Arrow, which `--help` does not need.
    from bulkgrpc.postgres.scratch import ScratchFailed, scratch  # noqa: PLC0415

    counts = {rows: max(_CHUNKS_MIN, -(-min(_ROWS_MIN, _CHUNKS_MIN * sizes[-1]) // rows)) for rows in sizes}
    times: dict[int, list[float]] = {rows: [] for rows in sizes}
    with console.progress(rounds * len(sizes) + 1, quiet) as start_step:
        start_step("copying the table's definition")
        try:
            with scratch(postgres, dataset, max(rows * count for rows, count in counts.items())) as copy:
                for number in range(1, rounds + 1):
                    for rows, count in counts.items():
                        start_step(f"round {number} of {rounds}: chunks of {rows:,}")
                        times[rows] += copy.write_chunks(rows, count)
                return [ChunkTimes(rows, tuple(times_s)) for rows, times_s in times.items()], copy.sampled
        except ScratchFailed as error:
            raise console.CommandFailed(str(error)) from error


def _bars(measured: Sequence[ChunkTimes], best: ChunkTimes, title: str) -> Table:
    """Return rates and times as bars side by side."""
    table = Table("rows", "rows/s", "", "ms/chunk", "", "", title=title, title_justify="left", box=None)
    for column in (0, 1, 3):
        table.columns[column].justify = "right"
    rate_max, time_max_s = max(size.rows_per_s for size in measured), max(size.median_s for size in measured)
    for size in measured:
        table.add_row(
            f"{size.chunk_rows:,}",
            f"{size.rows_per_s:,.0f}",
            Bar(rate_max, 0, size.rows_per_s, width=_BAR_COLUMNS),
            f"{size.median_s * 1000:.1f}",
            Bar(time_max_s, 0, size.median_s, width=_BAR_COLUMNS),
            "recommended" if size is best else "",
        )
    return table


def _document(dataset: str, measured: Sequence[ChunkTimes], best: ChunkTimes, sampled: int) -> dict[str, object]:
    return {
        "dataset": dataset,
        "sampled_rows": sampled,
        "sizes": [
            {
                "chunk_rows": size.chunk_rows,
                "rows_per_s": round(size.rows_per_s),
                "chunk_ms_p50": round(size.median_s * 1000, 3),
                "chunk_ms_max": round(max(size.times_s) * 1000, 3),
                "chunks": len(size.times_s),
            }
            for size in measured
        ],
        "chunk_rows_recommended": best.chunk_rows,
    }
