"""The worker's `MaintenanceStore` on PostgreSQL: one session, and the lease of the maintenance leader.

A leader that dies leaves its lease to expire. A round that outlasts the lease may run beside another leader's: every
task is a transaction that can be repeated, so that the lease only saves work.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import date
from typing import Final

import psycopg

from bulkgrpc.consume.ports import StoreUnavailable
from bulkgrpc.postgres import dedupe, filters, maintenance, partitions
from bulkgrpc.postgres.connection import Connection, connect
from bulkgrpc.postgres.worker_ports import translated

LEASE_S: Final = 30.0


class PostgresMaintenanceStore:
    """Implements `MaintenanceStore`. Every method but `close` raises StoreUnavailable, or StoreError.

    lease_s: how long the leader stays so without renewing it.
    """

    def __init__(self, postgres: str, topic: str, lease_s: float = LEASE_S) -> None:
        self._postgres, self._topic, self._lease_s = postgres, topic, lease_s
        self._holder = uuid.uuid4()
        self._session: Connection | None = None

    @property
    def connected(self) -> bool:
        """Whether there is a session that is not broken."""
        return self._session is not None and not self._session.closed

    def is_leader(self) -> bool:
        """Try to become the maintenance leader, or stay it; return whether this worker is the leader."""
        with self._translated():
            return maintenance.acquire_lease(self._connect(), self._holder, self._lease_s)

    def maintain_days(self, retention_days: int) -> None:
        """Create the day partitions that are needed next and drop those past retention."""
        with self._translated():
            maintenance.maintain_days(self._leader(), retention_days)

    def maintain_partitions(self, today: date) -> Sequence[str]:
        """Create the partitions of datasets' tables that are needed next; return why others could not be created."""
        with self._translated():
            return partitions.maintain_partitions(self._leader(), today).not_created

    def expire_abandoned(self, end_offsets: Mapping[int, int], abandoned_after_s: float) -> int:
        """End open jobs without a batch for `abandoned_after_s`, and sealed ones that lack one; return how many."""
        with self._translated():
            return maintenance.expire_abandoned(self._leader(), self._topic, end_offsets, abandoned_after_s)

    def delete_orphaned_staged_rows(self) -> None:
        """Delete staged rows of jobs that have ended."""
        with self._translated():
            maintenance.delete_orphaned_staged_rows(self._leader())

    def rotate_dedupe(self) -> None:
        """Rotate the hashes of each dataset whose previous generation has expired."""
        with self._translated():
            dedupe.rotate(self._leader())

    def build_filters(self) -> None:
        """Build the missing filters of previous generations of hashes."""
        with self._translated():
            filters.make_filters(self._leader())

    def count_overdue(self) -> int:
        """Return how many jobs are sealed and have not ended in time."""
        with self._translated():
            return maintenance.count_overdue(self._leader())

    def close(self) -> None:
        """Release the leadership and close the session."""
        if self._session is not None:
            with suppress(psycopg.Error):
                maintenance.release_lease(self._session, self._holder)
            self._session.close()
            self._session = None

    @contextmanager
    def _translated(self) -> Iterator[None]:
        """Raise as `translated` does. A session with a server that became read-only is closed, to reach the primary."""
        with translated():
            try:
                yield
            except psycopg.errors.ReadOnlySqlTransaction:
                self.close()
                raise

    def _connect(self) -> Connection:
        if self._session is None:
            self._session = connect(self._postgres, "bulkgrpc-maintenance")
        return self._session

    def _leader(self) -> Connection:
        # Never a new session: it would not be the leader.
        if self._session is None:
            raise StoreUnavailable("the maintenance session is closed")
        return self._session
