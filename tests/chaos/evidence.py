"""The evidence of a run: the clients' history, what is in the tables, what the jobs report. Kept as one JSON file."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import psycopg

from bulkgrpc.model import JobKey
from bulkgrpc.postgres.connection import connect
from tests.chaos.datasets import BOUND, BOUND_IS_RIGHT, ROWS, TABLES
from tests.chaos.history import Event, History

__all__ = ["ROWS", "SET_UP", "Evidence", "JobReport", "Move", "clear", "collect", "job_id"]

_BATCHES = """
SELECT tenant, floor(value / %(rows)s)::bigint, count(*), count(DISTINCT value)
FROM chaos.readings GROUP BY 1, 2
"""
_JOBS = """
SELECT j.job_id::text, j.state, j.accepted, j.written, j.duplicate, j.rejected, j.expired,
       (SELECT count(*) FROM bulk.rejections r WHERE r.job_id = j.job_id), j.failure_reason
FROM bulk.jobs j
"""
_MOVES = "SELECT partition, from_offset, to_offset, owner_epoch FROM chaos.moves ORDER BY move_id"
_NUMBERS = {BOUND: f"CASE WHEN {BOUND_IS_RIGHT} THEN value ELSE -1 END AS value"}
"""A row with a wrong value in another column is one that no client sent."""
SET_UP = f"""
CREATE SCHEMA chaos;
CREATE TABLE chaos.moves (
  move_id bigint GENERATED ALWAYS AS IDENTITY,
  partition integer, from_offset bigint, to_offset bigint, owner_epoch bigint
);
CREATE FUNCTION chaos.note_move() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
BEGIN
  INSERT INTO chaos.moves (partition, from_offset, to_offset, owner_epoch)
  VALUES (new.partition, old.next_offset, new.next_offset, new.owner_epoch);
  RETURN NULL;
END $$;
CREATE TRIGGER note_move AFTER UPDATE ON bulk.offsets FOR EACH ROW
  WHEN (old.next_offset <> new.next_offset) EXECUTE FUNCTION chaos.note_move();
ALTER TABLE sensor_readings DROP CONSTRAINT sensor_readings_pkey;
ALTER TABLE fleet_readings DROP CONSTRAINT fleet_readings_pkey;
{"".join(f"CREATE INDEX ON {table} (tenant, value);" for table in TABLES.values())}
CREATE VIEW chaos.readings AS {
    " UNION ALL ".join(f"SELECT tenant, {_NUMBERS.get(name, 'value')} FROM {table}" for name, table in TABLES.items())
};
"""
"""Each change of the ledger is recorded in its own transaction, and only the service prevents duplicates.

But for the team's table, and the one whose records delete: their statements need the key. What is applied twice shows
in the counts of duplicates.
"""


@dataclass(frozen=True, slots=True)
class JobReport:
    """A job's row, and the number of rejections in its report. state: a number of JobState."""

    state: int
    accepted: int
    written: int
    duplicate: int
    rejected: int
    expired: int
    reported: int
    failure_reason: str = ""


@dataclass(frozen=True, slots=True)
class Move:
    """A commit that moved a partition's offset in the ledger."""

    partition: int
    from_offset: int
    to_offset: int
    owner_epoch: int


@dataclass(frozen=True, slots=True)
class Evidence:
    """Everything that the checker looks at.

    batches: by tenant and number (value // ROWS), rows found, and distinct ones among them. jobs: by job id.
    """

    events: Sequence[Event]
    batches: Mapping[tuple[str, int], tuple[int, int]]
    jobs: Mapping[str, JobReport]
    moves: Sequence[Move] = field(default_factory=tuple)

    def write(self, path: Path) -> None:
        """Write everything to a file that `load` reads."""
        document = {
            "events": [asdict(event) for event in self.events],
            "batches": [[*key, *value] for key, value in self.batches.items()],
            "jobs": {job: asdict(report) for job, report in self.jobs.items()},
            "moves": [asdict(move) for move in self.moves],
        }
        path.write_text(json.dumps(document))

    @classmethod
    def load(cls, path: Path) -> Evidence:
        """Read what `write` wrote."""
        document = json.loads(path.read_text())
        return cls(
            [Event(**event) for event in document["events"]],
            {(tenant, number): (rows, distinct) for tenant, number, rows, distinct in document["batches"]},
            {job: JobReport(**report) for job, report in document["jobs"].items()},
            [Move(**move) for move in document["moves"]],
        )


def job_id(tenant: str, key: str) -> str:
    """Return the id of a tenant's job."""
    return str(JobKey.derive(tenant, key).job_id)


def collect(postgres: str, history: History) -> Evidence:
    """Read history, tables and reports, all in one snapshot of the database."""
    with connect(postgres, "chaos-checker") as connection, connection.transaction():
        connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        batches = connection.execute(_BATCHES, {"rows": ROWS}).fetchall()
        jobs = connection.execute(_JOBS).fetchall()
        moves = connection.execute(_MOVES).fetchall()
    return Evidence(
        history.events(),
        {(tenant, number): (rows, distinct) for tenant, number, rows, distinct in batches},
        {row[0]: JobReport(*row[1:]) for row in jobs},
        [Move(*move) for move in moves],
    )


def clear(postgres: str) -> None:
    """Delete the rows and moves of a run whose evidence was collected; the jobs and the ledger stay."""
    with psycopg.connect(postgres, autocommit=True) as connection:
        connection.execute("SET lock_timeout = '10s'")
        connection.execute(f"TRUNCATE {', '.join(TABLES.values())}, chaos.moves, bulk.parked")
