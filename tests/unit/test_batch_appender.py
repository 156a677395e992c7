"""A stream's appender and its deliveries against a record log that the test plays."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bulkgrpc import limits
from bulkgrpc.errors import Conflict, OutOfOrder, Reason, Unavailable
from bulkgrpc.ingest.batch_appender import AppendPlan, BatchAppender, LogAccess
from bulkgrpc.ingest.byte_budget import ByteBudget
from bulkgrpc.ingest.deliveries import Deliveries
from bulkgrpc.ingest.messages import Batch, check_sequence
from bulkgrpc.ingest.parked_limit import ParkedLimit
from bulkgrpc.ingest.ports import Delivered, RecordLogFull, RecordLogUnavailable
from bulkgrpc.ingest.topic_guard import TopicGuard
from bulkgrpc.limits import RECENT_DIGESTS_MAX
from bulkgrpc.model import JobKey, JobOptions, JobSpec, Kind, Message, digest_of
from bulkgrpc.v1 import ingest_pb2
from tests.support.ingest_ports import MemoryBlocks, MemoryTopic

SPEC = JobSpec(JobKey.derive("acme", "key"), "key", "weather", 1)
FAILED = RecordLogUnavailable("message timed out")


class Played:
    """A record log that stores a message when the test says so."""

    def __init__(self, full: int = 0) -> None:
        self.sent: list[tuple[int, Message, bytes]] = []
        self._waiting: list[Delivered] = []
        self._full = full

    def partitions_of(self, tenant: str, lanes: int) -> tuple[int, ...]:
        return tuple(range(lanes))

    def append(self, partition: int, message: Message, payload: bytes, delivered: Delivered) -> None:
        if self._full > 0:
            self._full -= 1
            raise RecordLogFull
        self.sent.append((partition, message, payload))
        self._waiting.append(delivered)

    def answer(self, error: RecordLogUnavailable | None = None) -> None:
        self._waiting.pop(0)(error)

    def answer_last(self) -> None:
        self._waiting.pop()(None)

    @property
    def kinds(self) -> list[Kind]:
        return [message.kind for _, message, _ in self.sent]


class Remembered:
    """What was accepted before: each batch as `raw` makes it, but for those that `others` says were different."""

    def __init__(self, *others: int) -> None:
        self._others = others

    async def digest(self, sequence: int) -> bytes:
        return b"other" if sequence in self._others else digest_of(batch_of(sequence).SerializeToString())


def stream_to(
    kafka: Played,
    budget: ByteBudget | None = None,
    next_sequence: int = 0,
    accepted: int = 0,
    *,
    spec: JobSpec = SPEC,
    others: tuple[int, ...] = (),
    partitions: tuple[int, ...] = (3,),
) -> BatchAppender:
    plan = AppendPlan(
        spec, partitions, next_sequence, accepted, 1024 * 1024, 1000, time_to_live_s=spec.options.time_to_live_s
    )
    budget = budget or ByteBudget(1024 * 1024)
    parked = ParkedLimit(MemoryBlocks(), 0)
    access = LogAccess(
        kafka,
        budget,
        asyncio.Semaphore(1),
        lambda: datetime.now(UTC),
        parked,
        TopicGuard("records", MemoryTopic(), MemoryTopic()),
    )
    return BatchAppender(plan, access, Remembered(*others))


def batch_of(sequence: int, size_bytes: int = 10) -> ingest_pb2.RecordBatch:
    return ingest_pb2.RecordBatch(sequence=sequence, records=[b"x" * size_bytes])


def raw(sequence: int, size_bytes: int = 10) -> bytes:
    return ingest_pb2.StreamRecordsRequest(batch=batch_of(sequence, size_bytes)).SerializeToString()


async def take(stream: BatchAppender, sequence: int, size_bytes: int = 10) -> None:
    batch = await stream.check(raw(sequence, size_bytes))
    assert batch is not None
    await stream.append(batch)


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def test_nothing_is_acknowledged_before_kafka_has_it() -> None:
    kafka = Played()
    stream = stream_to(kafka)
    await take(stream, 0)
    await take(stream, 1)
    waiting = asyncio.create_task(stream.deliveries.progress(0))
    await settle()
    assert not waiting.done()
    kafka.answer()
    assert await waiting
    assert stream.deliveries.next_sequence == 1


async def test_nothing_after_a_batch_that_failed_is_acknowledged() -> None:
    kafka = Played()
    stream = stream_to(kafka)
    for sequence in range(3):
        await take(stream, sequence)
    kafka.answer()
    kafka.answer(FAILED)
    kafka.answer()
    assert (stream.deliveries.next_sequence, stream.deliveries.accepted) == (1, 1)
    with pytest.raises(Unavailable) as caught:
        await stream.deliveries.progress(0)
    assert caught.value.reason is Reason.KAFKA_UNAVAILABLE
    assert caught.value.retry_after_s > 0


@given(st.permutations(range(8)), st.integers(0, 8))
def test_the_front_is_always_the_longest_stored_prefix(order: list[int], failing: int) -> None:
    deliveries = Deliveries(0, 0, ByteBudget(100))
    calls = [deliveries.expect(Batch(sequence, 10, b""), 0) for sequence in range(8)]
    stored: set[int] = set()
    failed = False
    for sequence in order:
        calls[sequence](FAILED if sequence == failing else None)
        failed = failed or sequence == failing
        if not failed:
            stored.add(sequence)
        prefix = next(number for number in range(9) if number not in stored)
        assert (deliveries.next_sequence, deliveries.accepted) == (prefix, prefix * 10)


async def test_lanes_take_turns_and_each_gets_a_seal_after_all_batches_of_the_job_are_stored() -> None:
    kafka = Played()
    stream = stream_to(kafka, next_sequence=4, accepted=40, partitions=(2, 0, 1))
    for sequence in range(4, 8):
        await take(stream, sequence)
    sealing = asyncio.create_task(stream.seal())
    for _ in range(4):
        await settle()
        assert Kind.SEAL not in kafka.kinds
        kafka.answer()
    await settle()
    batches, seals = kafka.sent[:4], kafka.sent[4:]
    assert [(m.sequence, m.lane, p) for p, m, _ in batches] == [(4, 1, 0), (5, 2, 1), (6, 0, 2), (7, 1, 0)]
    assert [(m.sequence, m.lane, p) for p, m, _ in seals] == [(8, 0, 2), (8, 1, 0), (8, 2, 1)]
    assert {m.partitions for _, m, _ in kafka.sent} == {(2, 0, 1)}
    for _ in range(3):
        assert not sealing.done()
        kafka.answer()
        await settle()
    await sealing


async def test_what_another_lane_stored_is_not_acknowledged_before_what_comes_before_it() -> None:
    kafka = Played()
    stream = stream_to(kafka, partitions=(0, 1))
    await take(stream, 0)
    await take(stream, 1)
    kafka.answer_last()
    assert stream.deliveries.next_sequence == 0
    kafka.answer()
    assert stream.deliveries.next_sequence == 2


async def test_a_seal_waits_for_every_batch_and_counts_the_whole_job() -> None:
    kafka = Played()
    stream = stream_to(kafka, next_sequence=5, accepted=50)
    await take(stream, 4)  # sent again: stored and counted before
    await take(stream, 5)
    sealing = asyncio.create_task(stream.seal())
    await settle()
    assert kafka.kinds == [Kind.BATCH]
    kafka.answer()
    await settle()
    partition, seal, payload = kafka.sent[-1]
    assert (partition, seal.kind, seal.sequence, seal.job_records, payload) == (3, Kind.SEAL, 6, 51, b"")
    assert not sealing.done()
    kafka.answer()
    await sealing


async def test_a_seal_after_too_few_batches_sent_again_stands_after_all_that_are_stored() -> None:
    kafka = Played()
    stream = stream_to(kafka, next_sequence=5, accepted=50)
    await take(stream, 0)
    sealing = asyncio.create_task(stream.seal())
    await settle()
    kafka.answer()
    await sealing
    assert kafka.sent[-1][1].sequence == 5


async def test_a_batch_that_came_before_is_not_sent_on_again_and_its_sender_is_told_how_far_the_job_is() -> None:
    kafka = Played()
    stream = stream_to(kafka, next_sequence=5, accepted=50)
    for sequence in range(3):
        await take(stream, sequence)
    assert await stream.deliveries.progress(5)
    assert (kafka.sent, stream.deliveries.next_sequence, stream.deliveries.accepted) == ([], 5, 50)


async def test_a_batch_that_came_before_with_other_bytes_is_a_conflict_that_names_it_and_the_way_out() -> None:
    kafka = Played()
    stream = stream_to(kafka, next_sequence=5, accepted=50, others=(3,))
    await take(stream, 2)
    with pytest.raises(Conflict, match=r"batch 3 .* another idempotency key") as caught:
        await take(stream, 3)
    assert (caught.value.reason, caught.value.retry_after_s) == (Reason.BATCH_CONFLICT, 0)
    assert kafka.sent == []


async def test_every_batch_says_its_digest_and_with_a_time_to_live_when_it_expires() -> None:
    kafka = Played()
    await take(stream_to(kafka), 0)
    await take(stream_to(kafka, spec=replace(SPEC, options=JobOptions(time_to_live_s=90))), 0)
    (_, lasting, payload), (_, mortal, _) = kafka.sent
    assert (lasting.digest, lasting.expires_at) == (digest_of(payload), None)
    assert mortal.expires_at == mortal.sent_at + timedelta(seconds=90)
    assert mortal.spec.options == JobOptions(time_to_live_s=90)


async def test_the_digests_of_what_is_stored_are_taken_once_and_the_last_are_kept() -> None:
    deliveries = Deliveries(0, 0, ByteBudget(100))
    count = RECENT_DIGESTS_MAX + 10
    calls = [deliveries.expect(Batch(number, 1, b"", b"%d" % number), 0) for number in range(count)]
    for call in calls[:2]:
        call(None)
    calls[3](None)
    assert deliveries.take_digests() == (b"0", b"1")
    for call in (calls[2], *calls[4:]):
        call(None)
    assert deliveries.take_digests() == tuple(b"%d" % number for number in range(10, count))
    assert deliveries.take_digests() == ()


async def test_a_seal_that_kafka_does_not_store_is_no_seal() -> None:
    kafka = Played()
    sealing = asyncio.create_task(stream_to(kafka).seal())
    await settle()
    kafka.answer(FAILED)
    with pytest.raises(Unavailable):
        await sealing


async def test_a_slow_kafka_stops_the_stream_from_reading_on() -> None:
    kafka, budget = Played(), ByteBudget(300)
    stream = stream_to(kafka, budget)

    async def read_all() -> None:
        for sequence in range(10):
            await take(stream, sequence, size_bytes=100)

    reading = asyncio.create_task(read_all())
    await settle()
    assert len(kafka.sent) == 2
    kafka.answer()
    await settle()
    assert len(kafka.sent) == 3
    while not reading.done():
        kafka.answer()
        await settle()


async def test_what_is_on_its_way_gives_its_bytes_back_whatever_becomes_of_its_stream() -> None:
    kafka, budget = Played(), ByteBudget(1000)
    stream = stream_to(kafka, budget)
    for sequence in range(3):
        await take(stream, sequence, size_bytes=100)
    del stream
    assert budget.in_use_bytes > 300
    kafka.answer()
    kafka.answer(FAILED)
    kafka.answer(FAILED)
    assert budget.in_use_bytes == 0


async def test_a_full_queue_is_waited_for() -> None:
    kafka = Played(full=3)
    await take(stream_to(kafka), 0)
    assert len(kafka.sent) == 1


async def test_a_queue_that_stays_full_ends_the_stream_and_keeps_no_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "DELIVERY_TIMEOUT_S", 0.05)
    budget = ByteBudget(1000)
    with pytest.raises(Unavailable) as caught:
        await take(stream_to(Played(full=10_000), budget), 0)
    assert caught.value.reason is Reason.KAFKA_UNAVAILABLE
    assert budget.in_use_bytes == 0


async def test_a_kafka_that_never_answers_ends_the_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bulkgrpc.ingest.deliveries.STALL_CHECK_S", 0.01)
    now_s = 0.0
    deliveries = Deliveries(0, 0, ByteBudget(100), clock=lambda: now_s)
    deliveries.expect(Batch(0, 1, b""), 0)
    waiting = asyncio.create_task(deliveries.all_stored())
    await asyncio.sleep(0.05)
    assert not waiting.done()
    now_s = limits.DELIVERY_TIMEOUT_S + 3
    with pytest.raises(Unavailable):
        await waiting


@given(st.integers(0, 5), st.integers(0, 5), st.booleans())
def test_a_batch_comes_in_its_place_or_is_refused_naming_the_place(sequence: int, known: int, first: bool) -> None:
    if sequence == known or (first and sequence < known):
        check_sequence(sequence, known, first=first)
        return
    with pytest.raises(OutOfOrder, match=f"send batch {known} next") as caught:
        check_sequence(sequence, known, first=first)
    assert caught.value.reason is (Reason.SEQUENCE_GAP if sequence > known else Reason.SEQUENCE_BACKWARD)
