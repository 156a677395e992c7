"""Maintenance tasks of one worker: days of job tables, abandoned jobs, orphaned staged rows, overdue jobs."""

from __future__ import annotations

from collections.abc import Mapping

import psycopg
from psycopg import sql

from bulkgrpc.consume.losses import ways_out
from bulkgrpc.model import ENDS_WITHIN_S, JobState
from bulkgrpc.postgres import staged, statements
from bulkgrpc.postgres.connection import Connection

_SQL = statements.family("maintenance")
_JOBS = statements.family("jobs")
JOBS_PER_ROUND_MAX = 1000
ROWS_PER_DELETE_MAX = 50_000
INCOMPLETE = (
    "INCOMPLETE: what was acknowledged from batch {} on is neither written nor parked, and Kafka has no more of it: "
    "an earlier release stored it as dead letters, or it is lost; {}"
)
_LOCK_TIMEOUT = "SET LOCAL lock_timeout = '500ms'"
"""A table that somebody locks is left for the next round."""


def is_maintenance_leader(connection: Connection) -> bool:
    """Return whether this session is the maintenance leader; it stays so until it ends."""
    row = connection.execute(_SQL["try_lock"]).fetchone()
    return row is not None and bool(row[0])


def expire_abandoned(
    connection: Connection, topic: str, end_offsets: Mapping[int, int], abandoned_after_s: float
) -> int:
    """End open jobs without a batch for `abandoned_after_s`, and sealed ones that lack one; return how many.

    A sealed job ends as FAILED, and can be opened again: what it lacks was acknowledged. end_offsets: end of Kafka's
    log of each partition, read before this call. A job with a partition that is not applied up to there may have
    unapplied batches, and is not ended.
    """
    values = {
        "topic": topic,
        "partitions": list(end_offsets),
        "end_offsets": list(end_offsets.values()),
        "abandoned_after_s": abandoned_after_s,
        "jobs_max": JOBS_PER_ROUND_MAX,
    }
    with connection.transaction():
        abandoned = connection.execute(_SQL["abandoned_jobs"], values).fetchall()
        for job_id, tenant, state, missing_from, next_sequence in abandoned:
            ended = {"job_id": job_id, "tenant": tenant, "state": JobState.EXPIRED.value}
            if state == JobState.OPEN:
                connection.execute(_JOBS["end_job"], ended)
            else:
                reason = INCOMPLETE.format(missing_from, ways_out(next_sequence))
                connection.execute(_SQL["fail_incomplete"], {**ended, "reason": reason})
    return len(abandoned)


def delete_orphaned_staged_rows(connection: Connection) -> int:
    """Delete the staged rows of ended atomic jobs, ROWS_PER_DELETE_MAX per transaction; return how many."""
    deleted = 0
    for dataset, version in connection.execute(_SQL["staged_datasets"]).fetchall():
        statement = staged.delete_orphaned(staged.StagedTable(dataset, version))
        try:
            while count := _delete(connection, statement):
                deleted += count
        except psycopg.Error:
            if connection.closed:
                raise
            # Whatever the error is: the staged rows of other datasets do not depend on it.
    return deleted


def _delete(connection: Connection, statement: sql.Composed) -> int:
    with connection.transaction():
        connection.execute(_LOCK_TIMEOUT)
        return connection.execute(statement, {"rows_max": ROWS_PER_DELETE_MAX}).rowcount


def count_overdue(connection: Connection) -> int:
    """Return how many sealed jobs have not ended in time."""
    row = connection.execute(_SQL["count_overdue"], {"ends_within_s": ENDS_WITHIN_S}).fetchone()
    return 0 if row is None else int(row[0])


def maintain_days(connection: Connection, retention_days: int) -> None:
    """Create the days' partitions that are needed next and drop those past retention.

    Raises psycopg.errors.LockNotAvailable if a partition is in use: nothing is done then; call again later.
    """
    with connection.transaction():
        connection.execute(_SQL["maintain_days"], {"retention_days": retention_days})
