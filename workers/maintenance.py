"""The maintenance thread: runs the store's maintenance tasks in rounds, while this worker is the leader."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from datetime import UTC, datetime

import structlog

from bulkgrpc import metrics
from bulkgrpc.consume.ports import MaintenanceStore, RecordLogError, StoreError
from bulkgrpc.settings import WorkerSettings

log = structlog.get_logger()


class MaintenanceThread:
    """Start once; it ends when `stopping` is set. A task that fails is tried again in the next round.

    end_offsets: returns the end of each partition of the records topic. Raises RecordLogError.
    """

    def __init__(
        self,
        settings: WorkerSettings,
        store: MaintenanceStore,
        end_offsets: Callable[[], Mapping[int, int]],
        stopping: threading.Event,
    ) -> None:
        self._settings = settings
        self._store = store
        self._end_offsets = end_offsets
        self._stopping = stopping
        self._thread = threading.Thread(target=self._run, name="maintenance", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def join(self, timeout_s: float) -> None:
        """Wait until the thread has ended, `timeout_s` at most."""
        self._thread.join(timeout_s)

    def _run(self) -> None:
        wait_s = 0.0
        while not self._stopping.wait(wait_s):
            wait_s = self._settings.maintenance_interval_s
            try:
                if self._store.is_leader():
                    self._round()
                else:
                    self._store.close()
            except StoreError as error:
                log.warning("maintenance_failed", error=str(error))
                self._store.close()
            except Exception:
                # Any exception: a thread that ended would keep the leadership, and no worker would do the tasks.
                log.exception("maintenance_failed")
                self._store.close()
        self._store.close()

    def _round(self) -> None:
        """Run every task. One that fails does not delay the others."""
        tasks = (
            self._maintain_days,
            self._maintain_partitions,
            self._expire_abandoned,
            self._store.delete_orphaned_staged_rows,
            self._store.rotate_dedupe,
            self._store.build_filters,
            self._count_overdue,
        )
        for task in tasks:
            try:
                task()
            except (StoreError, RecordLogError) as error:
                log.warning("maintenance_task_failed", task=task.__name__.strip("_"), error=str(error))
                if not self._store.connected:
                    raise

    def _maintain_days(self) -> None:
        self._store.maintain_days(self._settings.retention_days)

    def _maintain_partitions(self) -> None:
        for reason in self._store.maintain_partitions(datetime.now(UTC).date()):
            log.warning("partition_not_created", reason=reason)

    def _expire_abandoned(self) -> None:
        expired = self._store.expire_abandoned(self._end_offsets(), self._settings.abandoned_after_s)
        metrics.jobs_abandoned.add(expired)
        if expired:
            log.warning("jobs_abandoned", expired=expired)

    def _count_overdue(self) -> None:
        overdue = self._store.count_overdue()
        metrics.jobs_overdue.set(overdue)
        if overdue:
            log.warning("jobs_overdue", overdue=overdue)
