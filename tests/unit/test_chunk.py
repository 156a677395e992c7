from __future__ import annotations

import uuid
from datetime import UTC, datetime

from hypothesis import given
from hypothesis import strategies as st

from bulkgrpc.store.chunk import ChunkBounds, ChunkBuilder, Lane, Received, plan_lanes
from bulkgrpc.words import JobKey, JobSpec, Kind, Message, Ownership

JOBS = [uuid.UUID(int=number) for number in range(2)]


def received(sequence: int, job: int = 0, *, partition: int = 0, offset: int = 0, seal: bool = False) -> Received:
    spec = JobSpec(JobKey("acme", JOBS[job]), "", "d", 1)
    kind = Kind.SEAL if seal else Kind.BATCH
    message = Message(kind, spec, 0, sequence, 0 if seal else 10, 0, datetime.now(UTC))
    return Received(partition, offset, message, b"x" * 100)


def test_a_repeated_batch_applies_once() -> None:
    plan = plan_lanes([received(0), received(0), received(1), received(0), received(1)], {})
    assert plan.applies.tolist() == [True, False, True, False, False]
    assert plan.lanes == {(JOBS[0], 0): Lane(2, sealed=False)}


def test_what_the_ledger_has_applies_no_more() -> None:
    plan = plan_lanes([received(3), received(4)], {(JOBS[0], 0): Lane(4, sealed=False)})
    assert plan.applies.tolist() == [False, True]


def test_nothing_applies_after_a_hole_until_it_is_filled() -> None:
    plan = plan_lanes([received(0), received(2), received(1), received(2)], {})
    assert plan.applies.tolist() == [True, False, True, True]


def test_nothing_applies_to_a_sealed_lane() -> None:
    plan = plan_lanes([received(0), received(1, seal=True), received(2), received(1)], {})
    assert plan.applies.tolist() == [True, True, False, False]
    assert plan.lanes == {(JOBS[0], 0): Lane(1, sealed=True)}


def test_a_seal_after_a_hole_does_not_end_the_job() -> None:
    plan = plan_lanes([received(0), received(2, seal=True)], {})
    assert plan.applies.tolist() == [True, False]


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 1)), max_size=40))
def test_each_batch_applies_at_most_once_and_in_order(arrivals: list[tuple[int, int]]) -> None:
    plan = plan_lanes([received(sequence, job) for sequence, job in arrivals], {})
    for job in (0, 1):
        applied = [s for (s, j), applies in zip(arrivals, plan.applies, strict=True) if applies and j == job]
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
