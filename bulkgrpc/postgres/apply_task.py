"""Applies the staged rows of an atomic job and ends the job, in one transaction of its own.

The row of its task is locked from beginning to end, so that one worker at a time applies a job. The job's row is
locked only at the end: until then the job can be cancelled, and its late batches be reported, without waiting. Whoever
ends the job first decides. No lock outlasts the transaction, so that a connection pooler may be in between.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import psycopg

from bulkgrpc import faults, limits
from bulkgrpc.consume.apply_tasks import ApplyTask, Deferral, TaskKind
from bulkgrpc.consume.decode import DatasetNotFound
from bulkgrpc.consume.failures import Failure
from bulkgrpc.consume.job_delta import JobDelta
from bulkgrpc.datasets.definition import Dataset
from bulkgrpc.datasets.table_fit import Fit
from bulkgrpc.model import JobCounts, JobKey, JobState
from bulkgrpc.postgres import dedupe, ledger, rows_time, staged, statements
from bulkgrpc.postgres.catalog import get_dataset
from bulkgrpc.postgres.connection import Connection, rolled_back_after_a_failure
from bulkgrpc.postgres.ledger import JobRow
from bulkgrpc.postgres.pooler import begin_statements
from bulkgrpc.postgres.table_contract import TableContracts
from bulkgrpc.postgres.writers.row_errors import is_about_a_row
from bulkgrpc.postgres.writers.savepoint import in_savepoint

_SQL = statements.family("apply_tasks")
REASON_CHARS_MAX = 2000

Report = Callable[[int], bool]
"""Called with the number of staged rows that are applied so far; returns whether to continue."""


class NotApplied(Exception):
    """Another worker has the task, or its job has ended meanwhile: nothing was written."""


class RowsFailed(Exception):
    """The rows were not written, and not because of some of them. `__cause__` says why."""


@dataclass(frozen=True, slots=True)
class _Done:
    """What became of a job's staged rows. failure_reason: why the job fails, and nothing was written; else empty."""

    written: int = 0
    skipped: int = 0
    failure_reason: str = ""


def add(connection: Connection, rows_of: Mapping[JobKey, int], jobs: Mapping[uuid.UUID, JobRow]) -> None:
    """Leave the staged rows of jobs to tasks, in the caller's transaction. rows_of: how many, in the tasks' order."""
    values = {
        "create_days": [jobs[job.job_id].create_day for job in rows_of],
        "job_ids": [job.job_id for job in rows_of],
        "staged_rows": list(rows_of.values()),
    }
    connection.execute(_SQL["add"], values)


def next_task(connection: Connection, kind: TaskKind, served: Sequence[str]) -> ApplyTask | None:
    """See `ApplyTasks.next`."""
    values = {"kind": kind.value, "quick_rows_max": limits.QUICK_TASK_ROWS_MAX, "served": list(served)}
    row = connection.execute(_SQL["next"], values).fetchone()
    if row is None:
        return None
    job_id, tenant, create_day, dataset, version, staged_rows, found, attempts, void = row
    key = JobKey(tenant, job_id)
    return ApplyTask(key, create_day, dataset, version, staged_rows, TaskKind(found), attempts, void)


def drop(connection: Connection, task: ApplyTask) -> None:
    """Forget a task whose job has ended without it."""
    connection.execute(_SQL["drop_void"], _values(task))


def defer(connection: Connection, task: ApplyTask, failure: Failure, deferral: Deferral) -> None:
    """Store when a task is tried again, and why it waits."""
    values = {
        **_values(task),
        "wait_s": deferral.wait_s,
        "slow": deferral.slow,
        "block_cause": None if deferral.block is None else deferral.block.value,
        "sqlstate": failure.sqlstate,
        "reason": failure.message.replace("\0", "\\0")[:REASON_CHARS_MAX],
    }
    connection.execute(_SQL["defer"], values)


def save_progress(connection: Connection, task: ApplyTask, applied_rows: int) -> bool:
    """Store how many staged rows are applied; return whether the task is still to be finished.

    connection: another one than the one that applies them.
    """
    return connection.execute(_SQL["save_progress"], {**_values(task), "applied_rows": applied_rows}).rowcount > 0


def apply(connection: Connection, task: ApplyTask, rows_s: float, report: Report) -> JobCounts:
    """Apply a job's staged rows, end the job and forget the task; commit. Return what that adds to the job's counts.

    rows_s: how long the rows may take. Raises NotApplied, RowsFailed, psycopg.Error; nothing is written then, except
    where the connection broke during the commit: the task is there or it is not.
    """
    contracts = TableContracts(rows_s)
    with rolled_back_after_a_failure(connection), contracts.one_transaction(connection):
        connection.cursor().execute("; ".join(begin_statements(connection)).encode())
        if not connection.execute(_SQL["claim"], _values(task)).rowcount:
            raise NotApplied
        faults.reach("task_claimed")
        done = _apply_rows(connection, task, contracts, report)
        contracts.end_rows(connection)
        row = ledger.lock_job(connection, task.create_day, task.job.job_id)
        if row is None or row.state is not JobState.SEALED:
            raise NotApplied
        delta = JobDelta(failure_reason=done.failure_reason, sealed_at=datetime.now(UTC))
        delta.end_staging(row.staged, done.written, done.skipped)
        faults.reach("task_before_commit")
        connection.execute(_SQL["finish"], _values(task))
        counts = ledger.count_rows({task.job: delta}, {task.job.job_id: row})
        ledger.conclude(connection, ledger.Conclusion(counts=counts), commits=True)
    faults.reach("task_after_commit")
    return delta.counts


def _apply_rows(connection: Connection, task: ApplyTask, contracts: TableContracts, report: Report) -> _Done:
    """Move a job's staged rows into its table, all or none. Raises NotApplied, RowsFailed."""
    try:
        # The version that the job was opened with: the seal may have arrived on a stream with another.
        dataset = get_dataset(connection, task.dataset, task.dataset_version)
        if dataset is None:
            # It may return, as with a standby that lacked it.
            missing = task.dataset_version
            raise DatasetNotFound(f"version {missing} of dataset {task.dataset} is not in the registry", missing)
        try:
            with connection.transaction():
                done = _move(connection, task, dataset, contracts.check(connection, dataset), report)
                if done.failure_reason:
                    raise psycopg.Rollback
            return done
        except psycopg.Error as error:
            if not is_about_a_row(error):
                raise
            return _Done(failure_reason=f"the table refuses the job: {error.diag.message_primary or error}")
    except NotApplied:
        raise
    except Exception as error:
        raise RowsFailed(task.dataset) from error


def _move(connection: Connection, task: ApplyTask, dataset: Dataset, fit: Fit, report: Report) -> _Done:
    job_id = task.job.job_id
    # The plans that fit any job read all staged rows, if most of them are of one large job.
    connection.execute("SET LOCAL plan_cache_mode = force_custom_plan")
    if (over := staged.count_over(dataset, fit)) is not None:
        unfit = connection.execute(over, {"job_id": job_id}).fetchone()
        if unfit is not None and unfit[0]:
            return _Done(
                failure_reason=f"the job is atomic and {unfit[0]} of its records have texts that the table cuts"
            )
    waiting = task.staged_rows - _delete_known(connection, dataset, job_id)
    skipped, appends = 0, dataset.conflict_policy == "append"
    if fit.row_triggers and not appends:
        written, skipped = in_savepoint(connection, lambda: staged.apply_each(connection, dataset, fit, job_id))
    elif waiting <= limits.TASK_SLICE_ROWS:
        written = in_savepoint(connection, lambda: _apply_all(connection, dataset, fit, job_id))
    else:
        written = in_savepoint(connection, lambda: _apply_in_slices(connection, task, dataset, fit, waiting, report))
    if fit.triggers:
        # One may have deferred constraints again: an error must come here, where it fails the job.
        connection.execute("SET CONSTRAINTS ALL IMMEDIATE")
    if appends:
        # No row is left out for its key.
        skipped = waiting - written
    left = waiting - written - skipped
    if dataset.conflict_policy == "reject" and left:
        return _Done(
            failure_reason=f"the job is atomic and {left} of its keys are in the table already, or occur twice"
        )
    # Under `update` a record that a later one replaces counts as written, as in every writer.
    return _Done(waiting - skipped if dataset.conflict_policy == "update" else written, skipped)


def _apply_all(connection: Connection, dataset: Dataset, fit: Fit, job_id: uuid.UUID) -> int:
    """Write the rows that `staged.apply` chooses; return how many were written."""
    if dataset.operation is not None:
        connection.execute(staged.delete(dataset, fit), {"job_id": job_id})
    return connection.execute(staged.apply(dataset, fit), {"job_id": job_id}).rowcount


def _apply_in_slices(
    connection: Connection, task: ApplyTask, dataset: Dataset, fit: Fit, waiting: int, report: Report
) -> int:
    """Write the rows that `staged.apply` chooses, slice by slice; return how many were written.

    In the order of their keys over all slices, as every writer does: two transactions never wait for each other's keys.
    """
    if not report(0):
        raise NotApplied
    chosen = connection.execute(staged.order(dataset, fit, task.job.job_id)).rowcount
    row = connection.execute(staged.ORDERED_PAGES).fetchone()
    pages = 0 if row is None else int(row[0])
    step = max(1, pages * limits.TASK_SLICE_ROWS // max(chosen, 1))
    written = 0
    for page in range(0, pages, step):
        # What triggers set in the session is undone, and the statement has the time that is left.
        connection.execute(rows_time.restore(connection).encode(), prepare=False)
        if dataset.operation is not None:
            connection.execute(staged.delete_slice(dataset, page, page + step), prepare=False)
        written += connection.execute(staged.apply_slice(dataset, page, page + step), prepare=False).rowcount
        faults.reach("task_slice")
        if not report(waiting * min(page + step, pages) // pages):
            raise NotApplied
    return written


def _delete_known(connection: Connection, dataset: Dataset, job_id: uuid.UUID) -> int:
    """Delete the staged rows whose records are known, remember the others, and return how many were deleted."""
    if not dataset.dedupe_window_s:
        return 0
    generations = dedupe.lock(connection, dataset.name)
    values = {"job_id": job_id, "now": generations.now, "since": generations.since}
    return connection.execute(staged.delete_known(dataset, generations), values).rowcount


def _values(task: ApplyTask) -> dict[str, object]:
    return {"job_id": task.job.job_id, "create_day": task.create_day}
