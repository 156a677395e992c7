"""The housekeeping thread: does the rounds of `bulkgrpc.store.housekeeping`, if no other worker does."""

from __future__ import annotations

import threading
from datetime import UTC, datetime

import psycopg
import structlog

from bulkgrpc import metrics
from bulkgrpc.backbone.topics import BackboneUnavailable, end_offsets
from bulkgrpc.settings import WorkerSettings
from bulkgrpc.store import ledger
from bulkgrpc.store.connection import connect
from bulkgrpc.store.dedupe import change_halves
from bulkgrpc.store.filters import make_filters
from bulkgrpc.store.housekeeping import count_overdue, expire_abandoned, keep_days, may_keep_house, sweep_held
from bulkgrpc.store.partitions import keep_partitions

log = structlog.get_logger()


class Housekeeper:
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
            wait_s = self._settings.housekeeping_s
            try:
                if self._connection is None:
                    self._connection = connect(self._settings.postgres, "bulkgrpc-housekeeper")
                if may_keep_house(self._connection):
                    self._round(self._connection)
                else:
                    self._disconnect()
            except psycopg.Error as error:
                log.warning("housekeeping_failed", error=str(error).strip())
                self._disconnect()
        self._disconnect()

    def _round(self, connection: ledger.Connection) -> None:
        expired = 0
        try:
            ends = end_offsets(self._settings)
            expired = expire_abandoned(connection, self._settings.topic, ends, self._settings.abandoned_after_s)
        except BackboneUnavailable as error:
            log.warning("housekeeping_failed", error=str(error))
        sweep_held(connection)
        change_halves(connection)
        make_filters(connection)
        overdue = count_overdue(connection)
        metrics.jobs_overdue.set(overdue)
        metrics.jobs_abandoned.add(expired)
        if expired or overdue:
            log.warning("jobs_late", expired=expired, overdue=overdue)
        keep_days(connection, self._settings.retention_days)
        kept = keep_partitions(connection, datetime.now(UTC).date())
        for reason in kept.not_made:
            log.warning("partition_not_made", reason=reason)

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None
