"""What shows that Kafka lost batches of a job, and what becomes of the job's messages."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from bulkgrpc.consume.assembly import Received
from bulkgrpc.consume.losses import LOST_IN_KAFKA, Loss, loss_shown_by
from bulkgrpc.consume.plan import Fate, Lane, LanePlan, LedgerView, plan_lanes
from bulkgrpc.model import JobKey, JobSpec, Kind, Message, lane_of

JOB = uuid.UUID(int=1)
NOW = datetime(2026, 1, 1, tzinfo=UTC)
SPEC = JobSpec(JobKey("acme", JOB), "k", "d", 1)


def batch(sequence: int, stored: int, *, lanes: int = 1, attempt: int = 0) -> Received:
    partitions = tuple(range(lanes)) if lanes > 1 else ()
    lane = lane_of(sequence, lanes)
    message = Message(
        Kind.BATCH, SPEC, lane, sequence, 10, 0, NOW, partitions=partitions, stored_sequence=stored, attempt=attempt
    )
    return Received(lane, 0, message, b"x")


def seal(batches: int, *, lane: int = 0, lanes: int = 1, attempt: int = 0) -> Received:
    partitions = tuple(range(lanes)) if lanes > 1 else ()
    message = Message(
        Kind.SEAL, SPEC, lane, batches, 0, 0, NOW, partitions=partitions, stored_sequence=batches, attempt=attempt
    )
    return Received(lane, 0, message, b"")


def plan(items: Sequence[Received], ledger: LedgerView = LedgerView(), *, attempt: int = 0, lanes: int = 1) -> LanePlan:
    counts = {JOB: lanes} if lanes > 1 else {}
    return plan_lanes(items, replace(ledger, attempts={JOB: attempt}, lane_counts=counts), NOW)


@pytest.mark.parametrize(
    ("next_sequence", "stored", "attempt", "row_attempt", "lost"),
    [
        (4, 5, 0, 0, True),
        (5, 5, 0, 0, False),
        (6, 5, 0, 0, False),
        (0, 1, 2, 2, True),
        (0, 0, 0, 0, False),
        (4, 5, 0, 1, False),
        (4, 5, 0, None, False),
    ],
)
def test_a_lane_that_needs_a_batch_that_was_stored_before_has_lost_it(
    next_sequence: int, stored: int, attempt: int, row_attempt: int | None, lost: bool
) -> None:
    message = batch(7, stored, attempt=attempt).message
    expected = Loss(0, next_sequence, stored) if lost else None
    assert loss_shown_by(message, 0, next_sequence, row_attempt) == expected


def test_a_batch_that_follows_a_hole_fails_its_job_and_what_comes_then_is_sent_again() -> None:
    found = plan([batch(0, 0), batch(2, 2), batch(1, 0), batch(3, 3), seal(4)])
    assert found.fates == (Fate.APPLY, Fate.LOST, Fate.KNOWN, Fate.KNOWN, Fate.KNOWN)
    assert found.losses == {JOB: Loss(0, 1, 2)}
    assert found.lanes == {(JOB, 0): Lane(1, sealed=False)}


def test_a_batch_after_a_gap_that_was_never_acknowledged_is_no_loss() -> None:
    found = plan([batch(0, 0), batch(2, 1), batch(1, 1), batch(2, 1), seal(3)])
    assert found.fates == (Fate.APPLY, Fate.KNOWN, Fate.APPLY, Fate.APPLY, Fate.APPLY)
    assert not found.losses


def test_a_seal_behind_a_hole_fails_its_job() -> None:
    found = plan([batch(0, 0), seal(2)])
    assert found.fates == (Fate.APPLY, Fate.LOST)
    assert found.losses == {JOB: Loss(0, 1, 2)}


def test_each_lane_shows_its_own_holes() -> None:
    complete = [batch(1, 0, lanes=2), batch(3, 3, lanes=2), seal(4, lane=1, lanes=2)]
    assert not plan(complete, lanes=2).losses
    found = plan([*complete, batch(0, 0, lanes=2), seal(4, lane=0, lanes=2)], lanes=2)
    assert found.fates[-1] is Fate.LOST
    assert found.losses == {JOB: Loss(0, 2, 4)}


def test_the_seal_of_a_server_that_knew_of_one_lane_shows_the_holes_of_all() -> None:
    found = plan([*(batch(s, s) for s in (0, 1, 2, 3, 5)), seal(6)], lanes=3)
    assert found.fates[-1] is Fate.LOST
    assert found.losses == {JOB: Loss(1, 4, 6)}


def test_messages_without_the_header_go_on_as_before() -> None:
    unknown = replace(seal(2), message=replace(seal(2).message, stored_sequence=0))
    assert plan([batch(0, 0), batch(2, 0), unknown]).fates == (Fate.APPLY, Fate.KNOWN, Fate.KNOWN)


def test_nothing_is_applied_of_a_job_that_lost_batches() -> None:
    lost = LedgerView(ended=frozenset({JOB}), lost=frozenset({JOB}), lanes={(JOB, 0): Lane(1, sealed=False)})
    found = plan([batch(1, 1), batch(2, 2), seal(3)], lost)
    assert found == LanePlan((Fate.KNOWN,) * 3, {})


def test_a_job_that_has_ended_otherwise_is_not_failed_for_a_hole() -> None:
    found = plan([batch(0, 0), batch(2, 2)], LedgerView(ended=frozenset({JOB})))
    assert found.fates == (Fate.DISCARD, Fate.KNOWN)
    assert not found.losses


def test_what_follows_the_seal_of_its_lane_is_late_and_shows_no_loss() -> None:
    found = plan([batch(5, 5)], LedgerView(lanes={(JOB, 0): Lane(2, sealed=True)}))
    assert (found.fates, dict(found.losses)) == ((Fate.LATE,), {})


def test_a_job_without_a_row_is_not_failed() -> None:
    assert plan_lanes([batch(2, 2)], LedgerView(), NOW).fates == (Fate.KNOWN,)


def test_messages_of_an_earlier_attempt_neither_seal_a_job_nor_show_a_loss_and_are_applied_if_they_are_next() -> None:
    kept = LedgerView(lanes={(JOB, 0): Lane(2, sealed=False)})
    found = plan([batch(4, 4), seal(5), batch(2, 2)], kept, attempt=1)
    assert found.fates == (Fate.KNOWN, Fate.KNOWN, Fate.APPLY)
    assert plan([seal(2)], kept, attempt=1).fates == (Fate.KNOWN,)
    again = [batch(2, 2, attempt=1), seal(3, attempt=1)]
    assert plan(again, kept, attempt=1).fates == (Fate.APPLY, Fate.APPLY)


def test_the_reason_names_what_is_lost_and_where_the_job_continues() -> None:
    reason = Loss(1, 5, 9).reason(4)
    assert reason.startswith(f"{LOST_IN_KAFKA}: ")
    assert "lost batch 5, and may have lost more up to 8, of lane 1" in reason
    assert "lost batch 5, of lane 0" in Loss(0, 5, 6).reason(5)
    assert "same idempotency key" in reason
    assert "continues at batch 4" in reason
