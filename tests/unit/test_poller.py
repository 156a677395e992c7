"""The poll loop, with its ports in memory."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pytest

from bulkgrpc.consume.assembly import Chunk, EndReached, Fetched, Span
from bulkgrpc.consume.backpressure import PAUSE_AFTER_S
from bulkgrpc.consume.express import LATE_AFTER
from bulkgrpc.consume.log_identity import Stop, StopCause
from bulkgrpc.consume.ports import Applied, RecordLogError
from bulkgrpc.consume.stall import BEHIND_S, CHECK_EVERY_S, SILENT_S
from bulkgrpc.positions import Outcome, Ownership
from bulkgrpc.settings import WorkerSettings, load
from tests.support.worker_ports import FakeQueue, Fakes, fetched, seal
from workers.intake import BACKLOG_BYTES_MAX, BACKLOG_MESSAGES_MAX, FETCH_MESSAGES_MAX, POLL_EVERY_S
from workers.partitions import CHECK_AGAIN_S, FENCED_WAIT_S
from workers.poller import CALM_S, HOT_FOR_S, SHARED_CHUNK_S, Poller
from workers.writer import Result

SETTINGS = load(WorkerSettings)


@pytest.fixture
def fakes() -> Fakes:
    return Fakes()


@pytest.fixture
def poller(fakes: Fakes) -> Poller:
    """A worker that owns partitions 0 and 1."""
    poller = Poller(SETTINGS, fakes.ports(), fakes.queue, fakes.express, threading.Event())
    poller.join()
    fakes.log.assign([0, 1])
    return poller


def test_offsets_of_an_applied_chunk_are_committed(poller: Poller, fakes: Fakes) -> None:
    fakes.log.pending += [seal(0, 0), seal(0, 1), seal(1, 0)]
    poller.step()
    fakes.queue.apply()
    poller.step()
    assert fakes.log.committed == {0: 2, 1: 1}


def test_a_chunk_that_is_fenced_while_the_log_is_paused_does_not_stop_the_worker(poller: Poller, fakes: Fakes) -> None:
    fakes.log.pending += [seal(0, 0)]
    poller.step()
    fakes.now_s += 10
    fakes.log.pending += [seal(0, 1)]
    poller.step()
    poller.step()
    assert fakes.log.paused == {0, 1}
    fakes.ledger.positions[0] = Ownership(0, 0, 99)
    fakes.queue.deny(Outcome.FENCED)
    poller.step()
    assert fakes.log.paused == {0}
    fakes.now_s += FENCED_WAIT_S + 1
    poller.step()
    assert fakes.log.paused == set()
    assert fakes.ledger.positions[0].owner_epoch == 100


def test_pending_messages_of_a_revoked_partition_are_discarded_and_fetching_resumes(
    poller: Poller, fakes: Fakes
) -> None:
    fakes.log.pending += [seal(0, 0)]
    poller.step()
    fakes.now_s += 10
    fakes.log.pending += [seal(1, 0)]
    poller.step()
    poller.step()
    assert fakes.log.paused == {0, 1}
    fakes.log.revoked([0, 1])
    fakes.queue.apply()
    poller.step()
    fakes.log.assign([0, 1])
    poller.step()
    assert fakes.log.paused == set()


def test_late_messages_let_the_express_path_serve_the_others(poller: Poller, fakes: Fakes) -> None:
    late = seal(0, 0).message
    assert late is not None
    for offset in range(2):
        message = replace(late, records=1, sent_at=late.sent_at - 2 * LATE_AFTER)
        fakes.log.pending.append(fetched(0, offset, message))
        poller.step()
        fakes.queue.apply()
        poller.step()
        # One chunk may be of one tenant by chance.
        assert (fakes.express.hot is None) is (offset == 0)
        fakes.now_s += HOT_FOR_S
    assert fakes.express.hot == frozenset({"acme"})
    fakes.now_s += CALM_S + 1
    poller.step()
    assert fakes.express.hot is None


def test_messages_in_time_are_left_to_the_main_path(poller: Poller, fakes: Fakes) -> None:
    fakes.log.pending.append(of_rows(0, 1))
    poller.step()
    fakes.queue.apply()
    poller.step()
    assert fakes.express.hot is None


def test_what_the_express_path_applied_is_passed_over(poller: Poller, fakes: Fakes) -> None:
    fakes.express.applied = {(0, 0), (0, 2)}
    fakes.log.pending += [seal(0, 0), seal(0, 1), seal(0, 2)]
    poller.step()
    chunk = fakes.queue.apply()
    assert [item.offset for item in chunk.items] == [1]
    assert chunk.spans == (Span(0, 0, 3, 1),)


def test_what_the_express_path_applied_is_forgotten_with_the_partitions(poller: Poller, fakes: Fakes) -> None:
    fakes.log.revoked([0])
    assert fakes.express.forgotten == 1


def test_chunks_are_smaller_while_the_express_path_serves_others(poller: Poller, fakes: Fakes) -> None:
    before = poller.intake.chunk.bounds.rows_max

    def write(offset: int) -> None:
        fakes.log.pending.append(of_rows(offset, before))
        poller.step()
        fakes.queue.apply(Applied({}, before * 10e-6, before * 10e-6 + 0.005))
        poller.step()

    for offset in range(5):
        write(offset)
    usual = poller.intake.chunk.bounds.rows_max
    fakes.express.serves = True
    write(5)
    assert poller.intake.chunk.bounds.rows_max * 10e-6 < 1.5 * SHARED_CHUNK_S
    fakes.express.serves = False
    write(6)
    assert poller.intake.chunk.bounds.rows_max == usual


def test_a_gap_that_kafka_deleted_is_read_again_once_and_then_stops_its_partition(poller: Poller, fakes: Fakes) -> None:
    fakes.log.pending += [seal(0, 5)]
    poller.step()
    assert fakes.log.seeks == [{0: 0}]
    fakes.log.starts = {0: 5}
    fakes.log.pending += [seal(0, 5)]
    poller.step()
    assert fakes.topic.stored == {0: Stop(StopCause.MESSAGES_DELETED, 0, 5)}
    assert fakes.log.paused == {0}
    fakes.log.pending += [seal(0, 6), seal(1, 0)]
    poller.step()
    assert submitted(fakes) == [{1}]


def test_messages_before_a_gap_are_written(poller: Poller, fakes: Fakes) -> None:
    fakes.log.starts = {0: 5}
    for _ in range(2):
        fakes.log.pending += [seal(0, 0), seal(0, 5)]
        poller.step()
        poller.step()
    assert fakes.topic.stored == {0: Stop(StopCause.MESSAGES_DELETED, 1, 5)}
    assert submitted(fakes) == [{0}]


def test_a_partition_that_does_not_match_the_ledger_stops_and_others_continue(poller: Poller, fakes: Fakes) -> None:
    fakes.log.pending += [seal(1, 0)]
    poller.step()
    fakes.log.pending += [seal(0, 0), seal(1, 1)]
    poller.step()
    assert not poller.intake.chunk.empty
    fakes.topic.findings = ({0, 1}, {0: Stop(StopCause.MESSAGES_DELETED, 0, 7)})
    poller.step()
    assert fakes.log.paused == {0}
    assert fakes.topic.watched == {0, 1}
    fakes.queue.apply()
    poller.step()
    assert submitted(fakes) == [{1}]


def test_a_stopped_partition_continues_at_the_ledgers_position_once_it_matches(poller: Poller, fakes: Fakes) -> None:
    fakes.topic.findings = ({0, 1}, {0: Stop(StopCause.MESSAGES_DELETED, 0, 7)})
    poller.step()
    fakes.ledger.positions[0] = replace(fakes.ledger.positions[0], next_offset=7)
    fakes.topic.findings = ({1}, {})
    poller.step()
    assert fakes.log.paused == {0}
    fakes.topic.findings = ({0, 1}, {})
    poller.step()
    assert fakes.log.paused == set()
    assert fakes.log.seeks[-1] == {0: 7}


def test_the_group_is_joined_again_once_another_topic_is_adopted(poller: Poller, fakes: Fakes) -> None:
    stop = Stop(StopCause.TOPIC_REPLACED, 0, 0)
    fakes.topic.findings = ({0, 1}, {0: stop, 1: stop})
    poller.step()
    assert fakes.log.paused == {0, 1}
    fakes.topic.findings = ({0, 1}, {})
    poller.step()
    assert (fakes.log.rejoined, fakes.log.paused) == (1, set())
    poller.step()
    assert fakes.log.rejoined == 1


def test_a_partition_that_does_not_match_when_it_is_assigned_is_not_acquired(fakes: Fakes) -> None:
    fakes.topic.stops = {1: Stop(StopCause.LOG_TRUNCATED, 3, 9)}
    poller = Poller(SETTINGS, fakes.ports(), fakes.queue, fakes.express, threading.Event())
    poller.join()
    fakes.log.assign([0, 1])
    assert fakes.log.paused == {1}
    assert set(fakes.ledger.positions) == {0}
    poller.step()
    assert set(fakes.ledger.positions) == {0}


def test_partitions_are_acquired_once_the_log_answers(fakes: Fakes) -> None:
    fakes.topic.available = False
    poller = Poller(SETTINGS, fakes.ports(), fakes.queue, fakes.express, threading.Event())
    poller.join()
    fakes.log.assign([0, 1])
    poller.step()
    assert not fakes.ledger.positions
    fakes.topic.available = True
    fakes.topic.unexamined = {1}
    fakes.now_s += CHECK_AGAIN_S + 0.1
    poller.step()
    assert set(fakes.ledger.positions) == {0}
    fakes.topic.unexamined = set()
    fakes.now_s += CHECK_AGAIN_S + 0.1
    poller.step()
    assert fakes.log.paused == set()


def test_an_error_of_one_partition_has_it_compared_with_the_ledger_and_read_again(poller: Poller, fakes: Fakes) -> None:
    fakes.log.failed = {0: "OFFSET_OUT_OF_RANGE", -1: "UNKNOWN_TOPIC_OR_PART"}
    poller.step()
    assert fakes.log.paused == {0}
    fakes.now_s += CHECK_AGAIN_S + 0.1
    poller.step()
    assert fakes.log.paused == set()
    assert fakes.log.seeks[-1] == {0: 0}
    fakes.topic.stops = {0: Stop(StopCause.MESSAGES_DELETED, 0, 7)}
    fakes.log.failed = {0: "OFFSET_OUT_OF_RANGE"}
    poller.step()
    fakes.now_s += CHECK_AGAIN_S + 0.1
    poller.step()
    assert fakes.log.paused == {0}


def spans(chunk: Chunk) -> list[tuple[int, int, int]]:
    """Return the spans of a chunk as (partition, from, to)."""
    return [(span.partition, span.from_offset, span.to_offset) for span in chunk.spans]


def test_a_gap_that_kafka_did_not_delete_is_read_again_and_then_passed_over_with_the_next_message(
    poller: Poller, fakes: Fakes
) -> None:
    fakes.log.pending += [seal(0, 0), seal(0, 2)]
    poller.step()
    assert spans(fakes.queue.apply()) == [(0, 0, 1)]
    assert fakes.log.seeks == [{0: 1}]
    fakes.log.pending += [seal(0, 2), seal(0, 3)]
    poller.step()
    chunk = fakes.queue.apply()
    assert spans(chunk) == [(0, 1, 4)]
    assert offsets(chunk) == [(0, 2), (0, 3)]
    poller.step()
    assert fakes.log.committed == {0: 4}


def test_a_log_that_ends_without_a_message_moves_the_ledger_and_is_not_stalled(poller: Poller, fakes: Fakes) -> None:
    fakes.log.ends = {0: 3}
    fakes.log.pending += [seal(0, 0)]
    fakes.log.reached = [EndReached(0, 3)]
    poller.step()
    assert spans(fakes.queue.apply()) == [(0, 0, 1)]
    assert fakes.log.seeks == [{0: 1}]
    fakes.log.reached = [EndReached(0, 3)]
    poller.step()
    chunk = fakes.queue.apply()
    assert spans(chunk) == [(0, 1, 3)]
    assert not chunk.items
    pass_time(poller, fakes, 5 * SILENT_S)
    assert fakes.log.committed == {0: 3}
    assert fakes.log.rejoined == 0


def test_many_gaps_are_passed_over_after_reading_once_more(poller: Poller, fakes: Fakes) -> None:
    found = [seal(0, offset) for offset in range(0, 20, 2)]
    fakes.log.pending += found
    poller.step()
    assert spans(fakes.queue.apply()) == [(0, 0, 1)]
    fakes.log.pending += [*found[1:], seal(0, 19)]
    poller.step()
    assert spans(fakes.queue.apply()) == [(0, 1, 20)]
    assert fakes.log.seeks == [{0: 1}]


def test_each_end_of_a_log_that_grows_by_control_records_counts(poller: Poller, fakes: Fakes) -> None:
    ends = [EndReached(0, 2), EndReached(0, 3)]
    fakes.log.reached = list(ends)
    poller.step()
    fakes.log.reached = list(ends)
    poller.step()
    assert spans(fakes.queue.apply()) == [(0, 0, 3)]
    assert fakes.log.seeks == [{0: 0}]


def test_the_end_of_a_log_that_was_read_up_to_it_changes_nothing(poller: Poller, fakes: Fakes) -> None:
    fakes.log.reached = [EndReached(0, 0), EndReached(1, 0), EndReached(7, 9)]
    poller.step()
    fakes.log.pending += [seal(0, 0)]
    fakes.log.reached = [EndReached(0, 1)]
    poller.step()
    assert spans(fakes.queue.apply()) == [(0, 0, 1)]
    poller.step()
    assert poller.intake.empty
    assert not fakes.queue.outstanding
    assert fakes.log.seeks == []


def test_while_the_start_of_kafkas_log_is_not_known_a_gap_is_read_again(poller: Poller, fakes: Fakes) -> None:
    fakes.log.starts = {0: None}
    for _ in range(3):
        fakes.log.pending += [seal(0, 2)]
        poller.step()
    assert fakes.log.seeks == [{0: 0}] * 3
    assert poller.intake.empty


def test_a_partition_that_cannot_be_read_again_now_continues_at_the_ledgers_position(
    poller: Poller, fakes: Fakes, monkeypatch: pytest.MonkeyPatch
) -> None:
    def not_ready(_: Mapping[int, int]) -> None:
        raise RecordLogError("erroneous state")

    fakes.log.pending += [seal(0, 2)]
    with monkeypatch.context() as patched:
        patched.setattr(fakes.log, "seek", not_ready)
        poller.step()
    assert fakes.log.paused == {0, 1}
    poller.step()
    assert fakes.log.seeks == [{0: 0, 1: 0}]


def test_a_gap_that_is_found_while_the_log_is_paused_does_not_resume_it(poller: Poller, fakes: Fakes) -> None:
    fakes.log.pending += [seal(0, 0)]
    poller.step()
    fakes.now_s += PAUSE_AFTER_S + 1
    fakes.log.pending += [seal(1, 0)]
    poller.step()
    poller.step()
    assert fakes.log.paused == {0, 1}
    poller.partitions.check_gap([seal(1, 7)])
    assert fakes.log.paused == {0, 1}


def newer(partition: int, offset: int) -> Fetched:
    """A message of a newer format."""
    return replace(fetched(partition, offset, None), newer_format=2)


def test_a_message_of_a_newer_format_holds_its_partition_and_what_is_before_it_is_written(
    poller: Poller, fakes: Fakes
) -> None:
    fakes.log.pending += [seal(0, 0), newer(0, 1), seal(0, 2), seal(1, 0)]
    poller.step()
    chunk = fakes.queue.apply()
    assert offsets(chunk) == [(0, 0), (1, 0)]
    assert not chunk.malformed
    assert fakes.log.paused == {0}
    assert poller.intake.empty
    fakes.log.pending += [seal(1, 1)]
    poller.step()
    poller.step()
    assert offsets(fakes.queue.apply()) == [(1, 1)]
    assert fakes.log.committed == {0: 1, 1: 1}
    # The chunk behind it is not written by this worker, whatever Kafka returns.
    fakes.log.paused.clear()
    fakes.log.pending += [seal(0, 2)]
    poller.step()
    assert not fakes.queue.submitted
    assert fakes.log.seeks == []


def test_a_held_partition_is_not_stalled(poller: Poller, fakes: Fakes) -> None:
    fakes.log.ends = {0: 2, 1: 0}
    fakes.log.pending += [newer(0, 0)]
    poller.step()
    pass_time(poller, fakes, 2 * BEHIND_S)
    assert fakes.log.rejoined == 0


def test_a_held_partition_stays_paused_when_the_log_resumes(poller: Poller, fakes: Fakes) -> None:
    fakes.log.pending += [newer(0, 0), seal(1, 0)]
    poller.step()
    fakes.now_s += PAUSE_AFTER_S + 1
    fakes.log.pending += [seal(1, 1)]
    poller.step()
    poller.step()
    assert fakes.log.paused == {0, 1}
    fakes.queue.apply()
    poller.step()
    assert fakes.log.paused == {0}


def test_a_held_partition_is_held_again_after_it_was_read_again(poller: Poller, fakes: Fakes) -> None:
    fakes.log.pending += [newer(0, 0), seal(1, 0)]
    poller.step()
    fakes.queue.deny(Outcome.GAP)
    poller.step()
    poller.step()
    assert fakes.log.seeks == [{0: 0, 1: 0}]
    assert fakes.log.paused == set()
    fakes.log.pending += [newer(0, 0)]
    poller.step()
    assert fakes.log.paused == {0}


def test_a_held_partition_that_moves_to_another_worker_is_forgotten(poller: Poller, fakes: Fakes) -> None:
    fakes.log.pending += [newer(0, 0)]
    poller.step()
    fakes.log.revoked([0])
    assert poller.partitions.owned.held == {}
    fakes.log.assign([0])
    assert fakes.log.paused == set()


def test_the_bound_of_the_next_chunk_follows_from_the_duration_of_the_last_ones(poller: Poller, fakes: Fakes) -> None:
    before = poller.intake.chunk.bounds
    for offset in range(20):
        rows = poller.intake.chunk.bounds.rows_max
        fakes.log.pending.append(of_rows(offset, rows))
        poller.step()
        fakes.queue.apply(Applied({}, rows * 100e-6, rows * 100e-6 + 0.005))
        poller.step()
    assert poller.intake.chunk.bounds.rows_max < before.rows_max / 2
    assert poller.intake.chunk.bounds.rows_max * 100e-6 < 1.5 * SETTINGS.chunk_commit_ms / 1000
    assert poller.intake.chunk.bounds.bytes_max == before.bytes_max


def test_chunks_become_smaller_after_rows_took_too_long(
    poller: Poller,
    fakes: Fakes,
) -> None:
    before = poller.intake.chunk.bounds.rows_max
    fakes.log.pending += [seal(0, 0)]
    poller.step()
    fakes.queue.time_out()
    poller.step()
    assert poller.intake.chunk.bounds.rows_max < before


def submitted(fakes: Fakes) -> list[set[int]]:
    """The partitions of each chunk that the writer has."""
    return [{span.partition for span in chunk.spans} for chunk in fakes.queue.submitted]


def of_rows(offset: int, rows: int) -> Fetched:
    """A message that counts as many rows and needs no decoding."""
    message = seal(0, offset).message
    assert message is not None
    return fetched(0, offset, replace(message, records=rows))


def pass_time(poller: Poller, fakes: Fakes, seconds: float) -> None:
    """Let time pass while the poller polls."""
    until_s = fakes.now_s + seconds
    while fakes.now_s < until_s:
        fakes.now_s += CHECK_EVERY_S
        poller.step()


def test_the_worker_joins_its_group_again_if_kafka_does_not_deliver_messages_that_it_has(
    poller: Poller, fakes: Fakes
) -> None:
    poller.step()
    fakes.log.ends = {0: 1}
    pass_time(poller, fakes, SILENT_S)
    assert fakes.log.rejoined == 0
    pass_time(poller, fakes, CHECK_EVERY_S)
    assert fakes.log.rejoined == 1
    epoch = fakes.ledger.positions[0].owner_epoch
    fakes.log.pending += [seal(0, 0)]
    poller.step()
    poller.step()
    assert [span.owner_epoch for span in fakes.queue.apply().spans] == [epoch]


def test_a_partition_without_messages_is_not_stalled(poller: Poller, fakes: Fakes) -> None:
    pass_time(poller, fakes, 5 * SILENT_S)
    fakes.log.ends = {0: None, 1: None}
    pass_time(poller, fakes, 2 * SILENT_S)
    assert fakes.log.rejoined == 0


def test_a_message_that_kafka_received_just_now_is_not_stalled_after_a_long_silence(
    poller: Poller, fakes: Fakes
) -> None:
    pass_time(poller, fakes, 5 * SILENT_S)
    fakes.log.ends = {0: 1}
    pass_time(poller, fakes, CHECK_EVERY_S)
    assert fakes.log.rejoined == 0


def test_a_message_that_waits_behind_another_partition_is_not_stalled_for_long(poller: Poller, fakes: Fakes) -> None:
    poller.step()
    fakes.log.ends = {1: 1}
    offset = 0

    def busy(seconds: float) -> None:
        nonlocal offset
        until_s = fakes.now_s + seconds
        while fakes.now_s < until_s:
            fakes.now_s += 1
            fakes.log.pending.append(seal(0, offset))
            offset += 1
            poller.step()
            fakes.queue.apply()
            fakes.ledger.positions[0] = replace(fakes.ledger.positions[0], next_offset=offset)

    busy(5 * SILENT_S)
    assert fakes.log.rejoined == 0
    busy(BEHIND_S)
    assert fakes.log.rejoined == 1


def test_partitions_that_are_assigned_while_the_ledger_is_unavailable_are_acquired_later(fakes: Fakes) -> None:
    poller = Poller(SETTINGS, fakes.ports(), fakes.queue, fakes.express, threading.Event())
    poller.join()
    fakes.ledger.available = False
    fakes.log.assign([0, 1])
    poller.step()
    assert fakes.log.paused == {0, 1}
    fakes.ledger.available = True
    fakes.now_s += 10
    poller.step()
    assert fakes.log.paused == set()
    assert fakes.log.seeks[-1] == {0: 0, 1: 0}


def offsets(chunk: Chunk) -> list[tuple[int, int]]:
    """Return the messages of a chunk, in order, as (partition, offset)."""
    return [(item.partition, item.offset) for item in chunk.items]


def test_partitions_have_equal_shares_of_a_chunk_each_in_offset_order(poller: Poller, fakes: Fakes) -> None:
    fakes.log.pending += [of_rows(offset, 1000) for offset in range(4)]
    fakes.log.pending += [replace(of_rows(offset, 1000), partition=1) for offset in range(2)]
    poller.step()
    assert offsets(fakes.queue.apply()) == [(0, 0), (1, 0), (0, 1), (1, 1), (0, 2), (0, 3)]


def test_many_small_messages_of_a_partition_count_as_little_as_they_are(poller: Poller, fakes: Fakes) -> None:
    rows = poller.intake.chunk.bounds.rows_max
    fakes.log.pending += [of_rows(offset, rows // 2) for offset in range(4)]
    fakes.log.pending += [replace(of_rows(offset, 100), partition=1) for offset in range(20)]
    poller.step()
    assert offsets(fakes.queue.apply()) == [(0, 0), *((1, offset) for offset in range(20)), (0, 1)]


def test_a_message_of_a_quiet_partition_is_in_the_next_chunk_though_another_partition_has_a_backlog(
    poller: Poller, fakes: Fakes
) -> None:
    rows = SETTINGS.chunk_rows_max
    fakes.log.pending += [of_rows(offset, rows) for offset in range(10)]
    for _ in range(10):
        poller.step()
    assert [offsets(chunk) for chunk in fakes.queue.submitted] == [[(0, 0)], [(0, 1)]]
    fakes.now_s += POLL_EVERY_S
    poller.step()
    # It arrives while the writer has no room, behind the other partition's messages.
    fakes.log.pending += [*(of_rows(offset, rows) for offset in range(10, 14)), seal(1, 0)]
    fakes.now_s += POLL_EVERY_S
    poller.step()
    fakes.queue.apply()
    poller.step()
    fakes.queue.apply()
    poller.step()
    assert (1, 0) in offsets(fakes.queue.submitted[0]) + offsets(fakes.queue.submitted[1])


def test_the_first_partition_of_a_chunk_is_the_one_whose_turn_is_next(poller: Poller, fakes: Fakes) -> None:
    rows = SETTINGS.chunk_rows_max
    fakes.log.pending += [of_rows(offset, rows) for offset in range(3)]
    fakes.log.pending += [replace(of_rows(offset, rows), partition=1) for offset in range(3)]
    chunks = []
    for _ in range(6):
        poller.step()
        chunks += offsets(fakes.queue.apply())
    assert chunks == [(0, 0), (1, 0), (0, 1), (1, 1), (0, 2), (1, 2)]


def test_the_backlog_of_a_revoked_partition_is_discarded_and_that_of_others_written(
    poller: Poller, fakes: Fakes
) -> None:
    rows = SETTINGS.chunk_rows_max
    fakes.log.pending += [of_rows(offset, rows) for offset in range(5)]
    fakes.log.pending += [replace(of_rows(offset, rows), partition=1) for offset in range(2)]
    poller.step()
    poller.step()
    assert [offsets(chunk) for chunk in fakes.queue.submitted] == [[(0, 0)], [(1, 0)]]
    fakes.log.revoked([0])
    fakes.queue.apply()
    fakes.ledger.positions[0] = replace(fakes.ledger.positions[0], next_offset=1)
    fakes.log.assign([0])
    fakes.queue.apply()
    poller.step()
    assert offsets(fakes.queue.apply()) == [(1, 1)]
    poller.step()
    assert poller.intake.empty
    assert fakes.log.seeks == []


def test_a_gap_in_one_partition_leaves_the_others_as_they_are(poller: Poller, fakes: Fakes) -> None:
    fakes.log.pending += [seal(0, 0), seal(1, 3), seal(0, 1), seal(1, 4)]
    poller.step()
    assert offsets(fakes.queue.apply()) == [(0, 0), (0, 1)]
    assert poller.intake.empty
    assert fakes.log.paused == set()
    assert fakes.log.seeks == [{1: 0}]


def test_the_backlog_of_large_messages_is_bounded_by_bytes(fakes: Fakes) -> None:
    poller = Poller(SETTINGS, fakes.ports(), fakes.queue, fakes.express, threading.Event())
    poller.join()
    fakes.log.assign([0, 1])
    payload = bytes(BACKLOG_BYTES_MAX // 2)
    fakes.log.pending += [replace(of_rows(offset, SETTINGS.chunk_rows_max), payload=payload) for offset in range(400)]
    for _ in range(5):
        poller.step()
    # What is fetched at once may exceed the bound; then a poll takes one message.
    assert len(fakes.log.pending) >= 400 - FETCH_MESSAGES_MAX - 5


class SlowQueue(FakeQueue):
    """A `ChunkQueue` whose results never come: a wait takes the time that the caller allows. now: of `fakes`."""

    def __init__(self, fakes: Fakes) -> None:
        super().__init__()
        self._fakes = fakes

    def result(self, timeout_s: float) -> Result | None:
        self._fakes.now_s += timeout_s
        return None


def test_the_log_is_polled_while_a_slow_writer_has_no_room(fakes: Fakes) -> None:
    poller = Poller(SETTINGS, fakes.ports(), SlowQueue(fakes), fakes.express, threading.Event())
    poller.join()
    fakes.log.assign([0, 1])
    fetched_at_s: list[float] = []
    fetch = fakes.log.fetch

    def timed(messages_max: int, timeout_s: float) -> Sequence[Fetched]:
        fetched_at_s.append(fakes.now_s)
        return fetch(messages_max, timeout_s)

    fakes.log.fetch = timed  # type: ignore[method-assign]
    fakes.log.pending += [of_rows(offset, SETTINGS.chunk_rows_max) for offset in range(500)]
    for _ in range(300):
        poller.step()
    assert fetched_at_s[-1] - fetched_at_s[0] > PAUSE_AFTER_S
    assert max(np.diff(fetched_at_s)) < 0.1
    assert fakes.log.paused == {0, 1}
    # Memory stays bounded: beside two chunks of one message each, what is not fetched stays in Kafka.
    assert len(fakes.log.pending) >= 500 - BACKLOG_MESSAGES_MAX - 3
