"""The housekeeping thread: does the rounds of `bulkgrpc.store.housekeeping`, if no other worker does."""

from __future__ import annotations

import threading

import psycopg
import structlog

from bulkgrpc import metrics
from bulkgrpc.settings import WorkerSettings
from bulkgrpc.store import ledger
from bulkgrpc.store.connection import connect
from bulkgrpc.store.housekeeping import keep_house, may_keep_house

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
        while not self._stopping.wait(self._settings.housekeeping_s):
            try:
                self._round()
            except psycopg.Error as error:
                log.warning("housekeeping_failed", error=str(error).strip())
                self._disconnect()
        self._disconnect()

    def _round(self) -> None:
        if self._connection is None:
            self._connection = connect(self._settings.postgres, "bulkgrpc-housekeeper")
        if not may_keep_house(self._connection):
            self._disconnect()
            return
        done = keep_house(self._connection, self._settings.retention_days, self._settings.abandoned_after_s)
        metrics.jobs_overdue.set(done.overdue)
        metrics.jobs_abandoned.add(done.expired)
        if done.expired or done.overdue:
            log.warning("jobs_late", expired=done.expired, overdue=done.overdue)

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None
