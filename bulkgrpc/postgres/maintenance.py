"""What must be done now and then, by one worker: days made and dropped, abandoned jobs ended, overdue ones counted."""

from __future__ import annotations

from collections.abc import Mapping

from bulkgrpc.model import ENDS_WITHIN_S, JobState
from bulkgrpc.postgres import staged, statements
from bulkgrpc.postgres.ledger import Connection

_SQL = statements.family("maintenance")
_JOBS = statements.family("jobs")
JOBS_A_ROUND_MAX = 1000
ROWS_A_SWEEP_MAX = 50_000


def is_maintenance_leader(connection: Connection) -> bool:
    """Tell whether this session is the one that keeps house; it is until it ends."""
    row = connection.execute(_SQL["try_lock"]).fetchone()
    return row is not None and bool(row[0])


def expire_abandoned(
    connection: Connection, topic: str, end_offsets: Mapping[int, int], abandoned_after_s: float
) -> int:
    """End open jobs of which nothing came for `abandoned_after_s`; return how many.

    end_offsets: of each partition, where Kafka's log ended before this was called: a job one of whose partitions is not
    applied up to there may have batches that are still to come, and is left.
    """
    values = {
        "topic": topic,
        "partitions": list(end_offsets),
        "end_offsets": list(end_offsets.values()),
        "abandoned_after_s": abandoned_after_s,
        "jobs_max": JOBS_A_ROUND_MAX,
    }
    with connection.transaction():
        abandoned = connection.execute(_SQL["abandoned_jobs"], values).fetchall()
        for job_id, tenant in abandoned:
            ended = {"job_id": job_id, "tenant": tenant, "state": JobState.EXPIRED.value}
            connection.execute(_JOBS["end_job"], ended)
    return len(abandoned)


def delete_orphaned_staged_rows(connection: Connection) -> int:
    """Delete what ended atomic jobs held, in pieces, a transaction each; return how many rows."""
    swept = 0
    for dataset, version in connection.execute(_SQL["staged_datasets"]).fetchall():
        statement = staged.sweep(staged.StagedTable(dataset, version))
        while (count := connection.execute(statement, {"rows_max": ROWS_A_SWEEP_MAX}).rowcount) > 0:
            swept += count
    return swept


def count_overdue(connection: Connection) -> int:
    """Return how many jobs should have ended by now."""
    row = connection.execute(_SQL["count_overdue"], {"ends_within_s": ENDS_WITHIN_S}).fetchone()
    return 0 if row is None else int(row[0])


def keep_days(connection: Connection, retention_days: int) -> None:
    """Make the days to come and drop those whose time is over.

    Raises psycopg.errors.LockNotAvailable if somebody is at one of them: nothing is done then, try again.
    """
    with connection.transaction():
        connection.execute(_SQL["keep_days"], {"retention_days": retention_days})
