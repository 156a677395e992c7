"""Reverting a job: the rows that it wrote are removed, and only those."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import structlog

from bulkgrpc.datasets.definition import Dataset
from bulkgrpc.errors import NotNow, Reason, Unavailable
from bulkgrpc.ingest.identity import Caller
from bulkgrpc.ingest.jobs import own_key
from bulkgrpc.ingest.paging import revert_page_start, token_after_page
from bulkgrpc.ingest.ports import DatasetCatalog, JobStore, LockTimeout, PostgresUnavailable
from bulkgrpc.ingest.refusals import job_not_found, postgres_unavailable
from bulkgrpc.model import Job, JobKey, JobState

VERSIONS_MAX = 1000
_log = structlog.get_logger()


class RowsRefused(Exception):
    """The table refuses that its rows are read or removed; `str()` is why, and nothing of the transaction was done."""


class JobNotEnded(Exception):
    """A job that had ended was opened again, or deleted: nothing of the transaction was done."""


@dataclass(frozen=True, slots=True)
class Part:
    """A part of a table. rows: of the job in it. next_page: where the next part begins, 0 if there is none."""

    rows: int
    next_page: int


class RowsOfJobs(Protocol):
    """The rows of tables, by the job that wrote them. Methods raise PostgresUnavailable, LockTimeout."""

    async def part(self, key: JobKey, dataset: Dataset, from_page: int, *, removes: bool) -> Part:
        """Count, or remove, the rows of a job in a part of the table. A job with rows removed is not opened again.

        dataset: with provenance. from_page: 0 for the first part. Raises RowsRefused, and JobNotEnded if there are rows
        to remove and the job was opened again, or deleted, meanwhile.
        """


@dataclass(frozen=True, slots=True)
class RevertedPart:
    """What a call did. table: as in SQL. rows: removed, or counted. next_page_token: "" after the last part."""

    job: Job
    table: str
    rows: int
    next_page_token: str


class Reverts:
    """Removes what jobs wrote. See the RPC for what is refused, and why."""

    def __init__(self, jobs: JobStore, catalog: DatasetCatalog, rows: RowsOfJobs) -> None:
        self._jobs = jobs
        self._catalog = catalog
        self._rows = rows

    async def revert(self, caller: Caller, name: str, page_token: str, *, validate_only: bool) -> RevertedPart:
        """Remove the rows of the caller's job from a part of its table; with `validate_only` count them.

        Raises Invalid, NotFound (JOB_NOT_FOUND), NotNow (JOB_NOT_ENDED, JOB_NOT_REVERTIBLE), Unavailable
        (POSTGRES_UNAVAILABLE, TABLE_BUSY).
        """
        key, from_page = own_key(caller, name, "name"), revert_page_start(page_token)
        try:
            job, dataset = await self._find(key)
            if not validate_only and not page_token:
                _log.info("job_revert_begun", job=key.name, table=dataset.table)
            part = await self._rows.part(key, dataset, from_page, removes=not validate_only)
        except JobNotEnded as error:
            raise _not_ended(key, JobState.OPEN) from error
        except RowsRefused as error:
            raise _refused(key, str(error)) from error
        except LockTimeout as error:
            raise Unavailable(
                Reason.TABLE_BUSY,
                f"a transaction locks rows of {key.name}, or other jobs are reverted, for longer than 2 s: retry",
            ) from error
        except PostgresUnavailable as error:
            raise postgres_unavailable(error) from error
        if not validate_only and part.rows:
            _log.info("job_rows_removed", job=key.name, table=dataset.table, rows=part.rows)
        token = token_after_page(part.next_page) if part.next_page else ""
        return RevertedPart(job, dataset.table, part.rows, token)

    async def _find(self, key: JobKey) -> tuple[Job, Dataset]:
        """Return a job that can be reverted, and its dataset. Raises NotFound, NotNow."""
        job = await self._jobs.get_job(key)
        if job is None:
            raise job_not_found(key)
        if not job.state.ended:
            raise _not_ended(key, job.state)
        name, number = job.spec.dataset, job.spec.dataset_version
        versions = [found.dataset for found in await self._catalog.versions(name, VERSIONS_MAX)]
        dataset = next((one for one in versions if one.version == number), None)
        if dataset is None:
            raise _refused(key, f"dataset {name} was deleted since, and its table may be another one")
        if dataset.provenance is None:
            raise _refused(
                key,
                f"version {number} of dataset {name} has no option `provenance`: its rows do not say which job "
                "wrote them",
            )
        if any(one.conflict_policy == "update" for one in versions):
            raise _refused(
                key, f"dataset {name} has the conflict policy update, and the values that the job replaced are not kept"
            )
        return job, dataset


def _not_ended(key: JobKey, state: JobState) -> NotNow:
    return NotNow(Reason.JOB_NOT_ENDED, f"{key.name} is {state.name}: wait until it has ended, or cancel it first")


def _refused(key: JobKey, why: str) -> NotNow:
    return NotNow(Reason.JOB_NOT_REVERTIBLE, f"{key.name} cannot be reverted: {why}", field="name")
