from __future__ import annotations

import uuid
from collections.abc import Sequence
from datetime import UTC, datetime

import pytest

from bulkgrpc.consume.assembly import Received
from bulkgrpc.consume.deferral import (
    DeferralReason,
    DeferralView,
    QueueKey,
    defer,
    eligible,
    plan_chunk,
)
from bulkgrpc.consume.plan import Fate, Lane, LedgerView
from bulkgrpc.model import JobKey, JobSpec, Kind, Message

NOW = datetime(2026, 1, 1, tzinfo=UTC)
JOB, OTHER = uuid.UUID(int=1), uuid.UUID(int=2)
QUEUE = QueueKey(0, "acme", "x")


def batch(
    sequence: int, job_id: uuid.UUID = JOB, *, dataset: str = "x", tenant: str = "acme", offset: int = 0
) -> Received:
    spec = JobSpec(JobKey(tenant, job_id), "", dataset, 1)
    return Received(0, offset, Message(Kind.BATCH, spec, 0, sequence, 5, 0, NOW, digest=b"%d" % sequence), b"")


def seal(sequence: int) -> Received:
    spec = JobSpec(JobKey("acme", JOB), "", "x", 1)
    return Received(0, 0, Message(Kind.SEAL, spec, 0, sequence, 0, 0, NOW), b"")


def fates(items: Sequence[Received], view: DeferralView, ledger: LedgerView | None = None) -> tuple[Fate, ...]:
    return plan_chunk(items, defer(items, view), view, ledger or LedgerView(), NOW).fates


@pytest.mark.parametrize(
    ("view", "reason"),
    [
        (DeferralView(), None),
        (DeferralView(blocked_datasets=frozenset({"x"})), DeferralReason.DATASET_BLOCKED),
        (DeferralView(blocked_datasets=frozenset({"y"})), None),
        (
            DeferralView(blocked_datasets=frozenset({"x"}), discarding_datasets=frozenset({"x"})),
            DeferralReason.DATASET_BLOCKED,
        ),
        (DeferralView(blocked_jobs=frozenset({JOB})), DeferralReason.JOB_BLOCKED),
        (DeferralView(parked_queues=frozenset({QUEUE})), DeferralReason.BEHIND_PARKED),
        (
            DeferralView(discarding_datasets=frozenset({"x"}), parked_queues=frozenset({QUEUE})),
            DeferralReason.BEHIND_PARKED,
        ),
        (DeferralView(parked_queues=frozenset({QUEUE._replace(tenant="other")})), None),
    ],
)
def test_a_message_is_deferred_for_the_first_reason_that_applies(
    view: DeferralView, reason: DeferralReason | None
) -> None:
    assert defer([batch(0)], view) == (reason,)


def test_a_parked_message_makes_the_later_ones_of_its_queue_wait_and_no_other() -> None:
    items = [batch(0, OTHER), batch(0), batch(1, OTHER), batch(0, OTHER, dataset="y"), batch(0, tenant="b")]
    view = DeferralView(blocked_jobs=frozenset({JOB}))
    behind = DeferralReason.BEHIND_PARKED
    assert defer(items, DeferralView(blocked_jobs=frozenset({JOB})), {3}) == (
        None,
        DeferralReason.JOB_BLOCKED,
        behind,
        DeferralReason.NOT_DECODED,
        DeferralReason.JOB_BLOCKED,
    )
    assert fates(items[:3], view) == (Fate.APPLY, Fate.DEFERRED, Fate.DEFERRED)


def test_a_deferred_message_moves_no_lane() -> None:
    items = [batch(0), batch(0, OTHER, dataset="y"), seal(1)]
    view = DeferralView(blocked_datasets=frozenset({"x"}))
    plan = plan_chunk(items, defer(items, view), view, LedgerView(), NOW)
    assert plan.fates == (Fate.DEFERRED, Fate.APPLY, Fate.DEFERRED)
    assert plan.lanes == {(OTHER, 0): Lane(1, sealed=False)}


def test_a_discarded_dataset_counts_each_batch_once() -> None:
    view = DeferralView(discarding_datasets=frozenset({"x"}))
    items = [batch(0), batch(0), batch(1), batch(3), seal(2)]
    expected = (Fate.DISCARD, Fate.KNOWN, Fate.DISCARD, Fate.KNOWN, Fate.APPLY)
    assert fates(items, view) == expected


def test_a_drain_leaves_what_is_blocked_and_takes_what_is_discarded() -> None:
    parked = [batch(0), batch(0, OTHER), batch(0, dataset="y"), batch(0, dataset="z")]
    view = DeferralView(
        blocked_datasets=frozenset({"x", "y"}), discarding_datasets=frozenset({"y"}), blocked_jobs=frozenset({JOB})
    )
    assert eligible(parked, view) == (False, False, True, False)
    assert eligible(parked, view.on_trial("x")) == (False, False, True, False)


def test_a_later_job_waits_behind_a_blocked_one_of_its_queue_and_other_queues_do_not() -> None:
    parked = [batch(0, OTHER), batch(0), batch(1, OTHER), batch(0, OTHER, dataset="y")]
    assert eligible(parked, DeferralView(blocked_jobs=frozenset({JOB}))) == (True, False, False, True)
