"""The partitions of this worker: acquired from the ledger, released on revocation, restarted after a stall or a gap."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import structlog

from bulkgrpc import metrics
from bulkgrpc.consume.assembly import EndReached, Fetched
from bulkgrpc.consume.backpressure import Backpressure
from bulkgrpc.consume.gaps import Gap, GapStep, GapWatch, gaps_in, step_after
from bulkgrpc.consume.ownership import OwnedPartitions
from bulkgrpc.consume.ports import OffsetLost, RecordLogError, StoreUnavailable, WorkerPorts
from bulkgrpc.consume.stall import StallWatch
from bulkgrpc.consume.upgrade import WaitLog

log = structlog.get_logger()

LEAVE_TIMEOUT_S = 5.0
"""How long to wait for Kafka when leaving the group."""
FENCED_WAIT_S = 10.0
"""How long after being fenced to acquire a partition again, if it is still assigned: by then a zombie has noticed."""


class Partitions:
    """Keeps `owned` in step with the log's assignments and the ledger. Used by the polling thread only."""

    def __init__(self, ports: WorkerPorts, pressure: Backpressure) -> None:
        self._log = ports.log
        self._ledger = ports.ledger
        self._clock = ports.clock
        self._pressure = pressure
        self._stall = StallWatch()
        self._gaps = GapWatch()
        self._waits = WaitLog[int]()
        self._held = 0
        self.owned = OwnedPartitions()

    def assigned(self, partitions: Sequence[int]) -> Mapping[int, int]:
        """Acquire partitions that were assigned; return where each starts. Without PostgreSQL, retry later."""
        log.info("partitions_assigned", partitions=list(partitions))
        self.owned.wait(partitions, 0)
        return {} if self._pressure.paused else self._acquire(partitions)

    def revoked(self, partitions: Sequence[int]) -> None:
        """Release the right to write partitions. The ledger decides about chunks that the writer already has."""
        log.info("partitions_revoked", partitions=list(partitions))
        self.owned.release(partitions)

    def acquire_due(self) -> Sequence[int]:
        """Acquire waiting partitions, confirm unconfirmed ones and seek them. Returns those that were restarted.

        Call it only when no chunk of theirs is with the writer.
        """
        now_s = self._clock()
        waiting, unconfirmed = self.owned.due(now_s), list(self.owned.unconfirmed)
        if not (waiting or unconfirmed) or not self._pressure.may_acquire(now_s):
            return ()
        starts = {**self._acquire(waiting), **self._confirm(unconfirmed)}
        try:
            self._log.seek(starts)
        except RecordLogError as error:
            log.info("seek_not_ready", error=str(error))
            self.owned.unconfirm()
            self._pressure.retry_later(now_s)
        return list(starts)

    def restart(self) -> None:
        """Stop fetching every owned partition, until the ledger confirms where it continues."""
        self._log.pause(self.owned.unconfirm())

    def check_gap(self, backlog: Sequence[Fetched | EndReached]) -> int | None:
        """Decide about the offsets that are missing before the first message, or end, of a partition's backlog.

        Returns the offset to continue at; None if the partition is read again, whose backlog is to be discarded.
        Raises OffsetLost if Kafka deleted messages that the ledger needs, RecordLogError if it cannot be read again.
        """
        found = backlog[0]
        partition, next_offset = found.partition, self.owned.owned[found.partition].next_offset
        read_twice = self._gaps.read_twice(Gap(partition, next_offset, found.offset))
        log_start = None if read_twice is None else self._log.start(partition)
        step = step_after(read_twice, log_start)
        if step is GapStep.LOST:
            raise OffsetLost(
                f"partition {partition}: the ledger needs offset {next_offset}, Kafka has none before {log_start}"
            )
        if read_twice is None or step is GapStep.READ_AGAIN:
            log.info("offset_gap", partition=partition, next_offset=next_offset, offset=found.offset)
            self._gaps.read(partition, gaps_in(partition, next_offset, backlog))
            self._log.seek({partition: next_offset})
            if self._pressure.paused:
                self._log.pause([partition])
            return None
        to_offset = read_twice.to_offset
        if self._gaps.pass_over(read_twice):
            log.error("offsets_passed_over", partition=partition, from_offset=next_offset, to_offset=to_offset)
            metrics.offsets_passed_over.add(to_offset - next_offset)
        return to_offset

    def hold(self, fetched: Fetched) -> None:
        """Let a partition wait at its next message, which is of a newer format, until a newer worker acquires it.

        It stays this worker's until Kafka moves it. Its backlog is to be discarded.
        """
        self.owned.hold(fetched.partition, fetched.newer_format)
        self._log.pause([fetched.partition])

    def report_held(self) -> None:
        """Log which partitions wait for a newer worker: once for each message, and again after a while."""
        held = self.owned.held
        if len(held) != self._held:
            self._held = len(held)
            metrics.partitions_held.set(self._held)
        for partition, newer_format in held.items():
            offset = self.owned.owned[partition].next_offset
            if self._waits.due(partition, offset, self._clock()):
                log.error(
                    "partition_waits_for_upgrade", partition=partition, offset=offset, message_format=newer_format
                )

    def stalled(self, drained_at_s: float) -> bool:
        """Return whether Kafka has messages that it does not deliver. See `StallWatch.stalled`."""
        if self._pressure.paused:
            self._stall.clear()
            return False
        stalled = self._stall.stalled(self.owned.fetched, self._clock(), drained_at_s, self._log.end)
        if not stalled:
            return False
        log.error("partitions_stalled", next_offsets=dict(stalled))
        metrics.partitions_stalled.add(len(stalled))
        return True

    def rejoin(self) -> None:
        """Release every partition and join the group as a new member."""
        self._stall.clear()
        self.owned.release_all()
        self._log.rejoin(LEAVE_TIMEOUT_S)

    def retry_later(self, error: StoreUnavailable) -> None:
        """Log that PostgreSQL is unavailable, and wait before partitions are acquired again."""
        wait_s = self._pressure.retry_later(self._clock())
        log.warning("postgres_unavailable", error=str(error), retry_in_s=round(wait_s, 2))

    def _acquire(self, partitions: Sequence[int]) -> Mapping[int, int]:
        """Acquire partitions from the ledger; return where each starts. Without PostgreSQL they stay waiting."""
        if not partitions:
            return {}
        try:
            acquired = self._ledger.acquire(partitions)
        except StoreUnavailable as error:
            self.retry_later(error)
            return {}
        self.owned.confirm(acquired)
        return {partition: ownership.next_offset for partition, ownership in acquired.items()}

    def _confirm(self, partitions: Sequence[int]) -> Mapping[int, int]:
        """Read the positions of acquired partitions. One that has another owner now is acquired again later."""
        if not partitions:
            return {}
        try:
            found = self._ledger.read(partitions)
        except StoreUnavailable as error:
            self.retry_later(error)
            return {}
        epochs = {partition: owned.owner_epoch for partition, owned in self.owned.unconfirmed.items()}
        ours = {p: owned for p, owned in found.items() if owned.owner_epoch == epochs[p]}
        fenced = [partition for partition in partitions if partition not in ours]
        if fenced:
            log.warning("partitions_fenced", partitions=fenced)
            self.owned.wait(fenced, self._clock() + FENCED_WAIT_S)
        self.owned.confirm(ours)
        return {partition: owned.next_offset for partition, owned in ours.items()}
