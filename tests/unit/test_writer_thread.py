"""The writing thread: what it does about each failure of the `ChunkWriter`."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from bulkgrpc.consume.assembly import Chunk, Span
from bulkgrpc.consume.decode import PreparedChunk
from bulkgrpc.consume.failures import Action, Failure, Where
from bulkgrpc.consume.ports import Applied, NotNext, WriteFailed
from bulkgrpc.model import Outcome, Ownership
from tests.support.worker_ports import FakeWriter
from workers.writer import NotApplied, WriterThread

WITHIN_S = 20.0
CHUNK = PreparedChunk(Chunk((Span(0, 0, 5, 1),), (), 0), ())
BROKEN = WriteFailed(Failure("", "OperationalError", Where.CONNECTION, "the connection is lost"))
TIMED_OUT = WriteFailed(Failure("57014", "QueryCanceled", Where.STATEMENT, "statement timeout"))
NO_TABLE = WriteFailed(Failure("42P01", "UndefinedTable", Where.STATEMENT, "relation does not exist"))
AT_ITS_END = NotNext({0: Outcome.REPLAY}, {0: Ownership(0, 5, 1)})
FENCED = NotNext({0: Outcome.FENCED}, {0: Ownership(0, 0, 2)})

Outcomes = Callable[..., Applied | NotApplied]


@pytest.fixture
def outcome_of() -> Outcomes:
    """Writes one chunk; the writer returns or raises the given outcomes, one per attempt."""

    def write(*outcomes: Applied | Exception) -> Applied | NotApplied:
        writer = FakeWriter(*outcomes)
        thread = WriterThread(writer, threading.Event())
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
    assert outcome_of(AT_ITS_END) == NotApplied(Action.REREAD_LEDGER, AT_ITS_END.outcomes)


def test_a_chunk_that_is_fenced_is_not_applied(outcome_of: Outcomes) -> None:
    assert outcome_of(BROKEN, FENCED) == NotApplied(Action.REREAD_LEDGER, FENCED.outcomes)


def test_a_chunk_that_times_out_twice_is_split(outcome_of: Outcomes) -> None:
    assert outcome_of(TIMED_OUT, BROKEN, TIMED_OUT) == NotApplied(Action.SPLIT_CHUNK)


def test_any_other_failure_is_raised_in_the_poll_loop(outcome_of: Outcomes) -> None:
    with pytest.raises(WriteFailed, match="relation does not exist"):
        outcome_of(NO_TABLE)


def test_a_worker_that_stops_does_not_wait_for_an_unavailable_store() -> None:
    stopping = threading.Event()
    stopping.set()
    thread = WriterThread(FakeWriter(BROKEN), stopping)
    thread.start()
    thread.submit(CHUNK)
    result = thread.result(WITHIN_S)
    assert result is not None
    assert result.outcome == NotApplied(Action.REREAD_LEDGER)
    thread.stop(WITHIN_S)
