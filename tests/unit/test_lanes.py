"""Jobs with several lanes: what becomes of their messages, wherever chunks end and streams restart."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

from hypothesis import given
from hypothesis import strategies as st

from bulkgrpc.consume.assembly import Received
from bulkgrpc.consume.plan import Fate, Lane, LanePlan, LedgerView, plan_lanes
from bulkgrpc.model import JobKey, JobSpec, Kind, Message, lane_of

JOB = uuid.UUID(int=1)
SPEC = JobSpec(JobKey("acme", JOB), "k", "d", 1)
NOW = datetime.now(UTC)


def batch(sequence: int, lanes: int, digest: bytes = b"") -> Received:
    partitions = tuple(range(lanes)) if lanes > 1 else ()
    lane = lane_of(sequence, lanes)
    message = Message(Kind.BATCH, SPEC, lane, sequence, 10, 0, NOW, digest=digest, partitions=partitions)
    return Received(lane, 0, message, b"x")


def seal(lane: int, batches: int, lanes: int) -> Received:
    partitions = tuple(range(lanes)) if lanes > 1 else ()
    return Received(lane, 0, Message(Kind.SEAL, SPEC, lane, batches, 0, 0, NOW, partitions=partitions), b"")


def view(lanes: int, **known: int) -> LedgerView:
    """The ledger of a job with `lanes`; next sequences that differ from the initial ones are given as `lane_1=5`."""
    moved = {(JOB, int(name.removeprefix("lane_"))): Lane(at, sealed=False) for name, at in known.items()}
    return LedgerView(lanes=moved, lane_counts={JOB: lanes})


def test_each_lane_takes_every_so_many_th_batch_and_waits_for_no_other() -> None:
    plan = plan_lanes([batch(s, 3) for s in (1, 4, 0, 7, 2, 3)], view(3), NOW)
    assert set(plan.fates) == {Fate.APPLY}
    assert {key[1]: lane.next_sequence for key, lane in plan.lanes.items()} == {0: 6, 1: 10, 2: 5}


def test_a_lane_knows_its_own_holes_and_repetitions_only() -> None:
    plan = plan_lanes([batch(s, 2) for s in (5, 1, 1, 4, 6)], view(2, lane_0=4, lane_1=1), NOW)
    assert plan.fates == (Fate.KNOWN, Fate.APPLY, Fate.KNOWN, Fate.APPLY, Fate.APPLY)


def test_a_seal_is_of_its_lane_alone_and_waits_for_its_batches() -> None:
    plan = plan_lanes([seal(0, 3, 2), seal(1, 3, 2), batch(3, 2), batch(4, 2)], view(2, lane_0=4, lane_1=1), NOW)
    assert plan.fates == (Fate.APPLY, Fate.KNOWN, Fate.KNOWN, Fate.LATE)
    assert plan.lanes == {(JOB, 0): Lane(4, sealed=True)}


def test_a_lane_without_batches_is_sealed_too() -> None:
    plan = plan_lanes([seal(lane, 0, 3) for lane in range(3)], view(3), NOW)
    assert plan.lanes == {(JOB, lane): Lane(lane, sealed=True) for lane in range(3)}


def test_a_stream_that_could_not_read_the_row_took_the_lanes_to_be_one_and_its_seal_is_that_of_all() -> None:
    """Its server had no PostgreSQL; the row says three, because another server opened the job before or after."""
    plan = plan_lanes([*(batch(s, 1) for s in range(5)), seal(0, 5, 1)], view(3), NOW)
    assert set(plan.fates) == {Fate.APPLY}
    assert plan.lanes == {(JOB, lane): Lane(at, sealed=True) for lane, at in ((0, 6), (1, 7), (2, 5))}


def test_other_bytes_under_a_sequence_are_a_conflict_on_any_lane() -> None:
    plan = plan_lanes([batch(1, 2, b"a"), batch(1, 2, b"b")], view(2), NOW)
    assert plan.fates == (Fate.APPLY, Fate.CONFLICT)


@dataclass
class Ledger:
    """What is applied of a job, as the transactions keep it."""

    lanes: int
    positions: dict[tuple[uuid.UUID, int], Lane] = field(default_factory=dict)
    digests: dict[tuple[uuid.UUID, int], bytes] = field(default_factory=dict)
    applied: list[int] = field(default_factory=list)
    ends: int = 0

    @property
    def next_sequence(self) -> int:
        return min(self.positions.get((JOB, n), Lane(n, sealed=False)).next_sequence for n in range(self.lanes))

    def write(self, items: Sequence[Received]) -> None:
        ledger = LedgerView(frozenset(), dict(self.positions), dict(self.digests), {JOB: self.lanes})
        plan: LanePlan = plan_lanes(items, ledger, NOW)
        for item, fate in zip(items, plan.fates, strict=True):
            assert fate in (Fate.APPLY, Fate.KNOWN)
            if item.message.kind is Kind.BATCH and fate is Fate.APPLY:
                self.applied.append(item.message.sequence)
                self.digests[JOB, item.message.sequence] = item.message.digest
        before = self.sealed
        self.positions.update(plan.lanes)
        self.ends += self.sealed and not before

    @property
    def sealed(self) -> bool:
        return sum(lane.sealed for lane in self.positions.values()) == self.lanes


@given(st.data(), st.integers(1, 4), st.integers(0, 12), st.integers(0, 3))
def test_any_interleaving_replay_and_cut_of_the_lanes_applies_each_batch_once_and_ends_the_job_once(
    data: st.DataObject, lanes: int, batches: int, breaks: int
) -> None:
    """Streams that break anywhere and resume from the ledger; some batches after a hole; chunks cut anywhere."""
    ledger, partitions = Ledger(lanes), [list[Received]() for _ in range(lanes)]
    read = [0] * lanes

    def work(most: int) -> None:
        """Write a chunk of what some partitions have, or read one of them again from the start."""
        for _ in range(data.draw(st.integers(0, most))):
            cuts = [data.draw(st.integers(read[n], len(partitions[n]))) for n in range(lanes)]
            items = [
                item for n in data.draw(st.permutations(range(lanes))) for item in partitions[n][read[n] : cuts[n]]
            ]
            ledger.write(items)
            read[:] = cuts
            if data.draw(st.booleans()):
                again = data.draw(st.integers(0, lanes - 1))
                read[again] = data.draw(st.integers(0, read[again]))

    for _ in range(breaks):
        stops = data.draw(st.integers(ledger.next_sequence, batches))
        lost = data.draw(st.sets(st.integers(0, lanes - 1)))
        for sequence in range(ledger.next_sequence, stops):
            # What a lane's Kafka did not take, it takes nothing after.
            if lane_of(sequence, lanes) not in lost:
                partitions[lane_of(sequence, lanes)].append(batch(sequence, lanes, b"%d" % sequence))
        work(3)
    for sequence in range(ledger.next_sequence, batches):
        partitions[lane_of(sequence, lanes)].append(batch(sequence, lanes, b"%d" % sequence))
    for lane in range(lanes):
        partitions[lane].append(seal(lane, batches, lanes))
    work(5)
    for lane in data.draw(st.permutations(range(lanes))):
        ledger.write(partitions[lane][read[lane] :])
    assert sorted(ledger.applied) == list(range(batches))
    assert ledger.ends == 1
    for lane in range(lanes):
        assert [s for s in ledger.applied if lane_of(s, lanes) == lane] == list(range(lane, batches, lanes))


def test_the_lane_of_a_message_opens_with_its_first_sequence() -> None:
    assert [batch(sequence, 3).message.opens for sequence in range(5)] == [True] * 3 + [False] * 2
    assert [batch(sequence, 1).message.opens for sequence in range(3)] == [True, False, False]
    assert seal(2, 2, 3).message.opens
