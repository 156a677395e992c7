"""The housekeeping thread: does the rounds of `bulkgrpc.postgres.maintenance`, if no other worker does."""

from __future__ import annotations

import threading
from datetime import UTC, datetime

import psycopg
import structlog

from bulkgrpc import metrics
from bulkgrpc.kafka.topics import KafkaUnavailable, end_offsets
from bulkgrpc.postgres import ledger
from bulkgrpc.postgres.connection import connect
from bulkgrpc.postgres.dedupe import change_halves
from bulkgrpc.postgres.filters import make_filters
from bulkgrpc.postgres.maintenance import (
    count_overdue,
    delete_orphaned_staged_rows,
    expire_abandoned,
    is_maintenance_leader,
    keep_days,
)
from bulkgrpc.postgres.partitions import keep_partitions
from bulkgrpc.settings import WorkerSettings

log = structlog.get_logger()


class Maintenance:
    """Start once; ends when `stopping` is set. It is on no record's way: a round that fails is tried again."""

    def __init__(self, settings: WorkerSettings, stopping: threading.Event) -> None:
        self._settings = settings
        self._stopping = stopping
        self._connection: ledger.Connection | None = None
        self._thread = threading.Thread(target=self._run, name="housekeeper", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def _run(self) -> None:
        wait_s = 0.0
        while not self._stopping.wait(wait_s):
            wait_s = self._settings.maintenance_interval_s
            try:
                if self._connection is None:
                    self._connection = connect(self._settings.postgres, "bulkgrpc-maintenance")
                if is_maintenance_leader(self._connection):
                    self._round(self._connection)
                else:
                    self._disconnect()
            except psycopg.Error as error:
                log.warning("maintenance_failed", error=str(error).strip())
                self._disconnect()
            except Exception:
                # Whatever it is: a thread that ended would keep the lock, and nobody would keep house any more.
                log.exception("maintenance_failed")
                self._disconnect()
        self._disconnect()

    def _round(self, connection: ledger.Connection) -> None:
        """Do every chore; one that fails is tried again next time, and holds up no other."""
        chores = (
            self._keep_days,
            self._keep_partitions,
            self._expire_abandoned,
            delete_orphaned_staged_rows,
            change_halves,
            make_filters,
            self._count_overdue,
        )
        for chore in chores:
            try:
                chore(connection)
            except (psycopg.Error, KafkaUnavailable) as error:
                log.warning("maintenance_failed", chore=chore.__name__.strip("_"), error=str(error).strip())
                if connection.closed:
                    raise

    def _keep_days(self, connection: ledger.Connection) -> None:
        keep_days(connection, self._settings.retention_days)

    def _keep_partitions(self, connection: ledger.Connection) -> None:
        for reason in keep_partitions(connection, datetime.now(UTC).date()).not_made:
            log.warning("partition_not_made", reason=reason)

    def _expire_abandoned(self, connection: ledger.Connection) -> None:
        ends = end_offsets(self._settings)
        expired = expire_abandoned(connection, self._settings.topic, ends, self._settings.abandoned_after_s)
        metrics.jobs_abandoned.add(expired)
        if expired:
            log.warning("jobs_abandoned", expired=expired)

    def _count_overdue(self, connection: ledger.Connection) -> None:
        overdue = count_overdue(connection)
        metrics.jobs_overdue.set(overdue)
        if overdue:
            log.warning("jobs_late", overdue=overdue)

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None
