"""The polling thread: owns the consumer; assembles and decodes chunks, hands them over, commits what was written."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence

import psycopg
import structlog
from confluent_kafka import KafkaException

from bulkgrpc import faults, metrics
from bulkgrpc.backoff import Backoff
from bulkgrpc.consume.assembly import ChunkBounds, ChunkBuilder, Received
from bulkgrpc.consume.decode import prepare
from bulkgrpc.consume.ownership import Holdings
from bulkgrpc.consume.ports import Applied
from bulkgrpc.consume.stall import StallWatch
from bulkgrpc.consume.tuning import ChunkTuner
from bulkgrpc.datasets.codec import BatchCodec
from bulkgrpc.datasets.columns import InvalidDataset
from bulkgrpc.kafka.consumer import Fetched, OffsetLost, RecordsConsumer
from bulkgrpc.kafka.dead_letters import DeadLetters
from bulkgrpc.kafka.message import MalformedMessage, from_headers
from bulkgrpc.model import JobCounts, Kind, Ownership
from bulkgrpc.postgres import ledger
from bulkgrpc.postgres.catalog import get_dataset
from bulkgrpc.postgres.connection import connect
from bulkgrpc.settings import WorkerSettings
from workers.writer import ChunkWriter, Result

log = structlog.get_logger()

FETCH_MESSAGES_MAX = 50
"""Messages taken from librdkafka at once: of the largest batches, 50 MB."""
IDLE_POLL_S = 0.1
"""How long a poll waits when nothing is in hand."""
WRITER_WAIT_S = 0.02
"""How long to wait for the writer before looking at Kafka again; the consumer is polled at least this often."""
PAUSE_AFTER_S = 3.0
"""A writer that takes longer for a chunk is stuck: stop fetching, so that nothing piles up, but keep polling.
Not sooner, for a pause throws away what was fetched ahead."""


LEAVE_WITHIN_S = 5.0
"""How long to wait for Kafka when the group is left."""
FENCED_WAIT_S = 10.0
"""How long after a fence to acquire the partition anew, if Kafka still says it is ours: by then a zombie knows."""


class DatasetGone(Exception):
    """A message names a dataset that the registry does not have."""


class Poller:
    """The worker's loop. `run` returns when `stopping` is set and what was in hand is written."""

    def __init__(self, settings: WorkerSettings, stopping: threading.Event) -> None:
        self._settings = settings
        self._stopping = stopping
        self._holdings = Holdings()
        self._tuner = ChunkTuner(settings.chunk_rows_min, settings.chunk_rows_max, settings.chunk_commit_ms / 1000)
        self._builder = ChunkBuilder(ChunkBounds(self._tuner.rows, settings.chunk_bytes_max))
        self._backlog: deque[Fetched] = deque()  # at most FETCH_MESSAGES_MAX, and what librdkafka may hold
        self._gaps: dict[int, int] = {}  # of partitions where a gap was seen: the offset that was next then
        self._dead_letters: DeadLetters | None = None
        self._codecs: dict[tuple[str, int], BatchCodec] = {}
        self._writer = ChunkWriter(settings, stopping)
        self._consumer = RecordsConsumer(settings, self._on_assigned, self._on_revoked)
        self._stale = 0  # outstanding chunks whose results do not count: the ledger refused one before them
        self._first_at = 0.0
        self._written_at = 0.0
        self._empty_at = 0.0
        self._paused = False
        self._take_up_at = 0.0
        self._backoff = Backoff()
        self._stall = StallWatch()

    def run(self) -> None:
        """Poll, assemble, decode, hand over, commit; until `stopping` is set, then drain.

        Raises GroupNotLeft if all that is done, but Kafka does not answer.
        """
        self._writer.start()
        try:
            while not self._stopping.is_set():
                self._step()
            self._drain()
        finally:
            self._writer.stop(self._settings.drain_s)
            self._consumer.close(LEAVE_WITHIN_S)

    def _step(self) -> None:
        self._settle(0)
        self._unpause_if_idle()
        self._take_up()
        self._rejoin_if_stalled()
        if not self._builder.full and self._fill() and not self._builder.full and self._writer.outstanding:
            return
        if self._ready():
            self._submit()
        elif not self._builder.empty:
            self._settle(WRITER_WAIT_S)
            self._keep_polling()

    def _ready(self) -> bool:
        """Tell whether the chunk in hand should go now: full and room for it, or nothing else is under way."""
        if self._builder.empty or not self._writer.has_room:
            return False
        if self._builder.full:
            return True
        waited_ms = (time.monotonic() - self._first_at) * 1000
        return self._writer.outstanding == 0 and waited_ms >= self._settings.chunk_linger_ms

    def _submit(self) -> None:
        """Decode the chunk in hand and hand it to the writer."""
        prepared = prepare(self._builder.build(), self._codec)
        self._builder.clear()
        if not self._writer.outstanding:
            self._written_at = time.monotonic()
        self._writer.submit(prepared)

    def _fill(self) -> bool:
        """Add what Kafka has to the chunk in hand, up to its bounds; tell whether there is anything to be added."""
        if not self._backlog:
            self._backlog.extend(self._consumer.fetch(FETCH_MESSAGES_MAX, IDLE_POLL_S if self._builder.empty else 0))
        found = bool(self._backlog)
        if found:
            faults.reach("after_poll")
        else:
            self._empty_at = time.monotonic()
        if self._builder.empty:
            self._first_at = time.monotonic()
        while self._backlog and not self._builder.full:
            message = self._backlog[0]
            owned = self._holdings.held.get(message.partition)
            if owned is not None and message.offset >= owned.next_offset:
                if message.offset > owned.next_offset:
                    self._after_gap(message, owned)
                    return True
                try:
                    self._take(message, owned)
                except psycopg.OperationalError as error:
                    # Its dataset cannot be looked up now: the message stays where it is.
                    self._later(error)
                    self._stopping.wait(IDLE_POLL_S)
                    self._keep_polling()
                    return False
                self._holdings.take(message.partition, message.offset)
            self._backlog.popleft()
        return found

    def _take(self, message: Fetched, owned: Ownership) -> None:
        """Add a message to the chunk in hand; one that nobody can place goes to the dead letters first."""
        try:
            parsed = from_headers(message.headers)
            if parsed.kind is Kind.BATCH:
                self._codec(parsed.spec.dataset, parsed.spec.dataset_version)
        except (MalformedMessage, DatasetGone) as error:
            if self._dead_letters is None:
                self._dead_letters = DeadLetters(self._settings)
            self._dead_letters.add(message, str(error))
            metrics.messages_dead.add(1)
            log.warning("dead_letter", partition=message.partition, offset=message.offset, reason=str(error))
            self._builder.skip(message.partition, message.offset, owned)
        else:
            self._builder.add(Received(message.partition, message.offset, parsed, message.payload), owned)

    def _after_gap(self, message: Fetched, owned: Ownership) -> None:
        """Kafka gave a message after the one that is next: read from the ledger's place once more, then stop."""
        if self._gaps.get(message.partition) == owned.next_offset:
            raise OffsetLost(
                f"partition {message.partition}: the ledger needs offset {owned.next_offset}, "
                f"Kafka has none before {message.offset}"
            )
        log.error("offset_gap", partition=message.partition, next_offset=owned.next_offset, offset=message.offset)
        self._gaps[message.partition] = owned.next_offset
        self._start_over()

    def _settle(self, timeout_s: float) -> None:
        """Take in the results that are there, waiting up to `timeout_s` for the first."""
        while self._writer.outstanding and (result := self._writer.result(timeout_s)) is not None:
            timeout_s = 0
            self._written_at = time.monotonic()
            if self._stale:
                self._stale -= 1
            elif result.applied is not None:
                faults.reach("after_commit_before_kafka")
                self._commit(result)
            else:
                self._rewind(result)

    def _commit(self, result: Result) -> None:
        held = self._holdings.held
        self._backoff = Backoff()
        if result.applied is not None:
            done = sum(result.applied.counts.values(), JobCounts())
            metrics.records_written.add(done.written)
            metrics.records_rejected.add(done.rejected)
            metrics.records_expired.add(done.expired)
            self._tune(result.prepared.chunk.rows, result.applied)
        spans = result.prepared.chunk.spans
        try:
            self._consumer.commit({s.partition: s.to_offset for s in spans if s.partition in held})
        except KafkaException as error:
            # The ledger has it; Kafka's own note of it is only for lag.
            log.info("kafka_commit_failed", error=str(error))
        if self._paused:
            self._paused = False
            self._consumer.resume(held)

    def _tune(self, rows: int, applied: Applied) -> None:
        """Set the bound of the chunks to come by what this one took."""
        self._tuner.measured(rows, applied.rows_s, applied.total_s)
        self._bound()
        metrics.chunk_rows.set(self._tuner.rows)
        metrics.chunk_seconds.record(applied.total_s)

    def _bound(self) -> None:
        if self._tuner.rows != self._builder.bounds.rows_max:
            log.info("chunk_rows", rows=self._tuner.rows)
            self._builder.bounds = ChunkBounds(self._tuner.rows, self._settings.chunk_bytes_max)

    def _rewind(self, result: Result) -> None:
        """A chunk was not written: drop all that is in hand, and ask the ledger where every partition stands."""
        if result.refusal is None:
            self._tuner.too_slow(result.prepared.chunk.rows)
            self._bound()
            log.warning("chunk_too_slow", rows=result.prepared.chunk.rows, next_rows=self._tuner.rows)
        else:
            log.warning("chunk_refused", outcomes=str(result.refusal))
        metrics.chunks_refused.add(1)
        self._start_over()

    def _start_over(self) -> None:
        """Drop all that is in hand, and doubt where every partition stands."""
        self._drop_in_hand()
        self._consumer.pause(self._holdings.doubt())

    def _drop_in_hand(self) -> None:
        self._stale = self._writer.outstanding
        self._builder.clear()
        self._backlog.clear()
        self._paused = False

    def _unpause_if_idle(self) -> None:
        """Fetch again once nothing is in hand any more: nothing will be committed that would say so."""
        if self._paused and self._builder.empty and not self._backlog and not self._writer.outstanding:
            self._paused = False
            self._consumer.resume(self._holdings.held)

    def _rejoin_if_stalled(self) -> None:
        """Join the group anew if messages that Kafka has do not come."""
        if self._paused:
            self._stall.clear()
            return
        stalled = self._stall.stalled(self._holdings.held, time.monotonic(), self._empty_at, self._consumer.end)
        if not stalled:
            return
        log.error("partitions_stalled", next_offsets=dict(stalled))
        metrics.partitions_stalled.add(len(stalled))
        self._stall.clear()
        self._drop_in_hand()
        self._holdings = Holdings()
        self._consumer.rejoin(LEAVE_WITHIN_S)

    def _keep_polling(self) -> None:
        """While PostgreSQL is stuck, stay in the group without fetching more."""
        if not self._paused and time.monotonic() - self._written_at > PAUSE_AFTER_S:
            self._paused = True
            self._consumer.pause(self._holdings.held)
        if self._paused:
            self._backlog.extend(self._consumer.fetch(1, 0))

    def _on_assigned(self, partitions: Sequence[int]) -> Mapping[int, int]:
        """Acquire the partitions that Kafka gives us; if PostgreSQL is away, later."""
        log.info("partitions_assigned", partitions=list(partitions))
        self._holdings.wait(partitions, 0)
        return {} if self._paused else self._acquire(partitions)

    def _on_revoked(self, partitions: Sequence[int]) -> None:
        """Drop the right to write, then the messages in hand; of what the writer has, the ledger decides."""
        log.info("partitions_revoked", partitions=list(partitions))
        self._holdings.drop(partitions)
        self._builder.drop(partitions)

    def _take_up(self) -> None:
        """Take up partitions that wait to be acquired, or whose place is not sure, once no stale chunk is under way."""
        now_s = time.monotonic()
        waiting, unsure = self._holdings.waiting(now_s), list(self._holdings.unsure)
        if self._stale or self._paused or now_s < self._take_up_at or not (waiting or unsure):
            return
        starts = {**self._acquire(waiting), **self._reread(unsure)}
        self._backlog = deque(message for message in self._backlog if message.partition not in starts)
        try:
            self._consumer.seek(starts)
        except KafkaException as error:
            log.info("seek_not_ready", error=str(error))
            self._holdings.doubt()
            self._take_up_at = now_s + self._backoff.take()

    def _acquire(self, partitions: Sequence[int]) -> dict[int, int]:
        """Acquire partitions from the ledger; return where each goes on. Without PostgreSQL they go on waiting."""
        if not partitions:
            return {}
        try:
            with connect(self._settings.postgres, "bulkgrpc-worker-acquire") as connection:
                # Whoever held them may be at a long transaction: do not wait for it, other partitions are to be read.
                connection.execute("SET lock_timeout = '1s'")
                acquired = ledger.acquire(connection, self._settings.topic, partitions)
        except psycopg.OperationalError as error:
            return self._later(error)
        self._holdings.hold(acquired)
        return {partition: ownership.next_offset for partition, ownership in acquired.items()}

    def _reread(self, partitions: Sequence[int]) -> dict[int, int]:
        """Ask the ledger where held partitions stand; one that somebody else took meanwhile waits to be acquired."""
        if not partitions:
            return {}
        try:
            with connect(self._settings.postgres, "bulkgrpc-worker-read") as connection:
                found = ledger.read(connection, self._settings.topic, partitions)
        except psycopg.OperationalError as error:
            return self._later(error)
        epochs = {partition: owned.owner_epoch for partition, owned in self._holdings.unsure.items()}
        ours = {p: owned for p, owned in found.items() if owned.owner_epoch == epochs[p]}
        fenced = [partition for partition in partitions if partition not in ours]
        if fenced:
            log.warning("partitions_fenced", partitions=fenced)
            self._holdings.wait(fenced, time.monotonic() + FENCED_WAIT_S)
        self._holdings.hold(ours)
        return {partition: owned.next_offset for partition, owned in ours.items()}

    def _later(self, error: psycopg.Error) -> dict[int, int]:
        log.warning("postgres_unavailable", error=str(error).strip(), retry_in_s=round(self._backoff.next_s, 2))
        self._take_up_at = time.monotonic() + self._backoff.take()
        return {}

    def _codec(self, name: str, version: int) -> BatchCodec:
        codec = self._codecs.get((name, version))
        if codec is None:
            with connect(self._settings.postgres, "bulkgrpc-worker-catalog") as connection:
                try:
                    dataset = get_dataset(connection, name, version)
                    codec = None if dataset is None else BatchCodec(dataset)
                except InvalidDataset as error:
                    raise DatasetGone(f"dataset {name} version {version} cannot be used any more: {error}") from error
            if codec is None:
                raise DatasetGone(f"dataset {name} version {version} is not in the registry")
            self._codecs[name, version] = codec
        return codec

    def _drain(self) -> None:
        """Write what is in hand, within the time that SIGTERM gives."""
        deadline = time.monotonic() + self._settings.drain_s
        if not self._builder.empty and self._writer.has_room:
            self._submit()
        while self._writer.outstanding and (left_s := deadline - time.monotonic()) > 0:
            self._settle(left_s)
