"""Output of the commands: results on stdout, all else on stderr, an expected failure as one line and exit code 1."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import datetime

import typer
from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from bulkgrpc.client import BulkError, Dataset, Job, JobState
from bulkgrpc.datasets.binding import ExistingTable
from bulkgrpc.datasets.columns import InvalidDataset
from bulkgrpc.datasets.operations import Operation

EXIT_FAILURE = 1
EXIT_INTERRUPTED = 130
EXIT_BY_STATE = {
    JobState.PARTIALLY_SUCCEEDED: 3,
    JobState.FAILED: 4,
    JobState.CANCELLED: 5,
    JobState.EXPIRED: 5,
}
"""Exit codes of commands that wait for a job; every other state: 0."""

_FAILURES_OF_EXTRAS = (
    ("bulkgrpc.cli.files.errors", "FileError"),
    ("bulkgrpc.postgres.errors", "PostgresError"),
    ("bulkgrpc.stack.model", "StackError"),
)
"""Modules that only some installations can import, and their exceptions."""

COUNTS = ("accepted", "written", "duplicate", "rejected", "expired", "skipped")
PIPE_WIDTH = 200
"""Columns of a table that is not printed on a terminal."""


class CommandFailed(Exception):
    """A command cannot do what was asked. `str()` is one line: what happened, and what to do."""


@contextmanager
def failures() -> Iterator[None]:
    """Turn an expected failure into one line on stderr and exit code 1."""
    try:
        yield
    except _expected() as error:
        fail(str(error) or type(error).__name__)


def _expected() -> tuple[type[Exception], ...]:
    """Return the exceptions of expected failures. What was not imported cannot have failed."""
    loaded = [getattr(sys.modules[module], name) for module, name in _FAILURES_OF_EXTRAS if module in sys.modules]
    return (BulkError, CommandFailed, InvalidDataset, OSError, ValueError, *loaded)


def fail(message: str, code: int = EXIT_FAILURE) -> None:
    """Print the reason as one line on stderr and exit."""
    typer.echo(f"error: {' '.join(message.split())}", err=True)
    raise typer.Exit(code)


def stderr_console() -> Console:
    """Return the console for progress and remarks: stderr, so that stdout has only the result."""
    return Console(stderr=True, highlight=False)


@contextmanager
def progress(steps: int, quiet: bool) -> Iterator[Callable[[str], None]]:
    """Show on stderr which of `steps` steps is running. Yields a function to call with the name of each that starts."""
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(10), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=quiet) as display:
        task = display.add_task("", total=steps)
        started = 0

        def start_step(name: str) -> None:
            nonlocal started
            display.update(task, description=name, completed=started)
            started += 1

        yield start_step


def print_json(document: object) -> None:
    """Print one JSON value as one line on stdout."""
    typer.echo(json.dumps(document, default=_to_json))


def print_table(table: RenderableType) -> None:
    """Print a table, or several, on stdout."""
    _stdout_console().print(table)


def print_jobs(jobs: list[Job]) -> None:
    """Print jobs as a table on stdout."""
    console = _stdout_console()
    console.print(jobs_table(jobs, console))


def job_document(job: Job) -> dict[str, object]:
    """Return a job as `--json` prints it."""
    return {
        "name": job.name,
        "dataset": job.dataset,
        "dataset_version": job.dataset_version,
        "state": job.state.name,
        "counts": {name: getattr(job.counts, name) for name in COUNTS},
        "next_sequence": job.next_sequence,
        "idempotency_key": job.idempotency_key,
        "labels": job.labels,
        "create_time": job.create_time,
        "seal_time": job.seal_time,
        "end_time": job.end_time,
        "failure_reason": job.failure_reason,
        "options": asdict(job.options),
        "overdue_s": job.overdue_s,
        "block": None if job.block is None else asdict(job.block),
        "discard_reason": job.discard_reason,
        "late_batches": job.late_batches,
        "apply_progress": None if job.apply_progress is None else asdict(job.apply_progress),
    }


def dataset_document(dataset: Dataset) -> dict[str, object]:
    """Return a dataset as `--json` prints it."""
    return {
        "name": dataset.name,
        "version": dataset.version,
        "message_type": dataset.message_type,
        "key": list(dataset.key),
        "conflict_policy": dataset.conflict_policy,
        "dedupe_window_s": dataset.dedupe_window_s,
        "lanes": dataset.lanes,
        "time_to_live_s": dataset.time_to_live_s,
        "hash_partitions": dataset.hash_partitions,
        "time_partitions": _time_partitions(dataset),
        "operation": None if dataset.operation is None else _operation(dataset.operation),
        "provenance": None if dataset.provenance is None else asdict(dataset.provenance),
        "existing_table": None if dataset.existing is None else asdict(dataset.existing),
        "columns": [
            {"name": column.name, "field": column.field, "type": column.type, "nullable": column.nullable}
            for column in dataset.columns
        ],
    }


def tenancy(existing: ExistingTable) -> str:
    """Return what an existing table has of the tenant, as a part of a sentence."""
    if existing.only_tenant:
        return f"takes the records of tenant {existing.only_tenant} only"
    if not existing.tenant_column:
        return "the tenant is not stored"
    return f"the tenant is in {existing.tenant_column}{'' if existing.tenant_in_key else ', which is not in the key'}"


def _time_partitions(dataset: Dataset) -> dict[str, str] | None:
    found = dataset.time_partitions
    return None if found is None else {"column": found.column, "period": found.period.label}


def write_options(dataset: Dataset) -> str:
    """Return how a dataset's records are written, as one line."""
    options = [f"conflict policy: {dataset.conflict_policy}"]
    if dataset.existing is not None:
        options.append(f"bound to {dataset.existing.text}; {tenancy(dataset.existing)}")
    if dataset.dedupe_window_s:
        options.append(f"dedupe window: {dataset.dedupe_window_s:g} s")
    if dataset.lanes > 1:
        options.append(f"{dataset.lanes} lanes")
    if dataset.time_to_live_s:
        options.append(f"batches expire after {dataset.time_to_live_s:g} s")
    if dataset.hash_partitions:
        options.append(f"{dataset.hash_partitions} partitions by hash of the key")
    if dataset.time_partitions is not None:
        options.append(f"partitions by the {dataset.time_partitions.period.label} of {dataset.time_partitions.column}")
    if dataset.operation is not None:
        options.append(f"{dataset.operation.field} {dataset.operation.delete} deletes the row")
    if dataset.provenance is not None:
        options.append(f"rows say which job wrote them: {dataset.provenance}")
    return "; ".join(options)


def _operation(operation: Operation) -> dict[str, str]:
    return {"field": operation.field, "delete": operation.delete}


def jobs_table(jobs: list[Job], console: Console, *, with_ids: bool = True) -> Table:
    """Return jobs as a table that fits the console without cutting a word: one row each if the columns fit.

    Otherwise each job takes several lines. with_ids: whether to show the job IDs.
    """
    table = _jobs_in_columns(jobs, with_ids=with_ids)
    unlimited = console.options.update(width=1000)
    if console.measure(table, options=unlimited).minimum <= console.width:
        return table
    return _jobs_in_lines(jobs, with_ids=with_ids)


def _jobs_in_columns(jobs: list[Job], *, with_ids: bool) -> Table:
    counts = [
        name for name in COUNTS if name in ("accepted", "written") or any(getattr(job.counts, name) for job in jobs)
    ]
    table = Table(show_edge=False, pad_edge=False)
    for name in (*(["job"] if with_ids else []), "dataset", "state"):
        table.add_column(name, no_wrap=True)
    for name in (*counts, "seconds"):
        table.add_column(name, justify="right", no_wrap=True)
    with_remarks = any(_remarks(job) for job in jobs)
    if with_remarks:
        table.add_column("remarks", overflow="fold", min_width=30)
    for job in jobs:
        numbers = [f"{getattr(job.counts, name):,}" for name in counts]
        table.add_row(
            *([_id(job)] if with_ids else []),
            job.dataset,
            styled_state(job.state),
            *numbers,
            _seconds(job),
            *(["\n".join(_remarks(job))] if with_remarks else []),
        )
    return table


def _jobs_in_lines(jobs: list[Job], *, with_ids: bool) -> Table:
    table = Table(show_edge=False, pad_edge=False, show_lines=True)
    table.add_column("job", no_wrap=with_ids, overflow="fold")
    table.add_column("state, counts", overflow="fold")
    for job in jobs:
        numbers = [
            f"{getattr(job.counts, name):,} {name}"
            for name in COUNTS
            if name == "accepted" or getattr(job.counts, name)
        ]
        seconds = [f"{_seconds(job)} s"] if _seconds(job) else []
        lines = [
            styled_state(job.state),
            ", ".join([*numbers, *seconds]),
            *_remarks(job),
        ]
        table.add_row(f"{_id(job)}\n{job.dataset}" if with_ids else job.dataset, "\n".join(lines))
    return table


def _remarks(job: Job) -> list[str]:
    """Return what a list says of a job besides its state and counts: why it is blocked, failed, or lost records."""
    return [text for text in (job.block and str(job.block), job.failure_reason, job.discard_reason) if text]


def job_table(job: Job) -> Table:
    """Return one job as a table of names and values."""
    table = Table(show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    table.add_row("job", job.name)
    table.add_row("dataset", f"{job.dataset} (version {job.dataset_version})")
    table.add_row("state", styled_state(job.state))
    if job.block is not None:
        table.add_row("blocked", str(job.block))
    if job.apply_progress is not None:
        table.add_row("applied", str(job.apply_progress))
    if job.failure_reason:
        table.add_row("failure reason", job.failure_reason)
    if job.discard_reason:
        table.add_row("discard reason", job.discard_reason)
    if job.late_batches:
        table.add_row("late batches", f"{job.late_batches:,} (not counted)")
    for name in COUNTS:
        table.add_row(name, f"{getattr(job.counts, name):,}")
    for name, option in asdict(job.options).items():
        if option:
            table.add_row(name, f"{option}")
    table.add_row("key", job.idempotency_key)
    for name, value in job.labels.items():
        table.add_row(f"label {name}", value)
    for name, moment in (("opened", job.create_time), ("sealed", job.seal_time), ("ended", job.end_time)):
        table.add_row(name, "" if moment is None else moment.astimezone().isoformat(" ", "milliseconds"))
    if job.overdue_s:
        table.add_row("overdue", f"{job.overdue_s:,.0f} s after the time by which it should have ended")
    return table


_STYLES = {
    JobState.SUCCEEDED: "green",
    JobState.PARTIALLY_SUCCEEDED: "yellow",
    JobState.FAILED: "red",
    JobState.CANCELLED: "red",
    JobState.EXPIRED: "red",
}


def styled_state(state: JobState) -> str:
    """Return a state's name with its color."""
    style = _STYLES.get(state, "cyan")
    return f"[{style}]{state.name}[/{style}]"


def exit_by_state(state: JobState) -> None:
    """Exit with the code of a job's state; return if it succeeded or has not ended."""
    code = EXIT_BY_STATE.get(state, 0)
    if code:
        raise typer.Exit(code)


def _stdout_console() -> Console:
    return Console(highlight=False, width=None if os.isatty(1) else PIPE_WIDTH)


def _id(job: Job) -> str:
    return job.name.rpartition("/")[2]


def _seconds(job: Job) -> str:
    """Return the seconds from a job's opening to its end; "" if it has not ended."""
    if job.create_time is None or job.end_time is None:
        return ""
    return f"{(job.end_time - job.create_time).total_seconds():.1f}"


def _to_json(value: object) -> str:
    if isinstance(value, datetime):
        return value.isoformat()
    raise TypeError(f"{type(value).__name__} has no JSON form")
