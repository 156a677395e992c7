"""Tasks that apply the staged rows of atomic jobs: beside the partitions, in one transaction with the job's end."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import TypeVar

import pytest
from psycopg import sql
from psycopg_pool import AsyncConnectionPool

from bulkgrpc import faults, limits
from bulkgrpc.blocks import DatasetState
from bulkgrpc.consume.apply_tasks import ApplyTask, TaskFailed, TaskKind
from bulkgrpc.consume.ports import Applied
from bulkgrpc.datasets.definition import ConflictPolicy
from bulkgrpc.ingest.ports import JobsNotEnded
from bulkgrpc.model import ApplyProgress, BlockedBy, Job, JobKey, JobOptions, JobState
from bulkgrpc.postgres import apply_task, staged
from bulkgrpc.postgres.apply_task_store import PostgresApplyTasks
from bulkgrpc.postgres.blocks import Blocks
from bulkgrpc.postgres.catalog import Catalog
from bulkgrpc.postgres.connection import Deadlines, connect
from bulkgrpc.postgres.jobs import JobStore
from bulkgrpc.postgres.maintenance import count_overdue, delete_orphaned_staged_rows
from tests.integration.test_parked import Worker
from tests.integration.test_transaction import TOPIC, batch, job_row, seal
from tests.support import examples
from tests.support.database import Connection, count, register
from tests.support.tasks import apply_tasks
from tests.support.waiting import wait_for
from workers.apply import ApplyThread

ATOMIC = JobOptions(atomic=True)
NAME = "sensor_readings"
WITHIN_S = 20.0
SUCCEEDED = (JobState.SUCCEEDED, 10, 10, 0, 0, 0)
T = TypeVar("T")


@pytest.fixture
def worker(database: str, connection: Connection) -> Iterator[Worker]:
    register(connection, examples.readings())
    worker = Worker(database, connection)
    yield worker
    worker.stop()


@pytest.fixture
def tasks(database: str) -> Iterator[PostgresApplyTasks]:
    store = PostgresApplyTasks(database)
    yield store
    store.close()


@dataclass
class Server:
    """Calls the server's adapters, each call with a pool of its own."""

    database: str

    def job(self, job: str = "k") -> Job:
        found = self.run(lambda pool: JobStore(pool).get_job(JobKey.derive("acme", job)))
        assert found is not None
        return found

    def cancel(self, job: str = "k") -> Job:
        found = self.run(lambda pool: JobStore(pool).cancel_job(JobKey.derive("acme", job)))
        assert found is not None
        return found

    def blocks(self, call: Callable[[Blocks], Awaitable[T]]) -> T:
        return self.run(lambda pool: call(Blocks(pool, TOPIC)))

    def run(self, call: Callable[[AsyncConnectionPool], Awaitable[T]]) -> T:
        async def run() -> T:
            pool = AsyncConnectionPool(self.database, min_size=1, open=False, kwargs={"autocommit": True})
            async with pool:
                return await call(pool)

        return asyncio.run(run())


@pytest.fixture
def server(database: str) -> Server:
    return Server(database)


@dataclass
class Stop:
    """Holds an attempt at a site until it may continue."""

    site: str
    reached: threading.Event = field(default_factory=threading.Event)
    go_on: threading.Event = field(default_factory=threading.Event)

    def __call__(self, site: str) -> None:
        if site == self.site:
            self.reached.set()
            assert self.go_on.wait(WITHIN_S)


def submit(worker: Worker, job: str = "k", start: int = 0, rows: int = 10) -> None:
    outcome = worker.write(batch(0, start, rows, job, ATOMIC), seal(1, job, ATOMIC))
    assert isinstance(outcome, Applied)
    assert (outcome.tasks, outcome.parked) == (1, 0)


def waiting(tasks: PostgresApplyTasks, kind: TaskKind = TaskKind.SMALL) -> ApplyTask:
    task = tasks.next(kind, ())
    assert task is not None
    return task


def test_the_seal_of_an_atomic_job_leaves_its_rows_to_a_task_that_applies_them_and_ends_the_job(
    connection: Connection, worker: Worker, server: Server
) -> None:
    submit(worker)
    assert job_row(connection) == (JobState.SEALED, 10, 0, 0, 0, 0)
    found = server.job()
    assert (found.apply_progress, found.block) == (ApplyProgress(10, 0), None)
    assert found.seal_time is not None
    assert count(connection, NAME) == 0
    (counts,) = apply_tasks(connection)
    assert counts.written == 10
    assert job_row(connection) == SUCCEEDED
    assert count(connection, NAME) == 10
    assert count(connection, "bulk.apply_tasks") == 0
    found = server.job()
    assert (found.apply_progress, found.seal_time is not None, found.end_time is not None) == (None, True, True)


def test_an_atomic_job_without_rows_ends_with_its_seal(connection: Connection, worker: Worker) -> None:
    outcome = worker.write(seal(0, options=ATOMIC))
    assert isinstance(outcome, Applied)
    assert outcome.tasks == 0
    outcome = worker.write(batch(0, 0, 10, "other"), seal(1, "other"))
    assert isinstance(outcome, Applied)
    assert outcome.tasks == 0
    assert count(connection, "bulk.apply_tasks") == 0


def test_a_parked_seal_leaves_a_task_too(connection: Connection, worker: Worker, server: Server) -> None:
    worker.write(batch(0, 0, 10, options=ATOMIC))
    server.blocks(lambda blocks: blocks.pause(NAME, "because"))
    outcome = worker.write(seal(1, options=ATOMIC))
    assert isinstance(outcome, Applied)
    assert (outcome.tasks, outcome.parked) == (0, 1)
    server.blocks(lambda blocks: blocks.resume(NAME))
    woken: list[bool] = []
    worker.parked._on_applied = lambda: woken.append(True)
    worker.quick_drain.round()
    assert woken, "the threads that apply tasks are woken"
    assert job_row(connection)[0] == JobState.SEALED
    apply_tasks(connection)
    assert job_row(connection) == SUCCEEDED


def test_while_a_job_is_applied_other_jobs_of_its_partition_and_dataset_are_written_and_end(
    connection: Connection, worker: Worker, tasks: PostgresApplyTasks, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop = Stop("task_before_commit")
    monkeypatch.setattr(faults, "reach", stop)
    submit(worker)
    with ThreadPoolExecutor(1) as threads:
        applying = threads.submit(tasks.apply, waiting(tasks))
        assert stop.reached.wait(WITHIN_S)
        outcome = worker.write(batch(0, 100, 10, "other"), seal(1, "other"))
        stop.go_on.set()
        applying.result(WITHIN_S)
    assert isinstance(outcome, Applied)
    assert outcome.parked == 0
    assert job_row(connection, "other") == SUCCEEDED
    assert job_row(connection) == SUCCEEDED


def test_late_batches_do_not_wait_for_the_rows_of_their_job(
    connection: Connection, worker: Worker, tasks: PostgresApplyTasks, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop = Stop("task_claimed")
    monkeypatch.setattr(faults, "reach", stop)
    submit(worker)
    with ThreadPoolExecutor(1) as threads:
        applying = threads.submit(tasks.apply, waiting(tasks))
        assert stop.reached.wait(WITHIN_S)
        assert isinstance(worker.write(batch(1, 500, 5, "k", ATOMIC)), Applied)
        assert job_row(connection)[0] == JobState.SEALED
        stop.go_on.set()
        applying.result(WITHIN_S)
    assert job_row(connection) == SUCCEEDED
    assert connection.execute("SELECT late_batches FROM bulk.jobs").fetchone() == (1,)


def test_one_worker_at_a_time_applies_a_job(
    database: str, worker: Worker, tasks: PostgresApplyTasks, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop = Stop("task_before_commit")
    monkeypatch.setattr(faults, "reach", stop)
    submit(worker)
    task = waiting(tasks)
    other = PostgresApplyTasks(database)
    with ThreadPoolExecutor(1) as threads:
        applying = threads.submit(tasks.apply, task)
        assert stop.reached.wait(WITHIN_S)
        assert other.next(TaskKind.SMALL, ()) is None
        assert other.apply(task) is None
        stop.go_on.set()
        assert applying.result(WITHIN_S) is not None
    assert other.apply(task) is None, "it is finished"
    other.close()


@pytest.mark.parametrize("site", ["task_claimed", "task_before_commit"])
def test_a_job_whose_worker_loses_its_connection_is_applied_whole_by_another(
    connection: Connection, worker: Worker, tasks: PostgresApplyTasks, monkeypatch: pytest.MonkeyPatch, site: str
) -> None:
    def end(reached: str) -> None:
        if reached == site:
            connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE application_name = 'bulkgrpc-worker-apply' AND datname = current_database()"
            )

    submit(worker)
    with monkeypatch.context() as patched:
        patched.setattr(faults, "reach", end)
        with pytest.raises(TaskFailed):
            tasks.apply(waiting(tasks))
    assert count(connection, NAME) == 0
    assert job_row(connection)[0] == JobState.SEALED
    apply_tasks(connection)
    assert job_row(connection) == SUCCEEDED
    assert count(connection, NAME) == 10


@pytest.mark.parametrize("site", ["task_claimed", "task_before_commit"])
def test_a_cancellation_does_not_wait_for_the_rows_and_nothing_of_the_job_is_written(
    connection: Connection,
    worker: Worker,
    tasks: PostgresApplyTasks,
    server: Server,
    monkeypatch: pytest.MonkeyPatch,
    site: str,
) -> None:
    stop = Stop(site)
    monkeypatch.setattr(faults, "reach", stop)
    submit(worker)
    with ThreadPoolExecutor(2) as threads:
        applying = threads.submit(tasks.apply, waiting(tasks))
        assert stop.reached.wait(WITHIN_S)
        cancelling = threads.submit(server.cancel)
        if site == "task_before_commit":
            locked = "SELECT FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
            assert wait_for(lambda: connection.execute(locked).rowcount > 0, WITHIN_S)
        else:
            cancelling.result(WITHIN_S)
        stop.go_on.set()
        ended = cancelling.result(WITHIN_S).state
        try:
            applied = applying.result(WITHIN_S)
        except TaskFailed:
            applied = None
    if site == "task_before_commit":
        # The job's row was locked for its end: the cancellation is too late.
        assert (ended, applied is not None) == (JobState.SUCCEEDED, True)
        assert job_row(connection) == SUCCEEDED
        return
    assert (ended, applied) == (JobState.CANCELLED, None)
    assert job_row(connection) == (JobState.CANCELLED, 10, 0, 0, 0, 10)
    assert apply_tasks(connection) == []
    assert count(connection, NAME) + count(connection, "bulk.apply_tasks") == 0


def test_a_cancellation_interrupts_the_statement_that_applies_the_rows(
    connection: Connection, worker: Worker, tasks: PostgresApplyTasks, server: Server
) -> None:
    connection.execute(SLEEP.format(seconds=30).encode())
    submit(worker)
    slow = replace(waiting(tasks), kind=TaskKind.SLOW)
    with ThreadPoolExecutor(1) as threads:
        applying = threads.submit(tasks.apply, slow)
        asleep = "SELECT FROM pg_stat_activity WHERE wait_event = 'PgSleep' AND datname = current_database()"
        assert wait_for(lambda: connection.execute(asleep).rowcount == 1, WITHIN_S)
        assert server.cancel().state is JobState.CANCELLED
        with pytest.raises(TaskFailed):
            applying.result(5)
    assert apply_tasks(connection) == []
    assert count(connection, "bulk.apply_tasks") == 0


SLEEP = """
CREATE FUNCTION nap() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep({seconds}); RETURN NULL; END $$;
CREATE TRIGGER nap AFTER INSERT ON sensor_readings FOR EACH STATEMENT EXECUTE FUNCTION nap();
"""


def test_a_job_whose_key_was_used_before_has_a_task_of_its_own(
    connection: Connection, worker: Worker, server: Server
) -> None:
    submit(worker)
    server.cancel()
    assert server.run(lambda pool: JobStore(pool).delete_job(JobKey.derive("acme", "k")))
    assert count(connection, "bulk.apply_tasks") == 0
    worker.write(batch(0, 100, 5, options=ATOMIC))
    assert apply_tasks(connection) == []
    worker.write(seal(1, options=ATOMIC))
    apply_tasks(connection)
    assert job_row(connection) == (JobState.SUCCEEDED, 5, 5, 0, 0, 0)


def test_a_job_waits_for_its_table_and_says_so_and_is_applied_once_it_is_repaired(
    connection: Connection, worker: Worker, tasks: PostgresApplyTasks, server: Server
) -> None:
    connection.execute("ALTER TABLE sensor_readings RENAME COLUMN value TO reading")
    submit(worker)
    thread = ApplyThread(tasks, TaskKind.SMALL, threading.Event())
    thread.round()
    block = server.job().block
    assert block is not None
    assert block.cause is BlockedBy.TABLE
    assert "value" in block.reason
    status = server.blocks(lambda blocks: blocks.status(NAME))
    assert status is not None
    assert (status.state, status.parked.records, status.parked.jobs) == (DatasetState.BLOCKED, 10, 1)
    assert tasks.next(TaskKind.SMALL, ()) is None, "it is tried later"
    connection.execute("UPDATE bulk.jobs SET seal_time = now() - interval '1 hour'")
    assert count_overdue(connection) == 0
    assert server.job().overdue_s(datetime.now(UTC)) == 0.0
    connection.execute("ALTER TABLE sensor_readings RENAME COLUMN reading TO value")
    worker.settle()
    assert job_row(connection) == SUCCEEDED
    assert count(connection, "bulk.blocked_datasets") == 0


def test_resuming_a_dataset_tries_its_jobs_now(
    connection: Connection, worker: Worker, tasks: PostgresApplyTasks, server: Server
) -> None:
    connection.execute("REVOKE ALL ON sensor_readings FROM PUBLIC")
    connection.execute("ALTER TABLE sensor_readings ADD COLUMN needed integer NOT NULL")
    submit(worker)
    ApplyThread(tasks, TaskKind.SMALL, threading.Event()).round()
    connection.execute("UPDATE bulk.apply_tasks SET next_attempt_time = now() + interval '1 hour'")
    connection.execute("ALTER TABLE sensor_readings DROP COLUMN needed")
    server.blocks(lambda blocks: blocks.resume(NAME))
    connection.execute("DELETE FROM bulk.blocked_datasets")
    apply_tasks(connection)
    assert job_row(connection) == SUCCEEDED


def test_the_jobs_of_a_paused_dataset_wait_until_it_is_resumed(
    connection: Connection, worker: Worker, server: Server
) -> None:
    submit(worker)
    server.blocks(lambda blocks: blocks.pause(NAME, "the table is rebuilt"))
    assert apply_tasks(connection) == []
    block = server.job().block
    assert block is not None
    assert (block.cause, block.reason) == (BlockedBy.PAUSED, "the table is rebuilt")
    server.blocks(lambda blocks: blocks.resume(NAME))
    assert server.job().block is None
    apply_tasks(connection)
    assert job_row(connection) == SUCCEEDED


def test_discarding_ends_the_jobs_whose_rows_are_not_applied_also_while_a_worker_applies_them(
    connection: Connection,
    worker: Worker,
    tasks: PostgresApplyTasks,
    server: Server,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stop = Stop("task_claimed")
    submit(worker)
    task = waiting(tasks)
    with ThreadPoolExecutor(1) as threads, monkeypatch.context() as patched:
        patched.setattr(faults, "reach", stop)
        applying = threads.submit(tasks.apply, task)
        assert stop.reached.wait(WITHIN_S)
        server.blocks(lambda blocks: blocks.pause(NAME, "wrong records"))
        discarded = server.blocks(lambda blocks: blocks.discard(NAME))
        stop.go_on.set()
        assert applying.result(WITHIN_S) is None
    assert discarded is not None
    assert (discarded[0].parked.records, discarded[0].parked.jobs) == (10, 1)
    found = server.job()
    assert (found.state, found.counts.expired) == (JobState.FAILED, 10)
    assert "wrong records" in found.failure_reason
    assert "wrong records" in found.discard_reason
    server.blocks(lambda blocks: blocks.resume(NAME))
    assert apply_tasks(connection) == []
    assert count(connection, NAME) + count(connection, "bulk.apply_tasks") == 0


def test_jobs_of_one_tenant_and_dataset_are_applied_in_the_order_of_their_seals_and_say_what_they_wait_for(
    connection: Connection, worker: Worker, tasks: PostgresApplyTasks, server: Server
) -> None:
    connection.execute(SLEEP.format(seconds=30).encode())
    submit(worker, "first")
    submit(worker, "second", 100)
    task = waiting(tasks)
    assert task.job == JobKey.derive("acme", "first")
    with pytest.raises(TaskFailed) as failed:
        tasks.apply(task)
    assert failed.value.failure.sqlstate == "57014"
    ApplyThread(tasks, TaskKind.SMALL, threading.Event()).round()
    slow = waiting(tasks, TaskKind.SLOW)
    assert slow.job == task.job
    assert tasks.next(TaskKind.SMALL, ()) is None, "the second waits for the first"
    connection.execute(
        "UPDATE bulk.apply_tasks SET block_cause = 'job', block_time = now(), reason = 'it sleeps' WHERE slow"
    )
    block = server.job("second").block
    assert block is not None
    assert (block.cause, block.reason) == (BlockedBy.QUEUE, f"waits for {task.job.name}: it sleeps")
    connection.execute("DROP TRIGGER nap ON sensor_readings")
    apply_tasks(connection)
    assert [job_row(connection, job) for job in ("first", "second")] == [SUCCEEDED, SUCCEEDED]
    assert count(connection, NAME) == 20


def test_a_job_whose_own_rows_block_it_can_be_discarded(
    connection: Connection, worker: Worker, tasks: PostgresApplyTasks, server: Server
) -> None:
    submit(worker)
    connection.execute("UPDATE bulk.datasets SET version = 9")
    ApplyThread(tasks, TaskKind.SMALL, threading.Event()).round()
    discarded = server.run(lambda pool: JobStore(pool).discard_job(JobKey.derive("acme", "k"), "it is lost"))
    assert discarded is not None
    assert discarded.block is not None
    assert (discarded.state, discarded.block.cause) == (JobState.SEALED, BlockedBy.JOB)
    found = server.job()
    assert (found.state, found.counts.expired) == (JobState.FAILED, 10)
    assert found.failure_reason.startswith("discarded by an operator: it is lost; it was blocked: version 1 of")
    assert apply_tasks(connection) == []
    assert count(connection, NAME) + count(connection, "bulk.apply_tasks") == 0


def test_a_job_that_is_not_blocked_is_not_discarded(connection: Connection, worker: Worker, server: Server) -> None:
    submit(worker)
    assert server.run(lambda pool: JobStore(pool).discard_job(JobKey.derive("acme", "k"), "")) is not None
    apply_tasks(connection)
    assert job_row(connection) == SUCCEEDED


POLICIES: tuple[ConflictPolicy, ...] = ("ignore", "update", "reject")


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("repeated", [False, True])
def test_a_large_job_is_applied_in_slices_with_the_outcome_of_one_statement(
    connection: Connection, worker: Worker, monkeypatch: pytest.MonkeyPatch, policy: ConflictPolicy, repeated: bool
) -> None:
    dataset = replace(examples.readings(), conflict_policy=policy)
    monkeypatch.setattr("bulkgrpc.postgres.apply_task.get_dataset", lambda *_: dataset)

    def outcome(slice_rows: int) -> tuple[object, object, list[int]]:
        monkeypatch.setattr(limits, "TASK_SLICE_ROWS", slice_rows)
        connection.execute("TRUNCATE sensor_readings")
        job, reported = f"k{slice_rows}", list[int]()
        worker.write(batch(0, 4_000, 500, f"before {job}"), seal(1, f"before {job}"))
        starts = [number * (900 if repeated else 1_000) + (0 if policy != "reject" else 10_000) for number in range(5)]
        batches = [batch(number, start, 1_000, job, ATOMIC) for number, start in enumerate(starts)]
        worker.write(*batches, seal(5, job, ATOMIC))

        def report(rows: int) -> bool:
            reported.append(rows)
            return True

        task = apply_task.next_task(connection, TaskKind.SMALL, ())
        assert task is not None
        apply_task.apply(connection, task, 60, report)
        rows = connection.execute("SELECT sensor_id, value, sampled_at FROM sensor_readings ORDER BY 1, 3")
        return job_row(connection, job), rows.fetchall(), reported

    *sliced, reported = outcome(1_000)
    *whole, unreported = outcome(1_000_000)
    assert sliced == whole
    assert whole[0][0] == (JobState.FAILED if policy == "reject" and repeated else JobState.SUCCEEDED)  # type: ignore[index]
    assert len(reported) >= 5
    assert reported == sorted(reported)
    assert (reported[0], reported[-1], unreported) == (0, 5_000, [])


def test_the_progress_of_a_large_job_is_visible_while_nothing_of_it_is(
    connection: Connection,
    worker: Worker,
    tasks: PostgresApplyTasks,
    server: Server,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(limits, "TASK_SLICE_ROWS", 1_000)
    monkeypatch.setattr(limits, "QUICK_TASK_ROWS_MAX", 1_000)
    submit(worker, rows=5_000)
    stop = Stop("task_before_commit")
    monkeypatch.setattr(faults, "reach", stop)
    assert tasks.next(TaskKind.SMALL, ()) is None
    with ThreadPoolExecutor(1) as threads:
        applying = threads.submit(tasks.apply, waiting(tasks, TaskKind.LARGE))
        assert stop.reached.wait(WITHIN_S)
        progress = connection.execute("SELECT applied_rows FROM bulk.apply_progress").fetchone()
        assert progress == (5_000,)
        assert count(connection, NAME) == 0
        stop.go_on.set()
        applying.result(WITHIN_S)
    assert count(connection, NAME) == 5_000
    assert count(connection, "bulk.apply_progress") == 0


def test_a_large_job_that_is_cancelled_stops_at_its_next_slice(
    connection: Connection,
    worker: Worker,
    tasks: PostgresApplyTasks,
    server: Server,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(limits, "TASK_SLICE_ROWS", 1_000)
    monkeypatch.setattr(limits, "QUICK_TASK_ROWS_MAX", 1_000)
    submit(worker, rows=5_000)
    slices: list[str] = []

    def cancel(site: str) -> None:
        if site == "task_slice":
            slices.append(site)
            # As if the statement had been between two others: it is not interrupted.
            connection.execute(
                "UPDATE bulk.jobs SET state = 6, end_time = now(), expired = staged, staged = 0 WHERE state = 2"
            )

    monkeypatch.setattr(faults, "reach", cancel)
    assert tasks.apply(waiting(tasks, TaskKind.LARGE)) is None
    assert len(slices) == 1
    assert count(connection, NAME) == 0
    assert apply_tasks(connection) == []
    assert count(connection, "bulk.apply_tasks") + count(connection, "bulk.apply_progress") == 0
    assert server.job().state is JobState.CANCELLED


def test_a_large_job_with_a_row_that_the_table_refuses_fails_whole(
    connection: Connection, worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "TASK_SLICE_ROWS", 1_000)
    connection.execute("ALTER TABLE sensor_readings ADD CONSTRAINT few CHECK (value < 2000)")
    submit(worker, rows=5_000)
    apply_tasks(connection)
    assert job_row(connection) == (JobState.FAILED, 5_000, 0, 0, 0, 5_000)
    assert count(connection, NAME) == 0
    row = connection.execute("SELECT failure_reason FROM bulk.jobs").fetchone()
    assert row is not None
    assert "few" in row[0]


def test_a_dataset_is_not_deleted_while_a_job_of_it_is_to_be_applied(worker: Worker, server: Server) -> None:
    submit(worker)
    with pytest.raises(JobsNotEnded):
        server.run(lambda pool: Catalog(pool).delete(NAME, drop_table=True))


def test_a_cancelled_job_does_not_keep_its_dataset_and_its_task_goes(
    connection: Connection, worker: Worker, tasks: PostgresApplyTasks, server: Server
) -> None:
    submit(worker)
    server.cancel()
    assert server.run(lambda pool: Catalog(pool).delete(NAME, drop_table=True))
    ApplyThread(tasks, TaskKind.SMALL, threading.Event()).round()
    assert count(connection, "bulk.apply_tasks") == 0
    assert job_row(connection)[0] == JobState.CANCELLED


def test_a_new_version_of_the_dataset_changes_nothing_about_a_job_that_waits(
    connection: Connection, worker: Worker
) -> None:
    submit(worker)
    dataset = replace(examples.readings(), version=2)
    connection.execute(staged.create(dataset))
    connection.execute(
        "INSERT INTO bulk.datasets (dataset, version, message_type, descriptors) "
        "SELECT dataset, 2, message_type, descriptors FROM bulk.datasets"
    )
    apply_tasks(connection)
    assert job_row(connection) == SUCCEEDED


def test_staged_rows_of_ended_jobs_leave_nothing_to_vacuum(connection: Connection, worker: Worker) -> None:
    table = staged.StagedTable(NAME, 1).identifier
    size = sql.SQL("SELECT pg_relation_size({})").format(sql.Literal(table.as_string(connection)))
    submit(worker, rows=5_000)
    submit(worker, "other", 10_000, 10)
    apply_task_of_first = apply_task.next_task(connection, TaskKind.SMALL, ())
    assert apply_task_of_first is not None
    apply_task.apply(connection, apply_task_of_first, 30, lambda _: True)
    delete_orphaned_staged_rows(connection)
    assert count(connection, ".".join(table._obj)) == 10, "those of a job that has not ended stay"
    apply_tasks(connection)
    delete_orphaned_staged_rows(connection)
    assert connection.execute(size).fetchone() == (0,)


def test_staged_rows_that_a_transaction_adds_just_now_are_not_truncated(
    database: str, connection: Connection, worker: Worker
) -> None:
    submit(worker)
    apply_tasks(connection)
    table = staged.StagedTable(NAME, 1).identifier
    with connect(database, "other") as other, other.transaction():
        other.execute(sql.SQL("LOCK TABLE {} IN ROW EXCLUSIVE MODE").format(table))
        delete_orphaned_staged_rows(connection)
    assert count(connection, ".".join(table._obj)) == 0


def test_a_frozen_worker_lets_its_task_go(
    database: str, connection: Connection, worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bulkgrpc.postgres.apply_task_store._DEADLINES", Deadlines(60, idle_in_transaction_s=0.3))
    frozen = PostgresApplyTasks(database)
    stop = Stop("task_claimed")
    monkeypatch.setattr(faults, "reach", stop)
    submit(worker)
    task = waiting(frozen)
    with ThreadPoolExecutor(1) as threads:
        applying = threads.submit(frozen.apply, task)
        assert stop.reached.wait(WITHIN_S)
        monkeypatch.setattr(faults, "reach", lambda _: None)
        assert wait_for(lambda: len(apply_tasks(connection)) == 1, WITHIN_S)
        stop.go_on.set()
        with pytest.raises(TaskFailed):
            applying.result(WITHIN_S)
    frozen.close()
    assert job_row(connection) == SUCCEEDED
    assert count(connection, NAME) == 10


def test_a_small_job_does_not_read_the_staged_rows_of_a_large_one(
    connection: Connection, worker: Worker, tasks: PostgresApplyTasks
) -> None:
    table = staged.StagedTable(NAME, 1).identifier
    worker.write(batch(0, 0, 20_000, "large", ATOMIC))
    submit(worker, "small", 50_000)
    connection.execute(sql.SQL("ANALYZE {}").format(table))
    assert tasks.apply(waiting(tasks)) is not None
    tasks._session.open().execute("SELECT pg_stat_force_next_flush()")
    scans = "SELECT seq_scan FROM pg_stat_user_tables WHERE schemaname || '.' || relname = %s"
    assert connection.execute(scans, [".".join(table._obj)]).fetchone() == (0,)
