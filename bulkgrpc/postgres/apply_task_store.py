"""The worker's `ApplyTasks` on PostgreSQL: a connection for the rows, and one that stores the progress meanwhile."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial

import psycopg

from bulkgrpc import limits
from bulkgrpc.consume.apply_tasks import ApplyTask, Deferral, TaskBlock, TaskFailed, TaskKind
from bulkgrpc.consume.failures import BlockCause, Failure, Where
from bulkgrpc.consume.ports import StoreError
from bulkgrpc.model import STAGED_ROWS_PER_S_MIN, JobCounts
from bulkgrpc.postgres import apply_task, parked
from bulkgrpc.postgres.connection import Connection, Deadlines
from bulkgrpc.postgres.worker_ports import WorkerSession, failure_of, translated

CANCEL_TIMEOUT_S = 2.0
_DEADLINES = Deadlines(limits.STATEMENT_TIMEOUT_S, limits.IDLE_IN_TRANSACTION_S)
"""The transaction has no limit as a whole: its statements that write rows have one together."""
_SETTINGS = {"client_connection_check_interval": "2s"}
"""The backend of a worker that was killed ends its statement, and lets the task go, instead of finishing in vain."""


class PostgresApplyTasks:
    """Implements `ApplyTasks`."""

    def __init__(self, postgres: str) -> None:
        self._session = WorkerSession(postgres, "bulkgrpc-worker-apply", _DEADLINES, _SETTINGS)
        self._progress = WorkerSession(postgres, "bulkgrpc-worker-apply-progress")
        self._applying: Connection | None = None

    def next(self, kind: TaskKind, served: Sequence[str]) -> ApplyTask | None:
        """Return the task of a kind to try next; None if there is none that no other worker is at."""
        with self._translated() as connection:
            return apply_task.next_task(connection, kind, served)

    def apply(self, task: ApplyTask) -> JobCounts | None:
        """Apply a job's staged rows and end the job, in one transaction. Raises TaskFailed."""
        rows_s = limits.STATEMENT_TIMEOUT_S + task.staged_rows / STAGED_ROWS_PER_S_MIN
        if task.kind is TaskKind.SMALL:
            rows_s = limits.ROWS_TIMEOUT_S
        where = Where.CONNECT
        try:
            self._applying = self._session.open()
            where = Where.LEDGER
            return apply_task.apply(self._applying, task, rows_s, partial(self._report, task))
        except apply_task.NotApplied:
            return None
        except apply_task.RowsFailed as error:
            cause = error.__cause__ or error
            raise TaskFailed(failure_of(cause, Where.ROWS, task.dataset)) from error
        except Exception as error:
            # Any exception: one that is not PostgreSQL's is of this code, and must not end the thread either.
            raise TaskFailed(failure_of(error, where, task.dataset)) from error
        finally:
            self._applying = None

    def drop(self, task: ApplyTask) -> None:
        """Forget a void task."""
        with self._translated() as connection:
            apply_task.drop(connection, task)

    def defer(self, task: ApplyTask, failure: Failure, deferral: Deferral) -> None:
        """Store when a task is tried again and why it waits; block its dataset if that is for its table."""
        # Whatever failed may have broken the connection, or have changed its session.
        self._session.close()
        with self._translated() as connection:
            apply_task.defer(connection, task, failure, deferral)
            if deferral.block is TaskBlock.TABLE:
                parked.block_dataset(connection, task.dataset, BlockCause.TABLE, failure)

    def interrupt(self) -> None:
        """Let a running `apply` fail soon. Any thread may call it."""
        if (connection := self._applying) is not None:
            with suppress(psycopg.Error):
                connection.cancel_safe(timeout=CANCEL_TIMEOUT_S)

    def close(self) -> None:
        """Close the connections. The next call opens others."""
        self._session.close()
        self._progress.close()

    def _report(self, task: ApplyTask, applied_rows: int) -> bool:
        """Store the progress, and return whether the task is still to be finished; also if that cannot be known."""
        try:
            return apply_task.save_progress(self._progress.open(), task, applied_rows)
        except psycopg.Error:
            self._progress.close()
            return True

    @contextmanager
    def _translated(self) -> Iterator[Connection]:
        try:
            with translated():
                yield self._session.open()
        except StoreError:
            self.close()
            raise
