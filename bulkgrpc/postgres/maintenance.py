"""Maintenance tasks of one worker: days of job tables, abandoned jobs, orphaned staged rows, overdue jobs."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from contextlib import suppress

import psycopg
from psycopg import sql

from bulkgrpc.consume.losses import ways_out
from bulkgrpc.model import ENDS_WITHIN_S, STAGED_ROWS_PER_S_MIN, JobState
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


def acquire_lease(connection: Connection, holder: uuid.UUID, lease_s: float) -> bool:
    """Acquire or renew the lease of the maintenance leader for `lease_s`; return whether `holder` is the leader."""
    return connection.execute(_SQL["acquire_lease"], {"holder": holder, "lease_s": lease_s}).rowcount > 0


def release_lease(connection: Connection, holder: uuid.UUID) -> None:
    """End the lease, if `holder` has it."""
    connection.execute(_SQL["release_lease"], {"holder": holder})


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


def delete_orphaned_staged_rows(connection: Connection) -> None:
    """Delete the staged rows of ended atomic jobs, ROWS_PER_DELETE_MAX per transaction.

    A table that has none of others is truncated: that leaves nothing to vacuum, however many rows there were.
    """
    for dataset, version in connection.execute(_SQL["staged_datasets"]).fetchall():
        table = staged.StagedTable(dataset, version)
        statement = staged.delete_orphaned(table)
        try:
            _truncate(connection, table)
            while _delete(connection, statement):
                pass
        except psycopg.Error:
            if connection.closed:
                raise
            # Whatever the error is: the staged rows of other datasets do not depend on it.


def _truncate(connection: Connection, table: staged.StagedTable) -> None:
    """Empty a table of staged rows, unless a transaction uses it or a job that may have rows in it has not ended."""
    values = {"dataset": table.dataset, "dataset_version": table.version}
    if not connection.execute(staged.any_of(table)).rowcount:
        return
    with suppress(psycopg.errors.LockNotAvailable, psycopg.errors.InsufficientPrivilege), connection.transaction():
        # Not waited for: chunks would wait behind it.
        connection.execute(staged.lock_alone(table))
        # Under the lock: what other transactions have staged is visible, and so are their jobs.
        row = connection.execute(_SQL["is_staging"], values).fetchone()
        if row is not None and not row[0]:
            connection.execute(staged.truncate(table))


def _delete(connection: Connection, statement: sql.Composed) -> int:
    with connection.transaction():
        connection.execute(_LOCK_TIMEOUT)
        return connection.execute(statement, {"rows_max": ROWS_PER_DELETE_MAX}).rowcount


def count_overdue(connection: Connection) -> int:
    """Return how many sealed jobs have not ended in time."""
    row = connection.execute(
        _SQL["count_overdue"], {"ends_within_s": ENDS_WITHIN_S, "staged_rows_per_s_min": STAGED_ROWS_PER_S_MIN}
    ).fetchone()
    return 0 if row is None else int(row[0])


def maintain_days(connection: Connection, retention_days: int) -> None:
    """Create the days' partitions that are needed next and drop those past retention.

    Raises psycopg.errors.LockNotAvailable if a partition is in use: nothing is done then; call again later.
    """
    with connection.transaction():
        connection.execute(_SQL["maintain_days"], {"retention_days": retention_days})
