"""What an operator's commands do about a loss: where partitions continue, and which jobs may have lost messages."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime, timedelta

import pytest

from bulkgrpc import limits
from bulkgrpc.consume.log_identity import LogRange, Recorded, Stop, StopCause
from bulkgrpc.consume.recovery import (
    CLOCK_SKEW_S,
    Found,
    Mirror,
    Plan,
    fewer_partitions,
    plan_partition,
    shifted,
)

NOON = datetime(2026, 1, 2, 12, tzinfo=UTC)
STOPPED, FIRST = NOON, NOON - timedelta(hours=1)
REPLACED = Stop(StopCause.TOPIC_REPLACED, 10, 15)
DELETED = Stop(StopCause.MESSAGES_DELETED, 10, 14)
TRUNCATED = Stop(StopCause.LOG_TRUNCATED, 5, 10)


def found(
    log: LogRange, stop_time: datetime | None = STOPPED, first_time: datetime | None = FIRST, first_kept: int = 3
) -> Found:
    return Found(Recorded(10), log, stop_time, first_time, first_kept)


@pytest.mark.parametrize(
    ("mirror", "resume_at", "fails"),
    [(Mirror.NONE, 0, True), (Mirror.SAME_OFFSETS, 10, False), (Mirror.OTHER_OFFSETS, 3, False)],
)
def test_where_an_adopted_topic_is_read_from(mirror: Mirror, resume_at: int, fails: bool) -> None:
    plan = plan_partition(0, found(LogRange(0, 20)), REPLACED, mirror)
    assert (plan.resume_at, plan.fails_jobs, shifted(plan)) == (resume_at, fails, resume_at < 10)


def test_a_job_that_was_created_after_the_first_message_that_is_left_did_not_lose_any() -> None:
    plan = plan_partition(0, found(LogRange(14, 20)), DELETED)
    assert plan.created_before == FIRST + timedelta(seconds=limits.DELIVERY_TIMEOUT_S + CLOCK_SKEW_S)
    assert plan.resume_at == 14
    assert not shifted(plan)
    assert plan_partition(0, found(LogRange(14, 14), first_time=None), DELETED).created_before is None


@pytest.mark.parametrize("stop", [REPLACED, TRUNCATED])
def test_a_job_that_was_created_after_its_partition_stopped_did_not_lose_any(stop: Stop) -> None:
    plan = plan_partition(0, found(LogRange(0, 5)), stop)
    assert plan.created_before == STOPPED + timedelta(seconds=CLOCK_SKEW_S)
    assert plan_partition(0, found(LogRange(0, 5), stop_time=None), stop).created_before is None


def test_the_reason_names_the_lost_span_of_each_partition_and_the_way_out() -> None:
    plans = (plan_partition(0, found(LogRange(14, 20)), DELETED), plan_partition(3, found(LogRange(0, 5)), TRUNCATED))
    reason = Plan("records", plans, None, uuid.uuid4()).failure_reason
    assert reason.startswith("LOST_IN_KAFKA: ")
    assert "records: [10, 14) of partition 0, [5, 10) of partition 3" in reason


def test_a_topic_must_have_every_partition_that_the_ledger_has() -> None:
    assert fewer_partitions({0: Recorded(1), 3: Recorded(1)}, 3)
    assert not fewer_partitions({0: Recorded(1), 3: Recorded(1)}, 4)
