"""Waiting for what other processes do, and counting exactly what came of it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import psycopg
from confluent_kafka import ConsumerGroupState
from confluent_kafka.admin import AdminClient
from psycopg import sql

from bulkgrpc.bench.ground import Place
from bulkgrpc.bench.model import BenchFailed
from bulkgrpc.datasets.ddl import table
from bulkgrpc.datasets.definition import Dataset
from bulkgrpc.model import JobCounts, JobState

Connection = psycopg.Connection[tuple[Any, ...]]
EVERY_S = 0.01
_ENDED = "SELECT count(*) FROM bulk.jobs WHERE idempotency_key = %s AND state >= 3"
_TOTALS = """
    SELECT count(*) FILTER (WHERE state = %s), sum(accepted), sum(written), sum(duplicate), sum(rejected)
    FROM bulk.jobs WHERE idempotency_key = %s
"""


class Needed(Protocol):
    """A process without which what is waited for never comes."""

    def check(self) -> None:
        """Raise BenchFailed if it failed."""


def until(what: str, holds: Callable[[], bool], within_s: float, needed: Sequence[Needed] = ()) -> None:
    """Return as soon as `holds`. Raises BenchFailed after `within_s`, or when one of `needed` failed."""
    deadline_s, pause = time.monotonic() + within_s, threading.Event()
    while not holds():
        for process in needed:
            process.check()
        if time.monotonic() > deadline_s:
            raise BenchFailed(f"{what}: not within {within_s:.0f} s")
        pause.wait(EVERY_S)


def jobs_end(
    connection: Connection, run: str, jobs: int, within_s: float = 600.0, needed: Sequence[Needed] = ()
) -> None:
    """Wait until so many jobs with the idempotency key `run` have ended, committed and visible to another session."""

    def ended() -> bool:
        row = connection.execute(_ENDED, (run,)).fetchone()
        return row is not None and row[0] >= jobs

    until("the jobs end", ended, within_s, needed)


def check_counts(connection: Connection, dataset: Dataset, run: str, jobs: int, counts: JobCounts) -> None:
    """Check that every job ended well, that together they count exactly so, and the table too. Raises BenchFailed.

    The table must have what was written and what was there before.
    """
    state = JobState.PARTIALLY_SUCCEEDED if counts.rejected else JobState.SUCCEEDED
    found = connection.execute(_TOTALS, (state, run)).fetchone()
    expected = (jobs, counts.accepted, counts.written, counts.duplicate, counts.rejected)
    if found is None or tuple(int(value or 0) for value in found) != expected:
        raise BenchFailed(
            f"jobs ({state.name}, accepted, written, duplicate, rejected) are {found}, must be {expected}"
        )
    check_table(connection, dataset, counts.written + counts.duplicate)


def check_table(connection: Connection, dataset: Dataset, rows: int) -> None:
    """Check that a table has exactly `rows` rows. Raises BenchFailed."""
    found = connection.execute(sql.SQL("SELECT count(*) FROM {}").format(table(dataset))).fetchone()
    if found != (rows,):
        raise BenchFailed(f"table {dataset.name} has {found and found[0]} rows, must have {rows}")


def group_settles(place: Place, members: int, within_s: float = 60.0) -> None:
    """Wait until the consumer group has so many members that share all partitions evenly."""
    admin = AdminClient({"bootstrap.servers": place.kafka, "log_level": 0})

    def settled() -> bool:
        group = admin.describe_consumer_groups([place.topic])[place.topic].result(10)
        shares = [len(member.assignment.topic_partitions) for member in group.members]
        stable = group.state == ConsumerGroupState.STABLE and len(shares) == members
        return stable and sum(shares) == place.partitions and max(shares) - min(shares) <= 1

    until("the workers share the partitions", settled, within_s)
