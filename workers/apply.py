"""Applies the staged rows of atomic jobs beside the partitions: a thread for each kind of job.

A small job waits for no large one and for no slow one. A tenant with many jobs keeps no other tenant waiting: each is
served in turn.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import structlog

from bulkgrpc import metrics
from bulkgrpc.consume.apply_tasks import ApplyTask, ApplyTasks, TaskFailed, TaskKind, after_failure
from bulkgrpc.consume.ports import StoreError
from workers.rounds import RoundsThread

log = structlog.get_logger()

IDLE_S = 1.0
"""How long to wait at most for a task: one of a worker that has ended, or one that is tried again."""
BUSY_S = 0.02
"""How long to wait after the first round without a task: another worker may have looked at it just then."""
SERVED_MAX = 1000
"""Tenants whose turn is remembered."""
INTERRUPTED_S = 5.0
"""How long an interrupted task may take to roll back, when the worker ends."""
LOGGED_S = 1.0
"""A job that took longer to apply is logged."""


class Apply:
    """The threads. Start once; they end when `stopping` is set. make: makes what each uses, with its connections."""

    def __init__(self, make: Callable[[], ApplyTasks], stopping: threading.Event) -> None:
        self._threads = [ApplyThread(make(), kind, stopping, self.wake) for kind in TaskKind]

    def start(self) -> None:
        """Start the threads."""
        for thread in self._threads:
            thread.start()

    def wake(self) -> None:
        """Look for tasks now."""
        for thread in self._threads:
            thread.wake()

    def stop(self, timeout_s: float) -> None:
        """Wait until the running tasks are finished; interrupt them after `timeout_s`. `stopping` is set."""
        ends_at_s = time.monotonic() + timeout_s
        self.wake()
        for thread in self._threads:
            thread.join(max(0.0, ends_at_s - time.monotonic()))
        for thread in self._threads:
            thread.interrupt()
        for thread in self._threads:
            thread.join(INTERRUPTED_S)


class ApplyThread:
    """Applies the tasks of a kind, one at a time.

    wake_all: wakes the threads of all kinds. Called when a task is of another kind now, or finished: one behind it may
    be due.
    """

    def __init__(
        self,
        tasks: ApplyTasks,
        kind: TaskKind,
        stopping: threading.Event,
        wake_all: Callable[[], None] = lambda: None,
    ) -> None:
        self._tasks, self._kind, self._stopping, self._wake_all = tasks, kind, stopping, wake_all
        self._served: dict[str, None] = {}
        self._wait_s = BUSY_S
        self._thread = RoundsThread(f"apply-{kind.value}", self.round, _log_failure, tasks.close, stopping)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def wake(self) -> None:
        """Begin the next round now."""
        self._thread.wake()

    def join(self, timeout_s: float) -> None:
        """Wait until the thread has ended, `timeout_s` at most."""
        self._thread.join(timeout_s)

    def interrupt(self) -> None:
        """Let a running task be rolled back soon. `stopping` is set: another worker applies it from its beginning."""
        if self._thread.runs:
            self._tasks.interrupt()

    def round(self) -> float:
        """Try one task. Returns how long to wait, seconds."""
        task = self._tasks.next(self._kind, tuple(self._served))
        if task is None:
            self._wait_s = min(self._wait_s * 2, IDLE_S)
            return self._wait_s
        self._wait_s = BUSY_S
        self._serve(task.job.tenant)
        if task.void:
            self._tasks.drop(task)
        else:
            self._apply(task)
        return 0.0

    def _serve(self, tenant: str) -> None:
        self._served.pop(tenant, None)
        self._served[tenant] = None
        if len(self._served) > SERVED_MAX:
            del self._served[next(iter(self._served))]

    def _apply(self, task: ApplyTask) -> None:
        begun_s = time.monotonic()
        try:
            counts = self._tasks.apply(task)
        except TaskFailed as error:
            self._on_failed(task, error, time.monotonic() - begun_s)
            return
        took_s = time.monotonic() - begun_s
        if counts is None:
            return
        self._wake_all()
        metrics.count_records([counts])
        metrics.task_seconds.record(took_s)
        if took_s > LOGGED_S:
            log.info("atomic_job_applied", job=task.job.name, rows=task.staged_rows, seconds=round(took_s, 1))

    def _on_failed(self, task: ApplyTask, error: TaskFailed, took_s: float) -> None:
        if self._stopping.is_set():
            # It may have been interrupted: that says nothing about the job.
            return
        deferral = after_failure(error.failure, self._kind, task.attempts + 1, took_s)
        self._tasks.defer(task, error.failure, deferral)
        if deferral.slow:
            self._wake_all()
            return
        log.warning(
            "atomic_job_deferred",
            job=task.job.name,
            dataset=task.dataset,
            sqlstate=error.failure.sqlstate,
            reason=error.failure.message,
            retry_in_s=round(deferral.wait_s, 1),
        )


def _log_failure(error: Exception) -> None:
    if isinstance(error, StoreError):
        log.warning("apply_failed", error=str(error))
    else:
        log.exception("apply_failed")
