"""What follows a failed attempt to apply an atomic job, and whose turn it is."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import date

import pytest

from bulkgrpc.consume.apply_tasks import ApplyTask, Deferral, TaskBlock, TaskFailed, TaskKind, after_failure
from bulkgrpc.consume.failures import Failure, Where
from bulkgrpc.consume.ports import StoreUnavailable
from bulkgrpc.model import JobCounts, JobKey
from tests.support.waiting import wait_for
from workers.apply import Apply, ApplyThread

WITHIN_S = 20.0
TIMED_OUT = Failure(Where.ROWS, "57014", "QueryCanceled", "statement timeout", dataset="weather")
NO_TABLE = Failure(Where.ROWS, "42P01", "UndefinedTable", "relation does not exist", dataset="weather")
DEADLOCK = Failure(Where.ROWS, "40P01", "DeadlockDetected", "deadlock detected", dataset="weather")
NO_VERSION = Failure(Where.ROWS, "", "DatasetNotFound", "not in the registry", dataset="weather", missing_version=2)
UNKNOWN = Failure(Where.ROWS, "", "ZeroDivisionError", "division by zero", dataset="weather")


def a_task(tenant: str, key: str = "k", *, void: bool = False) -> ApplyTask:
    return ApplyTask(JobKey.derive(tenant, key), date(2026, 1, 2), "weather", 1, 10, TaskKind.SMALL, void=void)


@dataclass
class FakeTasks:
    """An `ApplyTasks`. fails: what the attempts at a tenant's jobs raise. on_apply: called at the begin of each."""

    waiting: list[ApplyTask]
    fails: dict[str, Failure] = field(default_factory=dict)
    on_apply: Callable[[ApplyTask], None] = lambda _: None
    applied: list[ApplyTask] = field(default_factory=list)
    dropped: list[ApplyTask] = field(default_factory=list)
    deferred: list[tuple[ApplyTask, Deferral]] = field(default_factory=list)
    interrupted: threading.Event = field(default_factory=threading.Event)
    errors: list[Exception] = field(default_factory=list)

    def next(self, kind: TaskKind, served: Sequence[str]) -> ApplyTask | None:
        del kind
        if self.errors:
            raise self.errors.pop()
        turns = {tenant: turn for turn, tenant in enumerate(served)}
        return min(self.waiting, key=lambda task: turns.get(task.job.tenant, -1), default=None)

    def apply(self, task: ApplyTask) -> JobCounts | None:
        self.on_apply(task)
        if (failure := self.fails.get(task.job.tenant)) is not None:
            raise TaskFailed(failure)
        self.waiting.remove(task)
        self.applied.append(task)
        return JobCounts(written=task.staged_rows)

    def drop(self, task: ApplyTask) -> None:
        self.waiting.remove(task)
        self.dropped.append(task)

    def defer(self, task: ApplyTask, failure: Failure, deferral: Deferral) -> None:
        del failure
        self.waiting.remove(task)
        self.deferred.append((task, deferral))

    def interrupt(self) -> None:
        self.interrupted.set()

    def close(self) -> None:
        pass


@pytest.mark.parametrize(
    ("failure", "attempts", "took_s", "kind", "expected"),
    [
        (DEADLOCK, 1, 200.0, TaskKind.LARGE, Deferral(0.1)),
        (DEADLOCK, 3, 200.0, TaskKind.SMALL, Deferral(0.4, TaskBlock.JOB)),
        (DEADLOCK, 99, 0.0, TaskKind.LARGE, Deferral(10.0, TaskBlock.JOB)),
        (NO_TABLE, 1, 0.1, TaskKind.SMALL, Deferral(1.0, TaskBlock.TABLE)),
        (NO_TABLE, 4, 0.1, TaskKind.LARGE, Deferral(8.0, TaskBlock.TABLE)),
        (NO_TABLE, 9, 0.1, TaskKind.LARGE, Deferral(10.0, TaskBlock.TABLE)),
        (NO_TABLE, 9, 60.0, TaskKind.LARGE, Deferral(60.0, TaskBlock.TABLE)),
        (TIMED_OUT, 1, 1.5, TaskKind.SMALL, Deferral(0.0, slow=True)),
        (TIMED_OUT, 2, 1.5, TaskKind.LARGE, Deferral(10.0, TaskBlock.JOB)),
        (TIMED_OUT, 99, 1.5, TaskKind.LARGE, Deferral(600.0, TaskBlock.JOB)),
        (TIMED_OUT, 1, 60.0, TaskKind.LARGE, Deferral(60.0, TaskBlock.JOB)),
        (NO_VERSION, 1, 0.1, TaskKind.SMALL, Deferral(1.0, TaskBlock.JOB)),
        (NO_VERSION, 9, 0.1, TaskKind.LARGE, Deferral(10.0, TaskBlock.JOB)),
        (UNKNOWN, 1, 0.1, TaskKind.LARGE, Deferral(5.0, TaskBlock.JOB)),
    ],
)
def test_what_follows_a_failed_attempt(
    failure: Failure, attempts: int, took_s: float, kind: TaskKind, expected: Deferral
) -> None:
    assert after_failure(failure, kind, attempts, took_s) == expected


def test_tenants_are_served_in_turn_however_many_jobs_one_has() -> None:
    tasks = FakeTasks([*(a_task("many", f"k{number}") for number in range(5)), a_task("few", "a"), a_task("few", "b")])
    thread = ApplyThread(tasks, TaskKind.LARGE, threading.Event())
    while tasks.waiting:
        assert thread.round() == 0.0
    assert [task.job.tenant for task in tasks.applied] == ["many", "few", "many", "few", "many", "many", "many"]


def test_a_job_that_has_ended_is_forgotten_and_not_applied() -> None:
    tasks = FakeTasks([a_task("acme", void=True)])
    assert ApplyThread(tasks, TaskKind.SMALL, threading.Event()).round() == 0.0
    assert (len(tasks.dropped), tasks.applied) == (1, [])


def test_a_job_that_takes_too_long_is_left_to_the_thread_that_has_more_time_at_once() -> None:
    slow = threading.Event()
    tasks = FakeTasks([a_task("acme")], {"acme": TIMED_OUT})
    ApplyThread(tasks, TaskKind.SMALL, threading.Event(), slow.set).round()
    assert [deferral for _, deferral in tasks.deferred] == [Deferral(0.0, slow=True)]
    assert slow.is_set()


def test_without_tasks_the_waits_grow_to_a_second_and_a_task_makes_them_short_again() -> None:
    tasks = FakeTasks([])
    thread = ApplyThread(tasks, TaskKind.SMALL, threading.Event())
    waits = [thread.round() for _ in range(8)]
    assert waits == sorted(waits)
    assert waits[-1] == 1.0
    tasks.waiting.append(a_task("acme"))
    thread.round()
    assert thread.round() < 0.1


def test_a_small_job_does_not_wait_for_a_large_one() -> None:
    made: list[FakeTasks] = []
    stopping, go_on, begun = threading.Event(), threading.Event(), threading.Event()

    def held(_: ApplyTask) -> None:
        begun.set()
        assert go_on.wait(WITHIN_S)

    def make() -> FakeTasks:
        made.append(FakeTasks([]))
        return made[-1]

    apply = Apply(make, stopping)
    quick, _, large = made
    large.waiting.append(a_task("acme"))
    large.on_apply = held
    apply.start()
    assert begun.wait(WITHIN_S)
    quick.waiting.append(a_task("globex"))
    apply.wake()
    assert wait_for(lambda: len(quick.applied) == 1, WITHIN_S)
    assert large.applied == []
    stopping.set()
    go_on.set()
    apply.stop(WITHIN_S)
    assert len(large.applied) == 1, "a running task is finished"
    assert not large.interrupted.is_set()


def test_a_task_that_outlasts_the_end_of_its_worker_is_interrupted_and_left_as_it_was() -> None:
    stopping, begun = threading.Event(), threading.Event()
    tasks = FakeTasks([a_task("acme")], {"acme": TIMED_OUT})

    def long(_: ApplyTask) -> None:
        begun.set()
        assert tasks.interrupted.wait(WITHIN_S)

    tasks.on_apply = long
    thread = ApplyThread(tasks, TaskKind.LARGE, stopping)
    thread.start()
    assert begun.wait(WITHIN_S)
    stopping.set()
    thread.interrupt()
    thread.join(WITHIN_S)
    assert tasks.deferred == []
    assert len(tasks.waiting) == 1


@pytest.mark.parametrize("error", [StoreUnavailable("PostgreSQL is restarted"), RuntimeError("a fault of ours")])
def test_no_error_ends_the_thread(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workers.rounds.FAILED_WAIT_S", 0.01)
    stopping = threading.Event()
    tasks = FakeTasks([a_task("acme")], errors=[error])
    thread = ApplyThread(tasks, TaskKind.SMALL, stopping)
    thread.start()
    assert wait_for(lambda: len(tasks.applied) == 1, WITHIN_S)
    stopping.set()
    thread.wake()
    thread.join(WITHIN_S)
