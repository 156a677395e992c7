"""How commands speak: results on stdout, everything else on stderr, an expected failure as one line and exit code 1."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import datetime

import psycopg
import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from bulkgrpc.cli.files import FileProblem
from bulkgrpc.client import BulkError, Dataset, Job, JobState
from bulkgrpc.datasets.columns import InvalidDataset
from bulkgrpc.stack import StackError

EXIT_FAILURE = 1
EXIT_INTERRUPTED = 130
EXIT_OF_STATE = {
    JobState.PARTIALLY_SUCCEEDED: 3,
    JobState.FAILED: 4,
    JobState.CANCELLED: 5,
    JobState.EXPIRED: 5,
}
"""Exit codes of commands that wait for a job; every other state: 0."""

_STATE_STYLE = {
    JobState.SUCCEEDED: "green",
    JobState.PARTIALLY_SUCCEEDED: "yellow",
    JobState.FAILED: "red",
    JobState.CANCELLED: "red",
    JobState.EXPIRED: "red",
}
_COUNTS = ("accepted", "written", "duplicate", "rejected", "expired")


class CommandFailed(Exception):
    """A command cannot do what was asked. `str()` is one line: what happened, and what to do."""


@contextmanager
def failures() -> Iterator[None]:
    """Turn an expected failure into one line on stderr and exit code 1."""
    try:
        yield
    except (
        BulkError,
        CommandFailed,
        FileProblem,
        InvalidDataset,
        StackError,
        psycopg.Error,
        OSError,
        ValueError,
    ) as error:
        fail(str(error) or type(error).__name__)


def fail(message: str, code: int = EXIT_FAILURE) -> None:
    """Say why on one line of stderr and exit."""
    typer.echo(f"error: {' '.join(message.split())}", err=True)
    raise typer.Exit(code)


def human() -> Console:
    """Return the console for progress and remarks: stderr, so that stdout stays the result's."""
    return Console(stderr=True, highlight=False)


@contextmanager
def progress(steps: int, quiet: bool) -> Iterator[Callable[[str], None]]:
    """Show on stderr how far so many steps are; call what is given with the name of each that begins."""
    columns = (SpinnerColumn(), TextColumn("{task.description:<38}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=quiet) as display:
        task = display.add_task("", total=steps)
        begun = 0

        def tell(what: str) -> None:
            nonlocal begun
            display.update(task, description=what, completed=begun)
            begun += 1

        yield tell


def print_json(document: object) -> None:
    """Print one JSON value on a line of stdout."""
    typer.echo(json.dumps(document, default=_jsonable))


def print_table(table: Table) -> None:
    """Print a table on stdout. Not on a terminal, it is as wide as it needs to be."""
    wide = None if os.isatty(1) else 200
    Console(highlight=False, width=wide).print(table)


def job_document(job: Job) -> dict[str, object]:
    """Return a job as `--json` prints it."""
    return {
        "name": job.name,
        "dataset": job.dataset,
        "dataset_version": job.dataset_version,
        "state": job.state.name,
        "counts": {name: getattr(job.counts, name) for name in _COUNTS},
        "next_sequence": job.next_sequence,
        "idempotency_key": job.idempotency_key,
        "labels": job.labels,
        "create_time": job.create_time,
        "seal_time": job.seal_time,
        "end_time": job.end_time,
        "failure": job.failure,
        "options": asdict(job.options),
        "overdue_s": job.overdue_s,
    }


def dataset_document(dataset: Dataset) -> dict[str, object]:
    """Return a dataset as `--json` prints it."""
    return {
        "name": dataset.name,
        "version": dataset.version,
        "message_type": dataset.message_type,
        "key": list(dataset.key),
        "conflict": dataset.conflict,
        "dedupe_window_s": dataset.dedupe_window_s,
        "lanes": dataset.lanes,
        "time_to_live_s": dataset.time_to_live_s,
        "hash_partitions": dataset.hash_partitions,
        "time_partitions": None if dataset.time_partitions is None else asdict(dataset.time_partitions),
        "columns": [
            {"name": column.name, "field": column.field, "type": column.type, "nullable": column.nullable}
            for column in dataset.columns
        ],
    }


def treatment(dataset: Dataset) -> str:
    """Say how a dataset's records are treated, in one line."""
    said = [f"a key that is there: {dataset.conflict}"]
    if dataset.dedupe_window_s:
        said.append(f"records remembered for {dataset.dedupe_window_s:g} s")
    if dataset.lanes > 1:
        said.append(f"{dataset.lanes} lanes")
    if dataset.time_to_live_s:
        said.append(f"batches discarded after {dataset.time_to_live_s:g} s")
    if dataset.hash_partitions:
        said.append(f"{dataset.hash_partitions} partitions by hash of the key")
    if dataset.time_partitions is not None:
        said.append(f"partitions by {dataset.time_partitions.every} of {dataset.time_partitions.column}")
    return "; ".join(said)


def jobs_table(jobs: list[Job], *, with_ids: bool = True) -> Table:
    """Return jobs as a table for people, a row each. with_ids: the ids take half a terminal's width."""
    table = Table()
    if with_ids:
        table.add_column("job", overflow="fold")
    table.add_column("dataset")
    table.add_column("state", overflow="fold")
    for name in (*_COUNTS, "seconds"):
        table.add_column(name, justify="right")
    # Most jobs do not fail, and a terminal has 80 columns.
    with_failure = any(job.failure for job in jobs)
    if with_failure:
        table.add_column("failure", overflow="fold")
    for job in jobs:
        job_id = [job.name.rpartition("/")[2]] if with_ids else []
        failure = [job.failure] if with_failure else []
        table.add_row(*job_id, job.dataset, styled_state(job.state), *_counts(job), _seconds(job), *failure)
    return table


def job_table(job: Job) -> Table:
    """Return one job as a table for people, a row for each thing there is to say."""
    table = Table(show_header=False)
    table.add_row("job", job.name)
    table.add_row("dataset", f"{job.dataset} (version {job.dataset_version})")
    table.add_row("state", styled_state(job.state))
    if job.failure:
        table.add_row("failure", job.failure)
    for name, count in zip(_COUNTS, _counts(job), strict=True):
        table.add_row(name, count)
    for name, option in asdict(job.options).items():
        if option:
            table.add_row(name, f"{option}")
    table.add_row("key", job.idempotency_key)
    for name, value in job.labels.items():
        table.add_row(f"label {name}", value)
    for name, moment in (("opened", job.create_time), ("sealed", job.seal_time), ("ended", job.end_time)):
        table.add_row(name, "" if moment is None else moment.astimezone().isoformat(" ", "milliseconds"))
    if job.overdue_s:
        table.add_row("overdue", f"{job.overdue_s:,.0f} s past the time in which it should have ended")
    table.columns[1].overflow = "fold"
    return table


def styled_state(state: JobState) -> str:
    """Return a state in its colour."""
    style = _STATE_STYLE.get(state, "cyan")
    return f"[{style}]{state.name}[/{style}]"


def exit_by_state(state: JobState) -> None:
    """Exit with the code that a job's state has; return for success."""
    code = EXIT_OF_STATE.get(state, 0)
    if code:
        raise typer.Exit(code)


def _counts(job: Job) -> list[str]:
    return [f"{getattr(job.counts, name):,}" for name in _COUNTS]


def _seconds(job: Job) -> str:
    """Return the seconds from a job's opening to its end; "" if it has not ended."""
    if job.create_time is None or job.end_time is None:
        return ""
    return f"{(job.end_time - job.create_time).total_seconds():.1f}"


def _jsonable(value: object) -> str:
    if isinstance(value, datetime):
        return value.isoformat()
    raise TypeError(f"{type(value).__name__} has no JSON form")
