"""The ledger watch: a thread that beats, and notices that PostgreSQL restarted or that another server took over."""

from __future__ import annotations

import threading
import time
from collections.abc import Collection, Mapping
from datetime import datetime

import structlog

from bulkgrpc import metrics
from bulkgrpc.consume.heartbeat import Committed, Heartbeat, LedgerState, TookBack, taken_back
from bulkgrpc.consume.heartbeat_ports import GroupOffsets, Heartbeats
from bulkgrpc.consume.ports import RecordLogError, StoreError
from bulkgrpc.positions import Ownership

log = structlog.get_logger()

BEAT_EVERY_S = 5.0
COMPARES_WITHIN_S = 10.0
"""How long partitions wait for what the group committed. Then they are written, and a restore may not be noticed."""


class BeatingLedgerWatch:
    """Implements `bulkgrpc.consume.ports.LedgerWatch`. The thread ends when `stopping` is set.

    It does not beat on a server that the poll loop has not read its positions from: a beat would hide that the ledger
    came back older.
    """

    def __init__(self, heartbeats: Heartbeats, group: GroupOffsets, stopping: threading.Event) -> None:
        self._heartbeats, self._group, self._stopping = heartbeats, group, stopping
        self._thread = threading.Thread(target=self._run, name="ledger-watch", daemon=True)
        # Each is replaced as a whole, by one thread.
        self._server_starts: frozenset[datetime | None] = frozenset()
        self._last_beat = 0
        self._heartbeat: Heartbeat | None = None
        self._restarted = False
        self._unknown_since_s: float | None = None

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def watch(self, owned: Mapping[int, Ownership]) -> None:
        """Watch over these positions from the next round on."""
        self._server_starts = frozenset(one.server_start for one in owned.values())

    def restarted(self) -> bool:
        """Return, once, whether positions that are watched were read from another server, or before its restart."""
        found, self._restarted = self._restarted, False
        return found

    def heartbeat(self) -> Heartbeat | None:
        """Return a new heartbeat, once."""
        found, self._heartbeat = self._heartbeat, None
        return found

    def acquired(self, acquired: Mapping[int, Ownership]) -> None:
        """Compare positions that were read from the ledger with what the group committed.

        No worker commits what the ledger lacks: a former owner of the partitions is fenced since they were read.
        """
        committed = self._committed(acquired.keys())
        if committed is None:
            return
        ledger = self._heartbeats.state()
        positions = {partition: owned.next_offset for partition, owned in acquired.items()}
        ledger = LedgerState(ledger.heartbeat, positions, ledger.moved_at)
        found = taken_back(ledger, committed)
        if found is None:
            return
        self._heartbeats.note(found, ledger)
        if found.known is not None:
            # Above what Kafka has, so that the other workers know that it was noticed.
            self._heartbeats.raise_to(found.known.number)
        metrics.ledger_older.add(1)
        log.error("ledger_older", **_fields(found, ledger))

    def _committed(self, partitions: Collection[int]) -> Mapping[int, Committed] | None:
        """Return what the group committed; None if that is not known for COMPARES_WITHIN_S. Raises RecordLogError."""
        try:
            found = self._group.committed(partitions)
        except RecordLogError as error:
            now_s = time.monotonic()
            if self._unknown_since_s is None:
                self._unknown_since_s = now_s
            if now_s - self._unknown_since_s < COMPARES_WITHIN_S:
                raise
            log.warning("ledger_not_compared", error=str(error))
            return None
        self._unknown_since_s = None
        return found

    def _run(self) -> None:
        while not self._stopping.wait(BEAT_EVERY_S):
            try:
                self.round()
            except (StoreError, RecordLogError) as error:
                log.info("ledger_not_watched", error=str(error))
            except Exception as error:
                # Any exception: without this thread a restore would not be noticed by a worker that has nothing to do.
                log.exception("ledger_not_watched", error=str(error))

    def round(self) -> None:
        """Beat, or find that the server is another one than the positions are of. Raises StoreError."""
        watched = self._server_starts
        if not watched:
            return
        # Several: the server restarted while partitions were acquired.
        starts = [start for start in watched if start is not None]
        heartbeat = self._heartbeats.beat(starts[0], self._last_beat) if len(watched) == len(starts) == 1 else None
        if heartbeat is None:
            self._last_beat = 0
            self._restarted = True
            return
        self._heartbeat = heartbeat
        self._last_beat = heartbeat.number


def _fields(found: TookBack, ledger: LedgerState) -> dict[str, object]:
    known, last = found.known, ledger.heartbeat
    return {
        "ledger_time": None if last is None else last.time.isoformat(),
        "known_time": None if known is None else known.time.isoformat(),
        "read_again": {partition: f"[{start}, {end})" for partition, (start, end) in found.spans.items()},
        "ledger": "" if last is None else last.database,
        "known": "" if known is None else known.database,
    }
