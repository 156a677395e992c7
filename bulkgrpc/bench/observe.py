"""Waits for what the service does, and checks the exact result."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Protocol

from bulkgrpc.bench.environment import Deployment
from bulkgrpc.bench.model import BenchFailed
from bulkgrpc.datasets.definition import Dataset
from bulkgrpc.kafka.administration import KafkaAdministration
from bulkgrpc.model import JobCounts, final_state
from bulkgrpc.postgres.connection import Connection
from bulkgrpc.postgres.inspection import ended_jobs_and_written_rows, job_totals, row_count

POLL_INTERVAL_S = 0.01


class Needed(Protocol):
    """A process that must run until the awaited condition holds."""

    def check(self) -> None:
        """Raise BenchFailed if it failed."""


def wait_until(what: str, holds: Callable[[], bool], timeout_s: float, needed: Sequence[Needed] = ()) -> None:
    """Return as soon as `holds()` is true. Raises BenchFailed after `timeout_s`, or when a needed process failed."""
    deadline_s, pause = time.monotonic() + timeout_s, threading.Event()
    while not holds():
        for process in needed:
            process.check()
        if time.monotonic() > deadline_s:
            raise BenchFailed(f"timed out after {timeout_s:.0f} s waiting until {what}")
        pause.wait(POLL_INTERVAL_S)


def wait_jobs_ended(
    connection: Connection, idempotency_key: str, jobs: int, timeout_s: float = 600.0, needed: Sequence[Needed] = ()
) -> None:
    """Wait until `jobs` jobs with this key have ended, committed and visible to another session."""
    wait_until(
        "the jobs have ended",
        lambda: ended_jobs_and_written_rows(connection, idempotency_key)[0] >= jobs,
        timeout_s,
        needed,
    )


def check_counts(connection: Connection, dataset: Dataset, idempotency_key: str, jobs: int, counts: JobCounts) -> None:
    """Check that every job ended as these counts demand, that together they have them, and that the table agrees.

    The table must have the rows that were written and those that existed before. Raises BenchFailed.
    """
    state = final_state(counts)
    found = job_totals(connection, idempotency_key, state)
    expected = (jobs, counts.accepted, counts.written, counts.duplicate, counts.rejected)
    if found != expected:
        raise BenchFailed(
            f"jobs ({state.name}, accepted, written, duplicate, rejected) are {found}, must be {expected}"
        )
    check_table(connection, dataset, counts.written + counts.duplicate)


def check_table(connection: Connection, dataset: Dataset, rows: int) -> None:
    """Check that a dataset's table has exactly `rows` rows. Raises BenchFailed."""
    found = row_count(connection, dataset)
    if found != rows:
        raise BenchFailed(f"table {dataset.name} has {found} rows, must have {rows}")


def wait_group_balanced(deployment: Deployment, members: int, timeout_s: float = 60.0) -> list[list[int]]:
    """Wait until the consumer group has `members` members that share all partitions evenly.

    Returns the partitions of each member, sorted.
    """
    administration = KafkaAdministration(deployment.kafka)
    assignment: list[list[int]] | None = None

    def balanced() -> bool:
        nonlocal assignment
        assignment = administration.stable_assignment(deployment.topic)
        if assignment is None or len(assignment) != members:
            return False
        shares = [len(partitions) for partitions in assignment]
        return sum(shares) == deployment.partitions and max(shares) - min(shares) <= 1

    wait_until("the workers share the partitions", balanced, timeout_s)
    return assignment or []
