"""The partitions of this worker: acquired, released on revocation, restarted after a stall, stopped after a loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import structlog

from bulkgrpc import metrics
from bulkgrpc.consume.assembly import EndReached, Fetched, Span
from bulkgrpc.consume.backpressure import Backpressure
from bulkgrpc.consume.gaps import Gap, GapStep, GapWatch, gaps_in, step_after
from bulkgrpc.consume.log_identity import Stop, StopCause
from bulkgrpc.consume.ownership import OwnedPartitions
from bulkgrpc.consume.ports import RecordLogError, StoreError, StoreUnavailable, WorkerPorts
from bulkgrpc.consume.stall import StallWatch
from bulkgrpc.consume.upgrade import WaitLog
from bulkgrpc.positions import Ownership

log = structlog.get_logger()

LEAVE_TIMEOUT_S = 5.0
"""How long to wait for Kafka when leaving the group."""
FENCED_WAIT_S = 10.0
"""How long after being fenced to acquire a partition again, if it is still assigned: by then a zombie has noticed."""


CHECK_AGAIN_S = 1.0
"""How long to wait after the log did not answer about a partition, or could not read it."""


class Partitions:
    """Keeps `owned` in step with the log's assignments and the ledger. Used by the polling thread only."""

    def __init__(self, ports: WorkerPorts, pressure: Backpressure) -> None:
        self._log = ports.log
        self._ledger = ports.ledger
        self._topic = ports.topic
        self._ledger_watch = ports.ledger_watch
        self._registry = ports.registry
        self._clock = ports.clock
        self._pressure = pressure
        self._stall = StallWatch()
        self._gaps = GapWatch()
        self._waits = WaitLog[int]()
        self._held = 0
        # Of each partition that is stopped, or was.
        self._stops: dict[int, Stop] = {}
        self._topic_returned = False
        self.owned = OwnedPartitions()
        # Of each partition that was acquired: the ledger's next offset, as far as this worker knows.
        self._positions: dict[int, int] = {}

    def assigned(self, partitions: Sequence[int]) -> Mapping[int, int]:
        """Acquire partitions that were assigned; return where each starts. Without PostgreSQL, retry later."""
        log.info("partitions_assigned", partitions=list(partitions))
        self.owned.wait(partitions, 0)
        self._watch_assigned()
        return {} if self._pressure.paused else self._acquire(partitions)

    def revoked(self, partitions: Sequence[int]) -> None:
        """Release the right to write partitions. The ledger decides about chunks that the writer already has."""
        log.info("partitions_revoked", partitions=list(partitions))
        self.owned.release(partitions)
        self._watch_assigned()

    def acquire_due(self) -> Sequence[int]:
        """Acquire waiting partitions, confirm unconfirmed ones and seek them. Returns those that were restarted.

        Call it only when no chunk of theirs is with the writer.
        """
        now_s = self._clock()
        unconfirmed = list(self.owned.unconfirmed)
        if not (unconfirmed or self.owned.due(now_s)) or not self._pressure.may_acquire(now_s):
            return ()
        confirmed = self._confirm(unconfirmed)
        starts = {**confirmed, **self._acquire(self.owned.due(now_s))}
        try:
            self._log.seek(starts)
        except RecordLogError as error:
            log.info("seek_not_ready", error=str(error))
            self.owned.unconfirm()
            self._pressure.retry_later(now_s)
        return list(starts)

    @property
    def positions(self) -> Mapping[int, int]:
        """The next offsets that the ledger has of the owned partitions."""
        return {partition: self._positions[partition] for partition in self.owned.owned}

    def applied(self, spans: Sequence[Span]) -> None:
        """Note that a chunk was applied."""
        self._positions |= {span.partition: span.to_offset for span in spans}

    def restart(self) -> None:
        """Stop fetching every owned partition, until the ledger confirms where it continues."""
        self._log.pause(self.owned.unconfirm())

    def check_gap(self, backlog: Sequence[Fetched | EndReached]) -> int | None:
        """Decide about the offsets that are missing before the first message, or end, of a partition's backlog.

        Returns the offset to continue at; None if its backlog is to be discarded: it is read again, or stopped because
        Kafka deleted messages that the ledger needs. Raises RecordLogError if it cannot be read again.
        """
        found = backlog[0]
        partition, next_offset = found.partition, self.owned.owned[found.partition].next_offset
        read_twice = self._gaps.read_twice(Gap(partition, next_offset, found.offset))
        log_start = None if read_twice is None else self._log.start(partition)
        step = step_after(read_twice, log_start)
        if step is GapStep.LOST:
            self._stop_at_gap(partition, Stop(StopCause.MESSAGES_DELETED, next_offset, log_start))
            return None
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

    def _stop_at_gap(self, partition: int, stop: Stop) -> None:
        try:
            self._topic.stop(partition, stop)
        except StoreError as error:
            # Stopped but not stored: the next check of the topic stores it.
            log.warning("topic_not_checked", error=str(error))
        self._log.pause(self._stop({partition: stop}))

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

    def take_stopped(self) -> Sequence[int]:
        """Stop what the last check of the topic found, and what the log could not read. Returns those partitions.

        Partitions whose logs match the ledger again are acquired next. One that could not be read is compared with the
        ledger when it is acquired again.
        """
        stopped: list[int] = []
        found = self._topic.found()
        if found is not None:
            examined, stops = found
            resumed = (self.owned.stopped & set(examined)) - stops.keys()
            if resumed:
                log.info("partition_resumed", partitions=sorted(resumed))
                self._topic_returned = any(self._stops[number].cause.of_topic for number in resumed)
                self.owned.wait(resumed, 0)
            stopped += self._stop(stops)
        for partition, reason in self._log.take_failed().items():
            if partition in self.owned.owned:
                log.warning("partition_not_read", partition=partition, reason=reason)
                self.owned.wait([partition], self._clock() + CHECK_AGAIN_S)
                stopped.append(partition)
        if stopped:
            self._log.pause(stopped)
        return stopped

    def stalled(self, drained_at_s: float) -> bool:
        """Return whether Kafka has messages that it does not deliver. See `StallWatch.stalled`.

        Also once a topic that was missing or another one is adopted: librdkafka may keep what it knew of the former
        one, and then refuses each seek (_STATE, seen with the group protocol `classic`).
        """
        if self._topic_returned:
            return True
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
        self._topic_returned = False
        self.owned.release_all()
        self._watch_assigned()
        self._log.rejoin(LEAVE_TIMEOUT_S)

    def retry_later(self, error: StoreUnavailable) -> None:
        """Log that PostgreSQL is unavailable, and wait before partitions are acquired again."""
        wait_s = self._pressure.retry_later(self._clock())
        log.warning("postgres_unavailable", error=str(error), retry_in_s=round(wait_s, 2))

    def _acquire(self, partitions: Sequence[int]) -> Mapping[int, int]:
        """Acquire partitions from the ledger; return where each starts. Without PostgreSQL they stay waiting.

        Those whose logs do not match the ledger are stopped instead. They are paused: they were not fetched before.
        """
        if not partitions:
            return {}
        try:
            examined, stops = self._topic.check(partitions)
            matching = [partition for partition in partitions if partition in examined and partition not in stops]
            acquired = self._ledger.acquire(matching) if matching else {}
            if acquired:
                self._ledger_watch.acquired(acquired)
        except StoreUnavailable as error:
            self.retry_later(error)
            return {}
        except RecordLogError as error:
            log.warning("topic_not_checked", error=str(error))
            self.owned.wait(partitions, self._clock() + CHECK_AGAIN_S)
            return {}
        self.owned.wait(set(partitions) - set(examined), self._clock() + CHECK_AGAIN_S)
        self._stop(stops)
        return self._confirmed(acquired)

    def _confirm(self, partitions: Sequence[int]) -> Mapping[int, int]:
        """Read the positions of acquired partitions. One that has another owner now is acquired again later."""
        if not partitions:
            return {}
        try:
            found = self._ledger.read(partitions)
        except StoreUnavailable as error:
            self.retry_later(error)
            return {}
        before = self.owned.unconfirmed
        # The epochs of an older ledger may be given out again: only one that was acquired there is this worker's.
        restarted = [p for p, owned in found.items() if owned.server_start != before[p].server_start]
        if restarted:
            log.warning("postgres_restarted", partitions=restarted)
            self._registry.forget()
            self.owned.wait(restarted, 0)
        ours = {p: one for p, one in found.items() if p in before and one.owner_epoch == before[p].owner_epoch}
        fenced = [p for p in partitions if p not in ours and p not in restarted]
        if fenced:
            log.warning("partitions_fenced", partitions=fenced)
            self.owned.wait(fenced, self._clock() + FENCED_WAIT_S)
        return self._confirmed(ours)

    def _confirmed(self, found: Mapping[int, Ownership]) -> Mapping[int, int]:
        """Make partitions owned; return where each starts."""
        self.owned.confirm(found)
        starts = {partition: owned.next_offset for partition, owned in found.items()}
        self._positions |= starts
        self._ledger_watch.watch(self.owned.owned)
        return starts

    def _stop(self, stops: Mapping[int, Stop]) -> Sequence[int]:
        """Stop partitions and say so, once for each cause; return those that were not stopped yet."""
        stopped = self.owned.stop(stops)
        for partition in self.owned.stopped & stops.keys():
            stop, before = stops[partition], self._stops.get(partition)
            self._stops[partition] = stop
            if partition not in stopped and before is not None and before.cause is stop.cause:
                continue
            log.error(
                "partition_stopped",
                partition=partition,
                cause=stop.cause.value,
                lost=stop.lost,
                remedy=stop.remedy(partition),
            )
        self._watch_assigned()
        return stopped

    def _watch_assigned(self) -> None:
        self._topic.watch(self.owned.assigned)
        self._ledger_watch.watch(self.owned.owned)
        metrics.partitions_stopped.set(len(self.owned.stopped))
