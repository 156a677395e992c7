"""Tasks that apply the staged rows of atomic jobs: what they are, what follows a failed attempt, and the store's port.

The chunk that applies the last seal of such a job leaves a task. Any worker claims it, beside the partitions, so that
no message waits for the rows of a job, however many they are.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from typing import Protocol

from bulkgrpc.consume.failures import ROWS_ATTEMPTS_MAX, Consequence, Failure, classify
from bulkgrpc.consume.ports import StoreError
from bulkgrpc.model import JobCounts, JobKey

RETRY_S_MAX = 10.0
"""Longest wait after an attempt that PostgreSQL interrupted, or because of the table, seconds."""
JOB_WAIT_S_FIRST = 5.0
JOB_WAIT_S_MAX = 600.0
"""Longest wait after an attempt that failed for the job's own rows, seconds."""


@dataclass(frozen=True, slots=True)
class ApplyTask:
    """The staged rows of a sealed atomic job.

    create_day, dataset_version: those of the job. attempts: that failed. void: the job has ended without them, or is
    gone.
    """

    job: JobKey
    create_day: date
    dataset: str
    dataset_version: int
    staged_rows: int
    kind: TaskKind
    attempts: int = 0
    void: bool = False


class TaskKind(enum.Enum):
    """What a thread applies: jobs of one kind never wait for those of another."""

    SMALL = "small"
    """Of up to `limits.QUICK_TASK_ROWS_MAX` rows, which take up to `limits.ROWS_TIMEOUT_S`."""
    SLOW = "slow"
    """Small ones whose rows took longer."""
    LARGE = "large"
    """Of more rows."""


class TaskBlock(enum.StrEnum):
    """Why a task waits: `bulk.apply_tasks.block_cause`."""

    TABLE = "table"
    """Its table cannot be written now."""
    JOB = "job"
    """Its rows can neither be written nor rejected in time."""


@dataclass(frozen=True, slots=True)
class Deferral:
    """What follows an attempt that failed. wait_s: until the next one, seconds. block: what the job shows meanwhile.

    slow: a small job is one of the kind SLOW from now on.
    """

    wait_s: float
    block: TaskBlock | None = None
    slow: bool = False


def after_failure(failure: Failure, kind: TaskKind, attempts: int, took_s: float) -> Deferral:
    """Return what follows an attempt that failed.

    attempts: that failed, this one included. took_s: how long it took.

    | consequence   | kind       | wait, seconds                              | the job shows                |
    |---------------|------------|--------------------------------------------|------------------------------|
    | RETRY         | any        | 0.1, 0.2 … RETRY_S_MAX                     | JOB, after ROWS_ATTEMPTS_MAX |
    | BLOCK_DATASET | any        | 1, 2 … RETRY_S_MAX; as long as it took     | TABLE                        |
    | BLOCK_JOB     | any        | 1, 2 … RETRY_S_MAX                         | JOB                          |
    | any other     | SMALL      | 0: it is a SLOW one, which has more time   | nothing                      |
    | any other     | any other  | 5, 10 … JOB_WAIT_S_MAX; as long as it took | JOB                          |

    Waiting for as long as an attempt took leaves half of the thread's time to others.
    """
    doubled = 2.0 ** min(attempts - 1, 20)
    consequence = classify(failure)
    if consequence is Consequence.RETRY:
        block = TaskBlock.JOB if attempts >= ROWS_ATTEMPTS_MAX else None
        return Deferral(min(0.1 * doubled, RETRY_S_MAX), block)
    if consequence is Consequence.BLOCK_DATASET:
        return Deferral(max(min(doubled, RETRY_S_MAX), took_s), TaskBlock.TABLE)
    if consequence is Consequence.BLOCK_JOB:
        return Deferral(min(doubled, RETRY_S_MAX), TaskBlock.JOB)
    if kind is TaskKind.SMALL:
        return Deferral(0.0, slow=True)
    return Deferral(max(min(JOB_WAIT_S_FIRST * doubled, JOB_WAIT_S_MAX), took_s), TaskBlock.JOB)


class TaskFailed(StoreError):
    """A task was not finished: nothing of it was written. `failure` says why."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.message)
        self.failure = failure


class ApplyTasks(Protocol):
    """The tasks. One thread uses it, but for `interrupt`. Every method raises StoreUnavailable, or StoreError."""

    def next(self, kind: TaskKind, served: Sequence[str]) -> ApplyTask | None:
        """Return the task of a kind to try next; None if there is none that no other worker is at.

        served: tenants, the last one last, whose tasks come after those of others.
        """

    def apply(self, task: ApplyTask) -> JobCounts | None:
        """Apply a job's staged rows and end the job, in one transaction; return what that adds to its counts.

        None: another worker has the task, or the job has ended meanwhile; nothing is written then. Raises TaskFailed.
        """

    def drop(self, task: ApplyTask) -> None:
        """Forget a void task."""

    def defer(self, task: ApplyTask, failure: Failure, deferral: Deferral) -> None:
        """Store when a task is tried again and why it waits. If that is for its table, its dataset is blocked."""

    def interrupt(self) -> None:
        """Let a running `apply` fail soon. Any thread may call it."""

    def close(self) -> None:
        """Release the connections. The next call opens others."""
