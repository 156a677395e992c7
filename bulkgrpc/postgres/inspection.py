"""Queries that check from outside what the service wrote: jobs, offsets, rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from psycopg import sql

from bulkgrpc.datasets.ddl import table
from bulkgrpc.datasets.definition import Dataset
from bulkgrpc.model import JobState
from bulkgrpc.postgres.connection import Connection

# States from SUCCEEDED on are final.
_ENDED = """
    SELECT count(*) FILTER (WHERE state >= 3), coalesce(sum(written), 0)
    FROM bulk.jobs WHERE idempotency_key = %s
"""
_TOTALS = """
    SELECT count(*) FILTER (WHERE state = %s), sum(accepted), sum(written), sum(duplicate), sum(rejected)
    FROM bulk.jobs WHERE idempotency_key = %s
"""
_OFFSETS = "SELECT partition, next_offset FROM bulk.offsets WHERE topic = %s"


def ended_jobs_and_written_rows(connection: Connection, idempotency_key: str) -> tuple[int, int]:
    """Return, for all tenants' jobs with this key, how many have ended and how many rows they wrote."""
    row = connection.execute(_ENDED, (idempotency_key,)).fetchone()
    return (int(row[0]), int(row[1])) if row else (0, 0)


def job_totals(connection: Connection, idempotency_key: str, state: JobState) -> tuple[int, int, int, int, int]:
    """Return, for all tenants' jobs with this key: jobs in `state`; records accepted, written, duplicate, rejected."""
    row = connection.execute(_TOTALS, (state, idempotency_key)).fetchone() or (0, 0, 0, 0, 0)
    jobs, accepted, written, duplicate, rejected = (int(value or 0) for value in row)
    return jobs, accepted, written, duplicate, rejected


def next_offsets(connection: Connection, topic: str) -> dict[int, int]:
    """Return the ledger's next offset of each partition of a topic."""
    return {int(partition): int(offset) for partition, offset in connection.execute(_OFFSETS, (topic,))}


def row_count(connection: Connection, dataset: Dataset) -> int:
    """Return the number of rows in a dataset's table."""
    row = connection.execute(sql.SQL("SELECT count(*) FROM {}").format(table(dataset))).fetchone()
    return int(row[0]) if row else 0


def row_lookup(connection: Connection, dataset: Dataset) -> Callable[[Sequence[object]], bool]:
    """Return a function that reports whether a primary key is in a dataset's table, by one prepared statement.

    The key's values are in the order of `dataset.primary_key`.
    """
    conditions = sql.SQL(" AND ").join(sql.SQL("{} = %s").format(sql.Identifier(name)) for name in dataset.primary_key)
    select = sql.SQL("SELECT FROM {} WHERE {}").format(table(dataset), conditions).as_bytes(connection)
    return lambda key: connection.execute(select, key, prepare=True).rowcount > 0
