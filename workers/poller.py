"""The poll loop: fetches and assembles chunks, submits them to the writer, commits what it applied."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime

import structlog

from bulkgrpc import faults, metrics
from bulkgrpc.consume.assembly import Chunk, ChunkBounds, Fetched
from bulkgrpc.consume.backpressure import Backpressure
from bulkgrpc.consume.express import TenantShares, is_late
from bulkgrpc.consume.express_ports import ExpressPath
from bulkgrpc.consume.ports import Applied, RecordLogError, WorkerPorts
from bulkgrpc.consume.tuning import ChunkTuner
from bulkgrpc.model import Kind
from bulkgrpc.positions import Outcome
from bulkgrpc.settings import WorkerSettings
from workers.intake import Intake
from workers.partitions import LEAVE_TIMEOUT_S, Partitions
from workers.writer import ChunkQueue, NotApplied

log = structlog.get_logger()

WRITER_WAIT_S = 0.02
"""How long to wait for the writer before polling the log again."""
HOT_FOR_S = 2.0
"""How long some tenants must be hot without a break, while messages are late, before others are served ahead."""
CALM_S = 5.0
"""A run of the express path ends after so long without a late message."""
SHARED_CHUNK_S = 0.05
"""How long a chunk may take while the express path serves others, so that PostgreSQL does not work for one tenant."""


class Poller:
    """The worker's loop, in the thread that calls `run`. It returns when `stopping` is set and the chunk is written."""

    def __init__(
        self,
        settings: WorkerSettings,
        ports: WorkerPorts,
        writer: ChunkQueue,
        express: ExpressPath,
        stopping: threading.Event,
        on_parked: Callable[[], None] = lambda: None,
    ) -> None:
        self._settings = settings
        self.ports = ports
        self._writer = writer
        self._express = express
        self._shares = TenantShares()
        self._late_at_s = 0.0
        self._hot_since_s: float | None = None
        self._stopping = stopping
        self._on_parked = on_parked
        self._pressure = Backpressure()
        self._tuner = ChunkTuner(settings.chunk_rows_min, settings.chunk_rows_max, settings.chunk_commit_ms / 1000)
        self._results_to_ignore = 0  # of chunks that were submitted before one that was not applied
        self._note = ""
        self.stepped_at_s = 0.0  # by the clock of the ports; 0 before the first step
        self.partitions = Partitions(ports, self._pressure)
        bounds = ChunkBounds(self._tuner.rows, settings.chunk_bytes_max)
        self.intake = Intake(ports, self.partitions.owned, bounds, express.was_applied)

    def run(self) -> None:
        """Join the group and process messages until `stopping` is set; then write the pending chunk and leave.

        Raises GroupNotLeft if everything is written but Kafka does not answer.
        """
        self._writer.start()
        self._express.start()
        self.ports.topic.start()
        self.ports.ledger_watch.start()
        try:
            self.join()
            while not self._stopping.is_set():
                self.step()
            self._drain()
        finally:
            self._writer.stop(self._settings.drain_s)
            self.ports.log.close(LEAVE_TIMEOUT_S)

    def join(self) -> None:
        """Join the consumer group."""
        self.ports.log.join(self.partitions.assigned, self._on_revoked)

    def step(self) -> None:
        """Do one pass: take results, acquire partitions, fill the chunk, submit it if it is ready.

        The chunk is filled once the writer has room: so it has the messages of every partition that arrived until then.
        """
        self.stepped_at_s = self._now_s
        self._take_results(0)
        self._drop(self.partitions.take_stopped())
        self._watch_ledger()
        self._resume_if_idle()
        self._acquire_partitions()
        self.partitions.report_held()
        if self._now_s - self._late_at_s > CALM_S:
            self._express.end()
        chunk, linger_s = self.intake.chunk, self._settings.chunk_linger_ms / 1000
        has_room = self._writer.has_room
        if has_room and not chunk.full and self._fill() and not chunk.full and self._writer.outstanding:
            return
        if has_room and chunk.ready(self._now_s, linger_s, self._writer.outstanding):
            self._submit()
        elif not has_room or not chunk.empty:
            self._take_results(WRITER_WAIT_S)
            self._pause_if_stuck()
            self.intake.poll(paused=self._pressure.paused)

    @property
    def _now_s(self) -> float:
        return self.ports.clock()

    def _watch_ledger(self) -> None:
        """Read the positions again if PostgreSQL restarted; else report the last heartbeat with them."""
        if self.ports.ledger_watch.restarted():
            self._restart()
        elif (heartbeat := self.ports.ledger_watch.heartbeat()) is not None:
            self._note = heartbeat.to_note()
            self._commit(self.partitions.positions)

    def _acquire_partitions(self) -> None:
        """Restart the partitions whose position must come from the ledger; join the group again if some stall."""
        if self.partitions.stalled(self.intake.drained_at_s):
            self._discard_pending()
            self.partitions.rejoin()
        if not self._results_to_ignore:
            self.intake.discard_backlog(self.partitions.acquire_due())

    def _fill(self) -> bool:
        """Fetch messages and add them to the chunk. Returns whether there were any that could be added."""
        fetched = self.intake.fetch()
        # First: messages that could not be read must not look like offsets without a message.
        self._drop(self.partitions.take_stopped())
        while (found := self.intake.fill()) is not None:
            if (
                isinstance(found, Fetched)
                and self.partitions.owned.outcome(found.partition, found.offset) is Outcome.NEXT
            ):
                self.partitions.hold(found)
                self.intake.discard_backlog([found.partition])
            else:
                self._on_gap(found.partition)
        return fetched

    def _on_gap(self, partition: int) -> None:
        """Continue a partition after the offsets that are missing, or read it again."""
        try:
            to_offset = self.partitions.check_gap(self.intake.backlog(partition))
        except RecordLogError as error:
            log.info("seek_not_ready", error=str(error))
            self._restart()
            return
        if to_offset is None:
            self.intake.discard_backlog([partition])
        else:
            self.intake.pass_over(partition, to_offset)

    def _submit(self) -> None:
        """Submit the chunk to the writer."""
        chunk = self.intake.chunk.build()
        self.intake.chunk.clear()
        if not self._writer.outstanding:
            self._pressure.writer_progressed(self._now_s)
        self._writer.submit(chunk)

    def _take_results(self, timeout_s: float) -> None:
        """Handle the writer's results; wait up to `timeout_s` for the first."""
        while self._writer.outstanding and (result := self._writer.result(timeout_s)) is not None:
            timeout_s = 0
            self._pressure.writer_progressed(self._now_s)
            if self._results_to_ignore:
                self._results_to_ignore -= 1
            elif isinstance(result.outcome, Applied):
                faults.reach("after_commit_before_kafka")
                self._on_applied(result.chunk, result.outcome, too_slow=result.too_slow)
            else:
                self._on_not_applied(result.outcome)

    def _on_applied(self, chunk: Chunk, applied: Applied, *, too_slow: bool) -> None:
        """Count what a chunk did, report its offsets to the log, and resume fetching."""
        self._pressure.recovered()
        metrics.count_records(applied.counts.values())
        metrics.chunk_seconds.record(applied.total_s)
        self._record_latencies(chunk)
        for job, batches in applied.late_batches.items():
            metrics.batches_late.add(batches)
            log.warning("late_batches", job=job.name, batches=batches)
        for job, failure in applied.blocked.items():
            metrics.jobs_blocked.add(1)
            log.error("job_blocked", job_id=str(job.job_id), sqlstate=failure.sqlstate, reason=failure.message)
        for job, reason in applied.lost.items():
            metrics.jobs_lost.add(1)
            log.error("job_lost_in_kafka", job=job.name, reason=reason)
        if applied.parked:
            metrics.messages_parked.add(applied.parked)
            self._on_parked()
        if too_slow:
            self._tuner.too_slow(chunk.rows)
            log.warning("chunk_too_slow", rows=chunk.rows, next_rows=self._tuner.rows)
        elif not applied.parked:
            self._tuner.measured(chunk.rows, applied.rows_s, applied.total_s)
        self._serve_others(chunk)
        self._set_bounds()
        self.partitions.applied(chunk.spans)
        owned = self.partitions.owned.owned
        self._commit({s.partition: s.to_offset for s in chunk.spans if s.partition in owned})
        if self._pressure.resume():
            self.ports.log.resume(self.partitions.owned.fetched)

    def _record_latencies(self, chunk: Chunk) -> None:
        now_s = time.time()
        for item in chunk.items:
            if item.message.kind is Kind.BATCH:
                metrics.processing_latency.record(max(0.0, now_s - item.message.sent_at.timestamp()))

    def _commit(self, offsets: Mapping[int, int]) -> None:
        try:
            self.ports.log.commit(offsets, self._note)
        except RecordLogError as error:
            # The ledger has the offsets. Kafka's copy serves lag metrics, and shows that a ledger came back older.
            log.info("kafka_commit_failed", error=str(error))

    def _serve_others(self, chunk: Chunk) -> None:
        """While messages wait behind those of hot tenants, let the express path apply them."""
        now_s = self._now_s
        self._shares.add(chunk.items, self.intake.chunk.bounds, now_s)
        late = is_late(chunk.items, datetime.now(UTC))
        hot = self._shares.hot() if late else frozenset[str]()
        if late:
            self._late_at_s = now_s
        if not hot:
            self._hot_since_s = None
            return
        if self._hot_since_s is None:
            self._hot_since_s = now_s
        if now_s - self._hot_since_s >= HOT_FOR_S:
            self._express.begin(self.partitions.owned.owned, hot)

    def _on_not_applied(self, result: NotApplied) -> None:
        """Discard what is pending, and continue every partition at the ledger's position."""
        outcomes = {partition: outcome.value for partition, outcome in result.outcomes.items()}
        log.warning("chunk_not_applied", outcomes=outcomes)
        metrics.chunks_not_applied.add(1)
        self._restart()

    def _set_bounds(self) -> None:
        """Bound the next chunk by the rows that the tuner found best, or fewer if others wait for it."""
        rows = self._tuner.rows_within(SHARED_CHUNK_S) if self._express.serves else self._tuner.rows
        metrics.chunk_rows.set(rows)
        if rows != self.intake.chunk.bounds.rows_max:
            log.info("chunk_rows_changed", rows=rows)
            self.intake.chunk.bounds = ChunkBounds(rows, self._settings.chunk_bytes_max)

    def _restart(self) -> None:
        self._discard_pending()
        self.partitions.restart()

    def _discard_pending(self) -> None:
        """Discard every pending message. The results of chunks that the writer already has are ignored."""
        self._results_to_ignore = self._writer.outstanding
        self._express.forget()
        self.intake.discard()
        self._pressure.resume()

    def _resume_if_idle(self) -> None:
        """Resume fetching if nothing is pending: no result will come that would do it."""
        if self.intake.empty and not self._writer.outstanding and self._pressure.resume():
            self.ports.log.resume(self.partitions.owned.fetched)

    def _pause_if_stuck(self) -> None:
        """While the writer is stuck, do not fetch more."""
        if self._pressure.pause_if_stuck(self._now_s):
            self.ports.log.pause(self.partitions.owned.owned)

    def _on_revoked(self, partitions: Sequence[int]) -> None:
        self.partitions.revoked(partitions)
        self._drop(partitions)

    def _drop(self, partitions: Sequence[int]) -> None:
        """Discard the pending messages of partitions that were revoked or stopped."""
        if partitions:
            self._express.forget()
            self.intake.chunk.drop(partitions)
            self.intake.discard_backlog(partitions)

    def _drain(self) -> None:
        """Write the pending chunk, within the time that SIGTERM gives."""
        deadline_s = self._now_s + self._settings.drain_s
        if not self.intake.chunk.empty and self._writer.has_room:
            self._submit()
        while self._writer.outstanding and (left_s := deadline_s - self._now_s) > 0:
            self._take_results(left_s)
