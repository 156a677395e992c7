"""What the database shows after a run: the rows of the tables, the jobs, their rejections."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import psycopg
from psycopg import sql
from psycopg.rows import dict_row

from tests.blast.stand import Connection

Row = dict[str, Any]
_JOBS = "SELECT job_id::text, to_jsonb(j), end_time FROM bulk.jobs j WHERE job_id = ANY (%s::uuid[])"
_REJECTIONS = """
SELECT job_id::text, sequence, record_index, code, reason FROM bulk.rejections WHERE job_id = ANY (%s::uuid[])
"""
_UNENDED = "SELECT job_id::text FROM bulk.jobs WHERE job_id = ANY (%s::uuid[]) AND state < 3"


@dataclass(frozen=True, slots=True)
class JobOutcome:
    """A job's row. state: a number of JobState. skipped: rows that the table skipped."""

    state: int
    accepted: int
    written: int
    duplicate: int
    rejected: int
    expired: int
    skipped: int
    failure_reason: str
    end_time: datetime | None

    @property
    def ended(self) -> bool:
        """Whether the job has ended."""
        return self.state >= 3

    @property
    def total(self) -> int:
        """The records that are accounted for."""
        return self.written + self.duplicate + self.rejected + self.expired + self.skipped


@dataclass(frozen=True, slots=True)
class Rejected:
    """A rejection's position, code and reason."""

    sequence: int
    index: int
    code: str
    reason: str


@dataclass(frozen=True, slots=True)
class Evidence:
    """jobs, rejections: by job id. rows: by dataset and tenant; a dataset whose table cannot be read is in `unread`."""

    jobs: Mapping[str, JobOutcome]
    rejections: Mapping[str, Sequence[Rejected]]
    rows: Mapping[tuple[str, str], Sequence[Row]]
    unread: Mapping[str, str]


def collect(connection: Connection, job_ids: Sequence[str], tables: Sequence[str]) -> Evidence:
    """Read everything of a run."""
    rows: dict[tuple[str, str], list[Row]] = {}
    unread: dict[str, str] = {}
    for table in tables:
        try:
            for row in read_rows(connection, sql.SQL("SELECT * FROM {}").format(sql.Identifier("public", table))):
                rows.setdefault((table, row.pop("tenant")), []).append(row)
        except psycopg.Error as error:
            unread[table] = str(error)
    return Evidence(read_jobs(connection, job_ids), _rejections(connection, job_ids), rows, unread)


def read_rows(connection: Connection, query: sql.Composed | str) -> list[Row]:
    """Return rows exactly as they are stored; times are naive, in UTC."""
    with connection.cursor(binary=True, row_factory=dict_row) as cursor:
        found = cursor.execute(query).fetchall()
    for row in found:
        for name, value in row.items():
            if isinstance(value, datetime) and value.tzinfo is not None:
                row[name] = value.astimezone(UTC).replace(tzinfo=None)
            elif isinstance(value, bytes) and name == "mood":
                # The driver does not know the enum; in binary form its values are texts, too.
                row[name] = value.decode()
    return found


def read_jobs(connection: Connection, job_ids: Sequence[str]) -> dict[str, JobOutcome]:
    """Return what jobs report."""
    found = connection.execute(_JOBS, [list(job_ids)]).fetchall()
    return {job_id: _report(values, end_time) for job_id, values, end_time in found}


def unended(connection: Connection, job_ids: Sequence[str]) -> list[str]:
    """Return the jobs that have not ended, or are not known."""
    known = {job_id for job_id, *_ in connection.execute(_JOBS, [list(job_ids)])}
    open_jobs = [job_id for (job_id,) in connection.execute(_UNENDED, [list(job_ids)])]
    return [*open_jobs, *(job_id for job_id in job_ids if job_id not in known)]


def _report(values: Mapping[str, Any], end_time: datetime | None) -> JobOutcome:
    names = ("state", "accepted", "written", "duplicate", "rejected", "expired", "failure_reason")
    skipped = sum(count for name, count in values.items() if name.startswith("skipped"))
    return JobOutcome(skipped=skipped, end_time=end_time, **{name: values[name] for name in names})


def _rejections(connection: Connection, job_ids: Sequence[str]) -> dict[str, list[Rejected]]:
    found: dict[str, list[Rejected]] = {}
    for job_id, *rejected in connection.execute(_REJECTIONS, [list(job_ids)]):
        found.setdefault(job_id, []).append(Rejected(*rejected))
    return found
