"""The heartbeats of the ledger. Implements `bulkgrpc.consume.ports.Heartbeats`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from bulkgrpc.consume.heartbeat import Heartbeat, LedgerState, TookBack
from bulkgrpc.consume.ports import StoreError
from bulkgrpc.postgres import statements
from bulkgrpc.postgres.connection import Connection, connect
from bulkgrpc.postgres.worker_ports import translated

_SQL = statements.family("heartbeats")
RESTORES_MAX = 20


@dataclass(frozen=True, slots=True)
class Restore:
    """A restore as a worker noticed it. ledger, known: the last heartbeat of the ledger, and of Kafka, if any."""

    notice_time: datetime
    ledger: Heartbeat | None
    found: TookBack


def database_position(connection: Connection) -> str:
    """Return system identifier, timeline and position in the write-ahead log, for people."""
    row = connection.execute(_SQL["database_position"]).fetchone()
    return "" if row is None else str(row[0])


def state(connection: Connection, topic: str) -> LedgerState:
    """Return what the ledger has."""
    row = connection.execute(_SQL["state"], {"topic": topic}).fetchone()
    if row is None:
        raise StoreError("the ledger has no state")
    beat, beat_time, moved_at, database, partitions, next_offsets = row
    heartbeat = None if beat is None else Heartbeat(beat, beat_time, database)
    return LedgerState(heartbeat, dict(zip(partitions, next_offsets, strict=True)), moved_at)


def restores(connection: Connection, topic: str) -> Sequence[Restore]:
    """Return the restores that workers noticed, up to RESTORES_MAX, the last first."""
    rows = connection.execute(_SQL["restores"], {"topic": topic, "restores_max": RESTORES_MAX})
    return [_restore(*row) for row in rows]


class PostgresHeartbeats:
    """Implements `Heartbeats`, with a connection per call: so it finds the server that takes new connections."""

    def __init__(self, postgres: str, topic: str) -> None:
        self._postgres, self._topic = postgres, topic

    def state(self) -> LedgerState:
        """Return what the ledger has."""
        with translated(), self._connect() as connection:
            return state(connection, self._topic)

    def beat(self, server_start: datetime, last: int) -> Heartbeat | None:
        """Add a heartbeat and return it; None if the server is not the one that started then, or has one below `last`.

        One statement: else another server could take over before the heartbeat is added.
        """
        values = {"topic": self._topic, "server_start": server_start, "last": last}
        with translated(), self._connect() as connection:
            row = connection.execute(_SQL["beat"], values).fetchone()
        return None if row is None else Heartbeat(*row)

    def raise_to(self, number: int) -> None:
        """Add a heartbeat with a number above `number`."""
        with translated(), self._connect() as connection:
            connection.execute(_SQL["raise_to"], {"topic": self._topic, "number": number})

    def note(self, found: TookBack, ledger: LedgerState) -> None:
        """Store what a restore took back, for operators."""
        known, last = found.known, ledger.heartbeat
        values = {
            "topic": self._topic,
            "ledger_time": None if last is None else last.time,
            "ledger": "" if last is None else last.database,
            "known_time": None if known is None else known.time,
            "known": "" if known is None else known.database,
            "partitions": list(found.spans),
            "next_offsets": [start for start, _ in found.spans.values()],
            "known_offsets": [end for _, end in found.spans.values()],
        }
        with translated(), self._connect() as connection:
            connection.execute(_SQL["note_restore"], values)

    def _connect(self) -> Connection:
        return connect(self._postgres, "bulkgrpc-heartbeat")


def _restore(
    notice_time: datetime,
    ledger_time: datetime | None,
    ledger: str,
    known_time: datetime | None,
    known: str,
    *spans: Sequence[int],
) -> Restore:
    numbers, starts, ends = spans
    found = dict(zip(numbers, zip(starts, ends, strict=True), strict=True))
    last = None if ledger_time is None else Heartbeat(0, ledger_time, ledger)
    newest = None if known_time is None else Heartbeat(0, known_time, known)
    return Restore(notice_time, last, TookBack(newest, found))
