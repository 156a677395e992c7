"""Submits files as one job and waits for the result."""

from __future__ import annotations

import asyncio
import hashlib
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from bulkgrpc.cli.bad_row import BadRow
from bulkgrpc.cli.connection_options import ConnectionOptions
from bulkgrpc.cli.files import FileBatches, FileError, FileOptions, open_batches
from bulkgrpc.cli.files.file_sets import FileSet
from bulkgrpc.cli.load_display import LoadDisplay
from bulkgrpc.client import AsyncBulkClient, Dataset, Job, JobOptions, Progress


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


def retry_key(job: str, file: Path, options: FileOptions) -> str:
    """Return the key of a job's corrected records: the same file, read in the same way, for the same job is one job.

    Raises FileError if the file cannot be read.
    """
    try:
        with file.open("rb") as content:
            digest = hashlib.file_digest(content, "sha256")
    except OSError as error:
        raise FileError(f"{file} cannot be read: {error.strerror}") from error
    digest.update(b"\0" + job.encode() + repr(options).encode())
    return f"retry-{digest.hexdigest()[:40]}"


class LoadInterrupted(FileError):
    """An invalid value stopped a load within its file. Rows accepted before it stay, and the job stays open."""

    def __init__(self, error: FileError, accepted_rows: int, key: str) -> None:
        super().__init__(
            f"{error}; {accepted_rows:,} rows before it were accepted: correct the file and resume with --key {key}"
            if accepted_rows
            else f"{error}; nothing was submitted"
        )


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
        display.sending(line, file.read_bytes, accepted_rows, file.bad_rows, time.monotonic() - start_s)

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
    display.sending(line, file.size_bytes, job.counts.accepted, file.bad_rows, time.monotonic() - start_s)
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


@dataclass(frozen=True, slots=True)
class Check:
    """The result of a dry run. rows: of all files. bad_rows: those that cannot be records. bad: the first of these."""

    rows: int
    bad_rows: int
    bad: tuple[BadRow, ...]


def run_check(options: ConnectionOptions, load: FileLoad) -> Check:
    """Convert whole files and submit nothing. Raises FileError for an error that is not a bad row to reject."""

    async def run() -> Check:
        async with options.async_client() as client:
            name = load.dataset or (await client.get_job(load.retry_of)).dataset
            dataset = await client.get_dataset(name)
        file = _opened(load, dataset)
        for _ in file:
            pass
        return Check(file.rows, file.bad_rows, tuple(file.bad))

    return asyncio.run(run())
