from __future__ import annotations

import uuid
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from bulkgrpc.consume.assembly import ChunkBounds, ChunkBuilder, Received
from bulkgrpc.consume.plan import Fate, Lane, LanePlan, LedgerView, plan_lanes
from bulkgrpc.model import JobKey, JobSpec, Kind, Message
from bulkgrpc.positions import Ownership

JOBS = [uuid.UUID(int=number) for number in range(2)]


def received(sequence: int, job: int = 0, *, partition: int = 0, offset: int = 0, seal: bool = False) -> Received:
    spec = JobSpec(JobKey("acme", JOBS[job]), "", "d", 1)
    kind = Kind.SEAL if seal else Kind.BATCH
    message = Message(kind, spec, 0, sequence, 0 if seal else 10, 0, datetime.now(UTC))
    return Received(partition, offset, message, b"x" * 100)


NOW = datetime.now(UTC)


def plan_of(*items: Received, ledger: LedgerView = LedgerView()) -> LanePlan:
    return plan_lanes(items, ledger, NOW)


def applies(plan: LanePlan) -> list[bool]:
    return [fate is Fate.APPLY for fate in plan.fates]


def at(next_sequence: int, *, sealed: bool = False, digest: bytes = b"", ended: bool = False) -> LedgerView:
    """The ledger with one lane, all of whose batches had the same digest."""
    digests = {(JOBS[0], sequence): digest for sequence in range(next_sequence)}
    return LedgerView(frozenset(JOBS[:1] if ended else ()), {(JOBS[0], 0): Lane(next_sequence, sealed=sealed)}, digests)


def test_a_repeated_batch_applies_once() -> None:
    plan = plan_of(received(0), received(0), received(1), received(0), received(1))
    assert applies(plan) == [True, False, True, False, False]
    assert set(plan.fates) == {Fate.APPLY, Fate.KNOWN}
    assert plan.lanes == {(JOBS[0], 0): Lane(2, sealed=False)}


def test_what_the_ledger_has_applies_no_more() -> None:
    assert plan_of(received(3), received(4), ledger=at(4)).fates == (Fate.KNOWN, Fate.APPLY)


def test_nothing_applies_after_a_hole_until_it_is_filled() -> None:
    plan = plan_of(received(0), received(2), received(1), received(2))
    assert plan.fates == (Fate.APPLY, Fate.KNOWN, Fate.APPLY, Fate.APPLY)


def test_nothing_applies_to_a_sealed_lane() -> None:
    plan = plan_of(received(0), received(1, seal=True), received(2), received(1), received(0), received(1, seal=True))
    assert plan.fates == (Fate.APPLY, Fate.APPLY, Fate.LATE, Fate.LATE, Fate.KNOWN, Fate.KNOWN)
    assert plan.lanes == {(JOBS[0], 0): Lane(1, sealed=True)}


def test_a_seal_after_a_hole_does_not_end_the_job() -> None:
    assert plan_of(received(0), received(2, seal=True)).fates == (Fate.APPLY, Fate.KNOWN)


def _with(item: Received, **changes: object) -> Received:
    return replace(item, message=replace(item.message, **changes))  # type: ignore[arg-type]


def test_the_same_sequence_with_other_bytes_is_a_conflict_in_the_chunk_and_across_chunks() -> None:
    first, other = _with(received(0), digest=b"a"), _with(received(0), digest=b"b")
    assert plan_of(first, first, other).fates == (Fate.APPLY, Fate.KNOWN, Fate.CONFLICT)
    assert plan_of(first, other, ledger=at(1, digest=b"a")).fates == (Fate.KNOWN, Fate.CONFLICT)


def test_other_bytes_are_late_after_the_seal_and_expire_after_another_end() -> None:
    first, other = _with(received(0), digest=b"a"), _with(received(0), digest=b"b")
    plan = plan_of(first, other, received(1, seal=True), first, other)
    assert plan.fates == (Fate.APPLY, Fate.CONFLICT, Fate.APPLY, Fate.KNOWN, Fate.LATE_CONFLICT)
    assert plan_of(first, other, ledger=at(1, digest=b"a", ended=True)).fates == (Fate.KNOWN, Fate.EXPIRED_CONFLICT)


def test_what_comes_for_an_ended_job_is_discarded_and_still_counted_once() -> None:
    plan = plan_of(received(1), received(1), received(2), received(3, seal=True), ledger=at(1, ended=True))
    assert plan.fates == (Fate.DISCARD, Fate.KNOWN, Fate.DISCARD, Fate.APPLY)
    assert plan.lanes == {(JOBS[0], 0): Lane(3, sealed=True)}


def test_a_seal_whose_server_knew_of_fewer_batches_still_ends_the_job() -> None:
    plan = plan_of(received(7, seal=True), received(10), ledger=at(10))
    assert plan.fates == (Fate.APPLY, Fate.LATE)


def test_a_batch_past_its_time_to_live_is_discarded_and_the_next_one_applies() -> None:
    old, fresh = _with(received(0), expires_at=NOW), _with(received(1), expires_at=NOW + timedelta(seconds=1))
    assert plan_of(old, fresh).fates == (Fate.DISCARD, Fate.APPLY)


def test_what_comes_for_a_deleted_version_is_taken_and_reported_and_the_next_version_applies() -> None:
    old, new = received(0), received(1)
    new = replace(new, message=replace(new.message, spec=replace(new.message.spec, dataset_version=2)))
    plan = plan_of(old, old, new, ledger=LedgerView(deleted_versions={JOBS[0]: 1}))
    assert plan.fates == (Fate.DELETED, Fate.KNOWN, Fate.APPLY)
    ended = LedgerView(frozenset(JOBS[:1]), deleted_versions={JOBS[0]: 1})
    assert plan_of(old, ledger=ended).fates == (Fate.DISCARD,)


def test_an_atomic_job_takes_batches_of_its_own_version_alone() -> None:
    plan = plan_of(received(0), received(1), ledger=LedgerView(atomic_versions={JOBS[0]: 2}))
    assert plan.fates == (Fate.OTHER_VERSION, Fate.OTHER_VERSION)
    assert plan_of(received(0), ledger=LedgerView(atomic_versions={JOBS[0]: 1})).fates == (Fate.APPLY,)


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 1)), max_size=40))
def test_each_batch_applies_at_most_once_and_in_order(arrivals: list[tuple[int, int]]) -> None:
    plan = plan_of(*(received(sequence, job) for sequence, job in arrivals))
    for job in (0, 1):
        applied = [s for (s, j), fate in zip(arrivals, plan.fates, strict=True) if fate is Fate.APPLY and j == job]
        assert applied == list(range(len(applied)))


def test_a_chunk_has_a_span_a_partition_and_is_full_at_its_bounds() -> None:
    builder = ChunkBuilder(ChunkBounds(rows_max=30, bytes_max=10_000))
    for offset in range(2):
        builder.add(received(offset, partition=1, offset=50 + offset), Ownership(1, 50 + offset, 7))
    assert builder.rows == 20
    builder.add(received(0, 1, partition=2, offset=9), Ownership(2, 9, 3))
    assert builder.full
    chunk = builder.build()
    assert [(s.partition, s.from_offset, s.to_offset, s.owner_epoch) for s in chunk.spans] == [
        (1, 50, 52, 7),
        (2, 9, 10, 3),
    ]
    builder.drop([1])
    assert builder.rows == 10
    assert [span.partition for span in builder.build().spans] == [2]
