"""What must be done now and then, by one worker: days made and dropped, abandoned jobs ended, overdue ones counted."""

from __future__ import annotations

from dataclasses import dataclass

from bulkgrpc.store import held, statements
from bulkgrpc.store.ledger import Connection
from bulkgrpc.words import ENDS_WITHIN_S, JobState

_SQL = statements.family("housekeeping")
_JOBS = statements.family("jobs")
JOBS_A_ROUND_MAX = 1000


@dataclass(frozen=True, slots=True)
class Round:
    """What a round did: jobs ended as EXPIRED; and found: jobs that should have ended."""

    expired: int
    overdue: int


def may_keep_house(connection: Connection) -> bool:
    """Tell whether this session is the one that keeps house; it is until it ends."""
    row = connection.execute(_SQL["try_lock"]).fetchone()
    return row is not None and bool(row[0])


def keep_house(connection: Connection, retention_days: int, abandoned_after_s: float) -> Round:
    """Do a round.

    retention_days: days for which what is known of jobs is kept. abandoned_after_s: how long nothing may come for an
    open job. Raises psycopg.Error if PostgreSQL refuses or is away.
    """
    connection.execute(_SQL["keep_days"], {"retention_days": retention_days})
    limits = {"abandoned_after_s": abandoned_after_s, "jobs_max": JOBS_A_ROUND_MAX}
    with connection.transaction():
        abandoned = connection.execute(_SQL["abandoned_jobs"], limits).fetchall()
        for job_id, dataset, version, atomic in abandoned:
            if atomic:
                connection.execute(held.discard(held.HeldTable(dataset, version)), {"job_id": job_id})
            connection.execute(_JOBS["end_job"], {"job_id": job_id, "state": JobState.EXPIRED.value})
    row = connection.execute(_SQL["count_overdue"], {"ends_within_s": ENDS_WITHIN_S}).fetchone()
    return Round(len(abandoned), 0 if row is None else int(row[0]))
