"""Submits one file as one job, shows its progress, and waits for the result."""

from __future__ import annotations

import asyncio
import hashlib
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Display
from rich.table import Column

from bulkgrpc.cli.connection_options import ConnectionOptions
from bulkgrpc.cli.console import stderr_console
from bulkgrpc.cli.files import FileBatches, FileError, FileOptions, open_batches
from bulkgrpc.cli.files.file_sets import FileSet
from bulkgrpc.client import AsyncBulkClient, Dataset, Job, JobOptions, Progress

_NAME_CHARS_MAX = 18


@dataclass(frozen=True, slots=True)
class FileLoad:
    """A file to submit.

    dataset: "" for the dataset of the job `retry_of`. key: the job's idempotency key. wait_s: how long to wait for the
    job's end; 0 does not wait. retry_of: name of the job whose corrected rejected records these are; "" for none.
    more: further files of the same job.
    """

    path: Path
    dataset: str
    options: FileOptions
    key: str = field(default_factory=lambda: uuid.uuid4().hex)
    labels: Mapping[str, str] = field(default_factory=dict)
    wait_s: float = 300.0
    job_options: JobOptions = field(default_factory=JobOptions)
    retry_of: str = ""
    more: tuple[tuple[Path, FileOptions], ...] = ()

    @property
    def files(self) -> list[tuple[Path, FileOptions]]:
        """All files, in the order in which their records are submitted."""
        return [(self.path, self.options), *self.more]


@dataclass(frozen=True, slots=True)
class LoadResult:
    """The result of a load. rows, size_bytes: of the file. seconds: from the first byte to the end of the wait."""

    load: FileLoad
    job: Job
    replayed: bool
    rows: int
    size_bytes: int
    seconds: float


def retry_key(job: str, file: Path) -> str:
    """Return the idempotency key of a job's corrected records: the same file for the same job is one submission.

    Raises FileError if the file cannot be read.
    """
    try:
        with file.open("rb") as content:
            digest = hashlib.file_digest(content, "sha256")
    except OSError as error:
        raise FileError(f"{file} cannot be read: {error.strerror}") from error
    digest.update(b"\0" + job.encode())
    return f"retry-{digest.hexdigest()[:40]}"


class LoadInterrupted(FileError):
    """An invalid value stopped a load within its file. Rows accepted before it stay, and the job stays open."""

    def __init__(self, error: FileError, accepted_rows: int, key: str) -> None:
        super().__init__(
            f"{error}; {accepted_rows:,} rows before it were accepted: correct the file and resume with --key {key}"
            if accepted_rows
            else f"{error}; nothing was submitted"
        )


class LoadDisplay:
    """One progress line for each load, on stderr: bytes read, rows accepted or applied, rows per second.

    Shows nothing unless `shown`, and nothing if the console is not a terminal. console: default is stderr.
    """

    def __init__(self, *, shown: bool, console: Console | None = None) -> None:
        console = console or stderr_console()
        self._display = Display(
            TextColumn("{task.description}", table_column=Column(no_wrap=True)),
            BarColumn(5),
            DownloadColumn(),
            TextColumn("{task.fields[rows]:,} rows", table_column=Column(no_wrap=True, justify="right")),
            TextColumn("{task.fields[rate]:,.0f}/s", table_column=Column(no_wrap=True, justify="right")),
            TextColumn("{task.fields[phase]}"),
            TimeElapsedColumn(),
            console=console,
            disable=not (shown and console.is_terminal),
        )

    def __enter__(self) -> LoadDisplay:
        self._display.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._display.stop()

    def begin(self, name: str, size_bytes: int) -> TaskID:
        """Add a line and return its ID. The middle of a long file name is left out."""
        if len(name) > _NAME_CHARS_MAX:
            name = f"{name[: _NAME_CHARS_MAX - 9]}…{name[-8:]}"
        return self._display.add_task(name, total=size_bytes, rows=0, rate=0.0, phase="sending")

    def sending(self, line: TaskID, read_bytes: int, rows: int, seconds: float) -> None:
        """Show how much of the file was read and accepted."""
        self._display.update(line, completed=read_bytes, rows=rows, rate=rows / max(seconds, 1e-3))

    def writing(self, line: TaskID, job: Job, seconds: float) -> None:
        """Show how many records the workers have applied."""
        counts = job.counts
        applied = counts.written + counts.duplicate + counts.rejected + counts.expired + counts.skipped
        if job.apply_progress is not None:
            applied += job.apply_progress.applied_rows
        phase = "ended" if job.ended else "writing" if job.block is None else "blocked"
        self._display.update(line, rows=applied, rate=applied / max(seconds, 1e-3), phase=phase)
        if job.ended:
            self._display.stop_task(line)


def _opened(load: FileLoad, dataset: Dataset) -> FileBatches | FileSet:
    return FileSet(load.files, dataset) if load.more else open_batches(load.path, dataset, load.options)


async def load_file(client: AsyncBulkClient, load: FileLoad, display: LoadDisplay) -> LoadResult:
    """Submit a file and wait for its job.

    Raises FileError for an error in the file, BulkError for everything else; the job then stays open.
    """
    name = load.dataset or (await client.get_job(load.retry_of)).dataset
    dataset = await client.get_dataset(name)
    file = await asyncio.to_thread(_opened, load, dataset)
    start_s = time.monotonic()
    line = display.begin(load.path.name, file.size_bytes)
    accepted_rows = 0

    def on_progress(progress: Progress) -> None:
        nonlocal accepted_rows
        accepted_rows = progress.acknowledged_records
        display.sending(line, file.read_bytes, accepted_rows, time.monotonic() - start_s)

    try:
        handle = await client.submit(
            dataset,
            file,
            idempotency_key=load.key,
            labels=load.labels,
            options=load.job_options,
            on_progress=on_progress,
        )
    except FileError as error:
        raise LoadInterrupted(error, accepted_rows, load.key) from error
    job = handle.job or await handle.get()
    display.sending(line, file.size_bytes, job.counts.accepted, time.monotonic() - start_s)
    if load.wait_s:
        job = await handle.wait(
            deadline_s=load.wait_s, on_progress=lambda job: display.writing(line, job, time.monotonic() - start_s)
        )
    return LoadResult(load, job, handle.replayed, file.rows, file.size_bytes, time.monotonic() - start_s)


def run_load(options: ConnectionOptions, load: FileLoad, *, shown: bool) -> LoadResult:
    """Run `load_file` with its own client and display."""

    async def run() -> LoadResult:
        async with options.async_client() as client:
            with LoadDisplay(shown=shown) as display:
                return await load_file(client, load, display)

    return asyncio.run(run())


def run_check(options: ConnectionOptions, load: FileLoad) -> int:
    """Convert a whole file and submit nothing. Returns its rows. Raises FileError for the first error in the file."""

    async def run() -> int:
        async with options.async_client() as client:
            name = load.dataset or (await client.get_job(load.retry_of)).dataset
            dataset = await client.get_dataset(name)
        file = _opened(load, dataset)
        return sum(batch.records for batch in file)

    return asyncio.run(run())
