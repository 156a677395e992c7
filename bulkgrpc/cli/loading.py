"""Submits one file as one job, shows how it comes on, and waits for what becomes of it."""

from __future__ import annotations

import asyncio
import hashlib
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from rich.progress import BarColumn, DownloadColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Display

from bulkgrpc.cli.connecting import Caller
from bulkgrpc.cli.console import human
from bulkgrpc.cli.files import FileOptions, FileProblem, open_batches
from bulkgrpc.client import AsyncBulkClient, Job, JobOptions, Progress


@dataclass(frozen=True, slots=True)
class Load:
    """What to submit.

    dataset: "" for that of the job `retry_of`. key: the job's idempotency key. wait_s: how long to wait for its end, 0
    not at all. retry_of: name of the job whose mended rejections these are, "" for none.
    """

    path: Path
    dataset: str
    options: FileOptions
    key: str = field(default_factory=lambda: uuid.uuid4().hex)
    labels: Mapping[str, str] = field(default_factory=dict)
    wait_s: float = 300.0
    job_options: JobOptions = field(default_factory=JobOptions)
    retry_of: str = ""


@dataclass(frozen=True, slots=True)
class Loaded:
    """What became of a load. rows, size_bytes: of the file. seconds: from the first byte to the end of the wait."""

    load: Load
    job: Job
    replayed: bool
    rows: int
    size_bytes: int
    seconds: float


def retry_key(job: str, file: Path) -> str:
    """Return the idempotency key of a job's mended rejections: the same file for the same job is one submission.

    Raises FileProblem if the file cannot be read.
    """
    try:
        with file.open("rb") as content:
            digest = hashlib.file_digest(content, "sha256")
    except OSError as error:
        raise FileProblem(f"{file} cannot be read: {error.strerror}") from error
    digest.update(b"\0" + job.encode())
    return f"retry-{digest.hexdigest()[:40]}"


class LoadBrokeOff(FileProblem):
    """A load stopped in the middle of its file; what was accepted before stays, and the job stays open."""

    def __init__(self, problem: FileProblem, accepted_rows: int, key: str) -> None:
        super().__init__(
            f"{problem}; {accepted_rows:,} rows before it were accepted: mend the file and go on with --key {key}"
            if accepted_rows
            else f"{problem}; nothing was submitted"
        )


class LoadView:
    """One line for each load, on stderr: bytes of the file, rows accepted, rows a second.

    Mute if not `shown`, and where nobody watches: not on a terminal.
    """

    def __init__(self, *, shown: bool) -> None:
        screen = human()
        self._display = Display(
            TextColumn("{task.description:<11}"),
            BarColumn(10),
            DownloadColumn(),
            TextColumn("{task.fields[rows]:>7,} rows {task.fields[rate]:>7,.0f}/s"),
            TextColumn("{task.fields[state]}"),
            TimeElapsedColumn(),
            console=screen,
            disable=not (shown and screen.is_terminal),
        )

    def __enter__(self) -> LoadView:
        self._display.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._display.stop()

    def begin(self, name: str, size_bytes: int) -> TaskID:
        """Add a line."""
        return self._display.add_task(name, total=size_bytes, rows=0, rate=0.0, state="sending")

    def sending(self, line: TaskID, read_bytes: int, rows: int, seconds: float) -> None:
        """Show how much was read and accepted."""
        self._display.update(line, completed=read_bytes, rows=rows, rate=rows / max(seconds, 1e-3))

    def writing(self, line: TaskID, job: Job, seconds: float) -> None:
        """Show what the workers have done."""
        applied = job.counts.written + job.counts.duplicate + job.counts.rejected + job.counts.expired
        self._display.update(line, rows=applied, rate=applied / max(seconds, 1e-3), state=job.state.name.lower())
        if job.ended:
            self._display.stop_task(line)


async def load_file(client: AsyncBulkClient, load: Load, view: LoadView) -> Loaded:
    """Submit a file and wait for its job.

    Raises FileProblem for what is wrong with the file, BulkError for everything else; the job then stays open.
    """
    name = load.dataset or (await client.get_job(load.retry_of)).dataset
    dataset = await client.get_dataset(name)
    file = await asyncio.to_thread(open_batches, load.path, dataset, load.options)
    begun_s = time.monotonic()
    line = view.begin(load.path.name, file.size_bytes)
    accepted_rows = 0

    def on_progress(progress: Progress) -> None:
        nonlocal accepted_rows
        accepted_rows = progress.acknowledged_records
        view.sending(line, file.read_bytes, accepted_rows, time.monotonic() - begun_s)

    try:
        handle = await client.submit(
            dataset,
            file,
            idempotency_key=load.key,
            labels=load.labels,
            options=load.job_options,
            on_progress=on_progress,
        )
    except FileProblem as problem:
        raise LoadBrokeOff(problem, accepted_rows, load.key) from problem
    job = handle.job or await handle.get()
    view.sending(line, file.size_bytes, job.counts.accepted, time.monotonic() - begun_s)
    if load.wait_s:
        job = await handle.wait(
            deadline_s=load.wait_s, on_progress=lambda job: view.writing(line, job, time.monotonic() - begun_s)
        )
    return Loaded(load, job, handle.replayed, file.rows, file.size_bytes, time.monotonic() - begun_s)


def run_load(caller: Caller, load: Load, *, shown: bool) -> Loaded:
    """Run `load_file` with a client of its own."""

    async def run() -> Loaded:
        async with caller.async_client() as client:
            with LoadView(shown=shown) as view:
                return await load_file(client, load, view)

    return asyncio.run(run())
