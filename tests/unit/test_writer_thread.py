"""The writing thread: what it does about each failure of the `ChunkWriter`."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Collection
from dataclasses import replace

import pytest

from bulkgrpc.consume.assembly import Chunk, Fetched, Received, Span
from bulkgrpc.consume.dead_letters import without_dead_letters
from bulkgrpc.consume.decode import DecodableChunk
from bulkgrpc.consume.failures import BlockCause, Failure, Where
from bulkgrpc.consume.ports import Applied, NotNext, RecordLogError, WriteFailed
from bulkgrpc.datasets.codec import BatchCodec
from bulkgrpc.model import JobKey, Kind
from bulkgrpc.positions import Outcome, Ownership
from tests.support import examples
from tests.support.worker_ports import FakeDeadLetters, FakeRegistry, FakeWriter, fetched, seal
from workers.writer import DECODED_LATE_ROWS, NotApplied, Result, WriterThread

WITHIN_S = 20.0
CHUNK = Chunk((Span(0, 0, 5, 1),), (), 0)
BROKEN = WriteFailed(Failure(Where.CONNECT, "", "OperationalError", "the connection is lost"))
TIMED_OUT = WriteFailed(Failure(Where.ROWS, "57014", "QueryCanceled", "statement timeout", dataset="weather"))
SESSION_ENDED = WriteFailed(Failure(Where.ROWS, "57P01", "AdminShutdown", "terminating connection", dataset="weather"))
NO_TABLE = WriteFailed(Failure(Where.ROWS, "42P01", "UndefinedTable", "relation does not exist", dataset="weather"))
AT_ITS_END = NotNext({0: Outcome.REPLAY}, {0: Ownership(0, 5, 1)})
FENCED = NotNext({0: Outcome.FENCED}, {0: Ownership(0, 0, 2)})


def write_one(writer: FakeWriter, chunk: Chunk = CHUNK) -> Result:
    """Writes one chunk."""
    thread = WriterThread(writer, FakeRegistry(), FakeDeadLetters(), threading.Event())
    thread.start()
    try:
        thread.submit(chunk)
        result = thread.result(WITHIN_S)
        assert result is not None
        return result
    finally:
        thread.stop(WITHIN_S)


Outcomes = Callable[..., Applied | NotApplied]


@pytest.fixture
def outcome_of() -> Outcomes:
    """Writes one chunk; the writer returns or raises the given outcomes, one per attempt."""

    def write(*outcomes: Applied | Exception) -> Applied | NotApplied:
        writer = FakeWriter(*outcomes)
        thread = WriterThread(writer, FakeRegistry(), FakeDeadLetters(), threading.Event())
        thread.start()
        try:
            thread.submit(CHUNK)
            result = thread.result(WITHIN_S)
            assert result is not None
            assert not writer.outcomes
            return result.outcome
        finally:
            thread.stop(WITHIN_S)
            assert writer.closed == 1

    return write


def test_a_chunk_is_written_again_after_the_connection_fails(outcome_of: Outcomes) -> None:
    applied = Applied({}, 1.0, 2.0)
    assert outcome_of(BROKEN, BROKEN, applied) is applied


def test_a_chunk_whose_commit_went_through_unanswered_counts_as_applied(outcome_of: Outcomes) -> None:
    assert outcome_of(BROKEN, AT_ITS_END) == Applied({})


def test_a_chunk_that_was_replayed_is_not_applied(outcome_of: Outcomes) -> None:
    assert outcome_of(AT_ITS_END) == NotApplied(AT_ITS_END.outcomes)


def test_a_chunk_that_is_fenced_is_not_applied(outcome_of: Outcomes) -> None:
    assert outcome_of(BROKEN, FENCED) == NotApplied(FENCED.outcomes)


def test_a_dataset_whose_rows_take_too_long_is_isolated_and_the_chunk_is_written_without_it() -> None:
    applied = Applied({}, parked=1)
    writer = FakeWriter(TIMED_OUT, applied)
    result = write_one(writer)
    assert (result.outcome, result.too_slow) == (applied, True)
    assert writer.blocked == [("weather", BlockCause.ISOLATING)]


def test_a_dataset_whose_table_cannot_be_written_is_blocked_and_the_chunk_is_written_without_it() -> None:
    applied = Applied({}, parked=1)
    writer = FakeWriter(NO_TABLE, applied)
    result = write_one(writer)
    assert (result.outcome, result.too_slow) == (applied, False)
    assert writer.blocked == [("weather", BlockCause.TABLE)]


def test_a_dataset_that_ended_sessions_is_isolated_at_the_next_one() -> None:
    applied = Applied({}, parked=1)
    writer = FakeWriter(SESSION_ENDED, SESSION_ENDED, SESSION_ENDED, applied, SESSION_ENDED, applied)
    thread = WriterThread(writer, FakeRegistry(), FakeDeadLetters(), threading.Event())
    thread.start()
    try:
        for _ in range(2):
            thread.submit(CHUNK)
            result = thread.result(WITHIN_S)
            assert result is not None
            assert result.outcome == applied
    finally:
        thread.stop(WITHIN_S)
    assert not writer.outcomes
    assert writer.blocked == [("weather", BlockCause.ISOLATING)] * 2


def test_a_failure_without_a_culprit_isolates_every_dataset_of_the_chunk() -> None:
    item = Received(0, 0, seal(0, 0).message, b"")  # type: ignore[arg-type]
    chunk = Chunk((Span(0, 0, 5, 1),), (item,), 0)
    writer = FakeWriter(WriteFailed(Failure(Where.COMMIT, "23503", "ForeignKeyViolation", "text")), Applied({}))
    write_one(writer, chunk)
    assert writer.blocked == [("d", BlockCause.ISOLATING)]


def test_a_broken_build_is_raised_in_the_poll_loop() -> None:
    with pytest.raises(WriteFailed, match="psycopg"):
        write_one(FakeWriter(WriteFailed(Failure(Where.LEDGER, "", "ModuleNotFoundError", "psycopg"))))


def test_a_worker_that_stops_does_not_wait_for_an_unavailable_store() -> None:
    stopping = threading.Event()
    stopping.set()
    thread = WriterThread(FakeWriter(BROKEN), FakeRegistry(), FakeDeadLetters(), stopping)
    thread.start()
    thread.submit(CHUNK)
    result = thread.result(WITHIN_S)
    assert result is not None
    assert result.outcome == NotApplied()
    thread.stop(WITHIN_S)


def received(message: Fetched) -> Received:
    assert message.message is not None
    return Received(message.partition, message.offset, message.message, message.payload, message.headers, message.key)


def batch(offset: int, dataset: str = "d") -> Fetched:
    """A batch of a dataset's version 1, without records."""
    message = seal(0, offset)
    assert message.message is not None
    spec = replace(message.message.spec, dataset=dataset)
    return replace(message, message=replace(message.message, kind=Kind.BATCH, spec=spec))


def test_a_message_of_no_job_is_a_dead_letter_and_the_others_are_written() -> None:
    unreadable = fetched(0, 0, None, "unknown format b'9'")
    unknown, known, of_unknown = batch(1, "unknown"), batch(2, "sensor_readings"), seal(0, 3)
    items = received(unknown), received(known), received(of_unknown)
    chunk = Chunk((Span(0, 0, 4, 1),), items, 0, (unreadable,))
    writer, dead_letters = FakeWriter(Applied({})), FakeDeadLetters()
    registry = FakeRegistry({("sensor_readings", 1): BatchCodec(examples.readings())})
    thread = WriterThread(writer, registry, dead_letters, threading.Event())
    thread.start()
    try:
        thread.submit(chunk)
        result = thread.result(WITHIN_S)
    finally:
        thread.stop(WITHIN_S)
    assert dead_letters.added == [(unreadable, "unknown format b'9'")]
    assert result is not None
    assert result.chunk.spans == chunk.spans
    # What belongs to a job is for the transaction to park, with what follows it.
    assert [item.offset for item in writer.written[0].chunk.items] == [1, 2, 3]
    ((index, failure),) = writer.written[0].unreadable.items()
    assert (index, failure.missing_version) == (0, 1)
    assert failure.message == "version 1 of dataset unknown is not in the registry"


def test_a_damaged_message_is_a_dead_letter_only_if_its_job_is_unknown() -> None:
    fetched_batches = [batch(offset) for offset in range(3)]
    items = [received(one) for one in fetched_batches]
    keys = [JobKey("acme", uuid.UUID(int=n)) for n in (1, 2, 3)]
    items = [
        replace(item, message=replace(item.message, spec=replace(item.message.spec, key=key), damage="x"))
        for item, key in zip(items, keys, strict=True)
    ]
    # The first message of the third job is in the chunk; the ledger has the second.
    items.append(replace(items[2], offset=3, message=replace(items[2].message, damage="")))
    registry = FakeRegistry()
    registry.jobs.add(keys[1])
    kept, dead = without_dead_letters(Chunk((), tuple(items), 0), registry)
    assert [item.offset for item in kept.items] == [1, 2, 3]
    assert [(letter.offset, reason) for letter, reason in dead] == [(0, f"x; the ledger has no {keys[0].name}")]


def test_a_batch_waits_while_its_dataset_cannot_be_looked_up() -> None:
    chunk = Chunk((Span(0, 0, 2, 1),), (received(batch(0)),), 0, (fetched(0, 1, None, "unknown format b'9'"),))
    registry, writer, dead_letters = FakeRegistry(), FakeWriter(Applied({})), FakeDeadLetters()
    registry.available = False
    thread = WriterThread(writer, registry, dead_letters, threading.Event())
    thread.start()
    try:
        thread.submit(chunk)
        assert registry.asked.wait(WITHIN_S)
        assert not dead_letters.added
        registry.available = True
        result = thread.result(WITHIN_S)
    finally:
        thread.stop(WITHIN_S)
    assert result is not None
    assert isinstance(result.outcome, Applied)
    assert [reason for _, reason in dead_letters.added] == ["unknown format b'9'"]
    assert list(writer.written[0].unreadable) == [0]


def test_a_codec_that_cannot_be_made_concerns_its_dataset_only() -> None:
    class Broken(FakeRegistry):
        def codec(self, name: str, version: int) -> BatchCodec:
            raise TypeError("couldn't parse the descriptors")

    writer = FakeWriter(Applied({}))
    thread = WriterThread(writer, Broken(), FakeDeadLetters(), threading.Event())
    thread.start()
    try:
        thread.submit(Chunk((Span(0, 0, 1, 1),), (received(batch(0)),), 0))
        result = thread.result(WITHIN_S)
    finally:
        thread.stop(WITHIN_S)
    assert result is not None
    assert [failure.message for failure in writer.written[0].undecodable.values()] == ["couldn't parse the descriptors"]


def test_a_dead_letter_is_stored_again_until_the_log_takes_it() -> None:
    class Refusing(FakeDeadLetters):
        refusals = 2

        def add(self, message: Fetched, reason: str) -> None:
            if self.refusals:
                self.refusals -= 1
                raise RecordLogError("Kafka does not answer")
            super().add(message, reason)

    unreadable = fetched(0, 0, None, "unknown format b'9'")
    dead_letters, writer = Refusing(), FakeWriter(Applied({}))
    thread = WriterThread(writer, FakeRegistry(), dead_letters, threading.Event())
    thread.start()
    try:
        thread.submit(Chunk((Span(0, 0, 1, 1),), (), 0, (unreadable,)))
        result = thread.result(WITHIN_S)
    finally:
        thread.stop(WITHIN_S)
    assert result is not None
    assert isinstance(result.outcome, Applied)
    assert dead_letters.added == [(unreadable, "unknown format b'9'")]


def test_a_worker_that_stops_does_not_wait_for_an_unavailable_registry() -> None:
    registry, stopping = FakeRegistry(), threading.Event()
    registry.available = False
    thread = WriterThread(FakeWriter(), registry, FakeDeadLetters(), stopping)
    thread.start()
    thread.submit(Chunk((Span(0, 0, 1, 1),), (received(batch(0)),), 0))
    assert registry.asked.wait(WITHIN_S)
    stopping.set()
    result = thread.result(WITHIN_S)
    assert result is not None
    assert result.outcome == NotApplied()
    thread.stop(WITHIN_S)


class LookingWriter(FakeWriter):
    """Notes which chunks were decoded before they came, and writes them all."""

    def __init__(self, chunks: int) -> None:
        super().__init__(*[Applied({})] * chunks)
        self.decoded: list[bool] = []

    def write(self, chunk: DecodableChunk, blocked: Collection[str] = ()) -> Applied:
        self.decoded.append("prepared" in vars(chunk))
        return super().write(chunk, blocked)


def test_a_small_chunk_that_finds_the_writer_idle_is_decoded_by_it() -> None:
    small, large = replace(CHUNK, rows=DECODED_LATE_ROWS), replace(CHUNK, rows=DECODED_LATE_ROWS + 1)
    writer = LookingWriter(4)
    thread = WriterThread(writer, FakeRegistry(), FakeDeadLetters(), threading.Event())
    thread.start()
    try:
        written = []
        for together in ([small], [large], [small, small]):
            for chunk in together:
                thread.submit(chunk)
            written += [thread.result(WITHIN_S) for _ in together]
    finally:
        thread.stop(WITHIN_S)
    assert [None if result is None else result.chunk for result in written] == [small, large, small, small]
    assert writer.decoded == [False, True, False, True]
