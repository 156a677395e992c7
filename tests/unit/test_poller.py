"""The poll loop's decisions, with Kafka and the writer played by the test."""

from __future__ import annotations

import threading
import uuid
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from bulkgrpc.consume.decode import PreparedChunk
from bulkgrpc.consume.ports import Applied, NotNext
from bulkgrpc.consume.stall import BEHIND_S, LOOK_EVERY_S, SILENT_S
from bulkgrpc.kafka.consumer import Fetched, OffsetLost
from bulkgrpc.kafka.message import to_headers
from bulkgrpc.model import JobKey, JobSpec, Kind, Message, Outcome, Ownership
from bulkgrpc.settings import WorkerSettings, load
from workers import poller as module
from workers.poller import Poller
from workers.writer import Result


class Kafka:
    """What the poller sees of the consumer."""

    def __init__(self, _settings: object, assigned: Any, revoked: Any) -> None:
        self.assigned, self.revoked = assigned, revoked
        self.coming: deque[Fetched] = deque()
        self.paused: set[int] = set()
        self.sought: list[Mapping[int, int]] = []
        self.committed: dict[int, int] = {}
        self.ends: dict[int, int | None] = {}
        self.rejoined = 0

    def give(self, partitions: Sequence[int]) -> None:
        """Assign partitions, as RecordsConsumer does."""
        starts = self.assigned(partitions)
        self.pause(partition for partition in partitions if partition not in starts)
        self.resume(starts)

    def fetch(self, messages_max: int, timeout_s: float) -> list[Fetched]:
        found = [message for message in self.coming if message.partition not in self.paused][:messages_max]
        for message in found:
            self.coming.remove(message)
        return found

    def seek(self, offsets: Mapping[int, int]) -> None:
        self.sought.append(dict(offsets))
        self.paused -= offsets.keys()

    def pause(self, partitions: Iterable[int]) -> None:
        self.paused |= set(partitions)

    def resume(self, partitions: Iterable[int]) -> None:
        self.paused -= set(partitions)

    def end(self, partition: int) -> int | None:
        return self.ends.get(partition, 0)

    def rejoin(self, _timeout_s: float) -> None:
        self.rejoined += 1
        self.give([0, 1])

    def commit(self, offsets: Mapping[int, int]) -> None:
        self.committed |= offsets


class Writer:
    """What the poller sees of the writing thread: results come when the test says so."""

    def __init__(self, _settings: object, _stopping: object) -> None:
        self.submitted: deque[PreparedChunk] = deque()
        self.results: deque[Result] = deque()

    @property
    def outstanding(self) -> int:
        return len(self.submitted) + len(self.results)

    @property
    def has_room(self) -> bool:
        return self.outstanding < 2

    def submit(self, prepared: PreparedChunk) -> None:
        self.submitted.append(prepared)

    def result(self, timeout_s: float) -> Result | None:
        return self.results.popleft() if self.results else None

    def written(self) -> PreparedChunk:
        prepared = self.submitted.popleft()
        self.results.append(Result(prepared, Applied({})))
        return prepared

    def too_slow(self) -> None:
        self.results.append(Result(self.submitted.popleft(), None))

    def refused(self, outcome: Outcome) -> None:
        prepared = self.submitted.popleft()
        partitions = [span.partition for span in prepared.chunk.spans]
        self.results.append(Result(prepared, None, NotNext(dict.fromkeys(partitions, outcome), {})))


class Ledger:
    """What the poller sees of the ledger: where each partition stands."""

    def __init__(self) -> None:
        self.places: dict[int, Ownership] = {}

    def acquire(self, _connection: object, _topic: str, partitions: Sequence[int]) -> dict[int, Ownership]:
        for partition in partitions:
            before = self.places.get(partition, Ownership(partition, 0, 0))
            self.places[partition] = Ownership(partition, before.next_offset, before.owner_epoch + 1)
        return {partition: self.places[partition] for partition in partitions}

    def read(self, _connection: object, _topic: str, partitions: Sequence[int]) -> dict[int, Ownership]:
        return {partition: self.places[partition] for partition in partitions}


class Connection:
    """A connection to nothing."""

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def execute(self, *_: object) -> None:
        return None


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, as the poller sees it, in its only element."""
    now = [1000.0]
    monkeypatch.setattr("workers.poller.time.monotonic", lambda: now[0])
    return now


@pytest.fixture
def parts(monkeypatch: pytest.MonkeyPatch, clock: list[float]) -> tuple[Poller, Kafka, Writer, Ledger]:
    ledger = Ledger()
    monkeypatch.setattr(module, "RecordsConsumer", Kafka)
    monkeypatch.setattr(module, "ChunkWriter", Writer)
    monkeypatch.setattr(module, "ledger", ledger)
    monkeypatch.setattr(module, "connect", lambda *_: Connection())
    one: Any = Poller(load(WorkerSettings), threading.Event())
    one._consumer.give([0, 1])
    return one, one._consumer, one._writer, ledger


def seal(partition: int, offset: int) -> Fetched:
    spec = JobSpec(JobKey("acme", uuid.uuid4()), "k", "d", 1)
    message = Message(Kind.SEAL, spec, 0, 0, 0, 0, datetime.now(UTC))
    headers = [(name, value) for name, value in to_headers(message) if isinstance(value, bytes)]
    return Fetched(partition, offset, headers, b"")


def test_what_was_written_is_committed(parts: tuple[Poller, Kafka, Writer, Ledger]) -> None:
    poller, kafka, writer, _ = parts
    kafka.coming += [seal(0, 0), seal(0, 1), seal(1, 0)]
    poller._step()
    writer.written()
    poller._step()
    assert kafka.committed == {0: 2, 1: 1}


def test_a_refusal_while_paused_does_not_stop_the_worker_for_ever(
    parts: tuple[Poller, Kafka, Writer, Ledger], clock: list[float]
) -> None:
    poller, kafka, writer, ledger = parts
    kafka.coming += [seal(0, 0)]
    poller._step()
    clock[0] += 10
    kafka.coming += [seal(0, 1)]
    poller._step()
    poller._step()
    assert kafka.paused == {0, 1}
    ledger.places[0] = Ownership(0, 0, 99)
    writer.refused(Outcome.FENCED)
    poller._step()
    assert kafka.paused == {0}
    clock[0] += module.FENCED_WAIT_S + 1
    poller._step()
    assert kafka.paused == set()
    assert ledger.places[0].owner_epoch == 100


def test_what_is_in_hand_when_a_partition_goes_is_dropped_and_fetching_goes_on(
    parts: tuple[Poller, Kafka, Writer, Ledger], clock: list[float]
) -> None:
    poller, kafka, writer, _ = parts
    kafka.coming += [seal(0, 0)]
    poller._step()
    clock[0] += 10
    kafka.coming += [seal(1, 0)]
    poller._step()
    poller._step()
    assert kafka.paused == {0, 1}
    kafka.revoked([0, 1])
    writer.written()
    poller._step()
    kafka.give([0, 1])
    poller._step()
    assert kafka.paused == set()


def test_a_gap_is_read_again_once_and_then_stops_the_worker(parts: tuple[Poller, Kafka, Writer, Ledger]) -> None:
    poller, kafka, _, _ = parts
    kafka.coming += [seal(0, 5)]
    poller._step()
    poller._step()
    assert kafka.sought[-1] == {0: 0, 1: 0}
    kafka.coming += [seal(0, 5)]
    with pytest.raises(OffsetLost, match="partition 0: the ledger needs offset 0, Kafka has none before 5"):
        poller._step()


def test_the_chunks_to_come_are_bounded_by_what_the_last_ones_took(parts: tuple[Poller, Kafka, Writer, Ledger]) -> None:
    poller: Any = parts[0]
    before = poller._builder.bounds
    for _ in range(20):
        rows = poller._builder.bounds.rows_max
        poller._tune(rows, Applied({}, rows * 100e-6, rows * 100e-6 + 0.005))
    assert poller._builder.bounds.rows_max < before.rows_max / 2
    assert poller._builder.bounds.rows_max * 100e-6 < 1.5 * poller._settings.chunk_commit_ms / 1000
    assert poller._builder.bounds.bytes_max == before.bytes_max


def test_after_a_chunk_that_took_too_long_its_messages_are_read_again_into_smaller_ones(
    parts: tuple[Poller, Kafka, Writer, Ledger],
) -> None:
    poller, kafka, writer, _ = parts
    before = poller._builder.bounds.rows_max
    kafka.coming += [seal(0, 0)]
    poller._step()
    writer.too_slow()
    poller._step()
    assert poller._builder.bounds.rows_max < before
    assert kafka.sought[-1] == {0: 0, 1: 0}


def pass_time(poller: Poller, clock: list[float], seconds: float) -> None:
    """Let the poller look at Kafka all along."""
    until_s = clock[0] + seconds
    while clock[0] < until_s:
        clock[0] += LOOK_EVERY_S
        poller._step()


def test_messages_that_kafka_has_and_does_not_send_make_the_worker_join_anew(
    parts: tuple[Poller, Kafka, Writer, Ledger], clock: list[float]
) -> None:
    poller, kafka, writer, ledger = parts
    poller._step()
    kafka.ends = {0: 1}
    pass_time(poller, clock, SILENT_S)
    assert kafka.rejoined == 0
    pass_time(poller, clock, LOOK_EVERY_S)
    assert kafka.rejoined == 1
    epoch = ledger.places[0].owner_epoch
    kafka.coming += [seal(0, 0)]
    poller._step()
    poller._step()
    assert [span.owner_epoch for span in writer.written().chunk.spans] == [epoch]


def test_silence_where_there_is_nothing_to_be_said_is_no_stall(
    parts: tuple[Poller, Kafka, Writer, Ledger], clock: list[float]
) -> None:
    poller, kafka, _, _ = parts
    pass_time(poller, clock, 5 * SILENT_S)
    kafka.ends = {0: None, 1: None}
    pass_time(poller, clock, 2 * SILENT_S)
    assert kafka.rejoined == 0


def test_a_message_that_came_to_kafka_just_now_is_no_stall_however_long_there_was_none(
    parts: tuple[Poller, Kafka, Writer, Ledger], clock: list[float]
) -> None:
    poller, kafka, _, _ = parts
    pass_time(poller, clock, 5 * SILENT_S)
    kafka.ends = {0: 1}
    pass_time(poller, clock, LOOK_EVERY_S)
    assert kafka.rejoined == 0


def test_a_message_that_waits_behind_those_of_another_partition_is_no_stall_for_long(
    parts: tuple[Poller, Kafka, Writer, Ledger], clock: list[float]
) -> None:
    poller, kafka, writer, ledger = parts
    poller._step()
    kafka.ends = {1: 1}
    offset = 0

    def busy(seconds: float) -> None:
        nonlocal offset
        until_s = clock[0] + seconds
        while clock[0] < until_s:
            clock[0] += 1
            kafka.coming.append(seal(0, offset))
            offset += 1
            poller._step()
            writer.written()
            ledger.places[0] = replace(ledger.places[0], next_offset=offset)

    busy(5 * SILENT_S)
    assert kafka.rejoined == 0
    busy(BEHIND_S)
    assert kafka.rejoined == 1
