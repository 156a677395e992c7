"""Plans a chunk: what becomes of each message, and where that leaves the lanes."""

from __future__ import annotations

import enum
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

import numpy as np
import numpy.typing as npt

from bulkgrpc.consume.assembly import Received
from bulkgrpc.model import Kind, Message, Outcome, lane_of, may_apply_batch

LaneKey = tuple[uuid.UUID, int]


@dataclass(frozen=True, slots=True)
class Lane:
    """A lane as the ledger has it. next_sequence: of the job's, so a new lane's is its own number."""

    next_sequence: int
    sealed: bool


class Fate(enum.Enum):
    """What becomes of a message of a chunk."""

    APPLY = "apply"
    """It is its lane's next one: its records are written, or it seals the lane; the last lane's seal ends the job."""
    DISCARD = "discard"
    """It is the next one, but its job has ended or its time to live is over: its records count as expired."""
    DELETED = "deleted"
    """It is the next one, but its dataset's version was deleted. It was acknowledged: its records are rejected."""
    OTHER_VERSION = "other version"
    """It is the next one, but its job is atomic and has another version of its dataset: its records are rejected."""
    KNOWN = "known"
    """It was applied before, or follows a hole and was never acknowledged: nothing is done."""
    CONFLICT = "conflict"
    """Another batch with its sequence was applied before. It may have been acknowledged: its records are rejected."""
    LATE = "late"
    """It came after the seal. It may have been acknowledged: its records are rejected."""


TAKEN = (Fate.APPLY, Fate.DISCARD, Fate.DELETED, Fate.OTHER_VERSION)
"""What becomes of a batch that is its lane's next one: the lane goes on behind it."""


@dataclass(frozen=True, slots=True)
class LedgerView:
    """What the ledger knows of a chunk's jobs, lanes and batches.

    ended: the jobs that have ended. lanes: those that there are. digests: of the batches that came again.
    lane_counts: of the jobs that have several. deleted_versions: of the jobs' datasets, the last that was deleted.
    atomic_versions: of atomic jobs, the version that they were opened with.
    """

    ended: frozenset[uuid.UUID] = frozenset()
    lanes: Mapping[LaneKey, Lane] = field(default_factory=dict)
    digests: Mapping[tuple[uuid.UUID, int], bytes] = field(default_factory=dict)
    lane_counts: Mapping[uuid.UUID, int] = field(default_factory=dict)
    deleted_versions: Mapping[uuid.UUID, int] = field(default_factory=dict)
    atomic_versions: Mapping[uuid.UUID, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class LanePlan:
    """What becomes of each message of a chunk, and where that leaves the lanes.

    fates: one for each item. lanes: those that move, as they stand afterwards.
    """

    fates: tuple[Fate, ...]
    lanes: Mapping[LaneKey, Lane]

    def mask(self, fate: Fate) -> npt.NDArray[np.bool_]:
        """Return which of the items have a fate."""
        return np.fromiter((found is fate for found in self.fates), np.bool_, len(self.fates))


def plan_lanes(items: Sequence[Received], ledger: LedgerView, now: datetime) -> LanePlan:
    """Walk through a chunk's messages in order and decide what becomes of each.

    | the message                              | of a job that has not ended     | of one that has      |
    |------------------------------------------|---------------------------------|----------------------|
    | batch, next of its lane                  | APPLY; too old: DISCARD         | DISCARD              |
    | batch, the same, its version deleted     | DELETED; too old: DISCARD       | DISCARD              |
    | batch, the same, not its atomic job's    | OTHER_VERSION; too old: DISCARD | DISCARD              |
    | batch, sequence below, same digest       | KNOWN                           | KNOWN                |
    | batch, sequence below, other digest      | CONFLICT                        | CONFLICT             |
    | batch, sequence above (after a hole)     | KNOWN                           | KNOWN                |
    | batch, from the next one on, lane sealed | LATE                            | LATE                 |
    | seal, at or below the next of its lane   | APPLY                           | APPLY: the lane only |
    | seal, after a hole, or a second one      | KNOWN                           | KNOWN                |

    A seal below the next sequence is of a stream whose server did not know of batches that an earlier one brought.
    """
    lanes = dict(ledger.lanes)
    digests = dict(ledger.digests)
    moved: dict[LaneKey, Lane] = {}
    fates = []
    for item in items:
        message, job_id = item.message, item.message.spec.key.job_id
        lane_count = ledger.lane_counts.get(job_id, 1)
        fate = Fate.KNOWN
        for number in _lanes_of(message, lane_count):
            key = (job_id, number)
            lane = lanes.get(key) or Lane(number, sealed=False)
            found = _fate(message, lane, digests.get((job_id, message.sequence)))
            if found is Fate.KNOWN:
                continue
            is_next = found is Fate.APPLY and message.kind is Kind.BATCH
            fate = _fate_of_next(message, ledger, now) if is_next else found
            if message.kind is Kind.SEAL:
                # It takes no place of its own: the next sequence stays where it is.
                lanes[key] = moved[key] = Lane(lane.next_sequence, sealed=True)
            elif fate in TAKEN:
                lanes[key] = moved[key] = Lane(lane.next_sequence + lane_count, sealed=False)
                digests[job_id, message.sequence] = message.digest
        fates.append(fate)
    return LanePlan(tuple(fates), moved)


def _lanes_of(message: Message, lane_count: int) -> Sequence[int]:
    """Return the lanes of a job with `lane_count` that a message is of.

    The job's row says how many there are. A stream that could not read it took them to be one: its batches, all of one
    partition, are in order on any number of lanes, and its seal is that of all.
    """
    if message.kind is Kind.BATCH:
        return (lane_of(message.sequence, lane_count),)
    return (message.lane,) if message.lanes == lane_count else range(lane_count)


def _fate(message: Message, lane: Lane, known: bytes | None) -> Fate:
    outcome = may_apply_batch(lane.next_sequence, message.sequence)
    if message.kind is Kind.SEAL:
        return Fate.KNOWN if outcome is Outcome.GAP or lane.sealed else Fate.APPLY
    if outcome is Outcome.REPLAY:
        return Fate.KNOWN if known is None or known == message.digest else Fate.CONFLICT
    if lane.sealed:
        return Fate.LATE
    return Fate.KNOWN if outcome is Outcome.GAP else Fate.APPLY


def _fate_of_next(message: Message, ledger: LedgerView, now: datetime) -> Fate:
    """Tell whether a batch that its lane is ready for is to be written."""
    job_id = message.spec.key.job_id
    too_old = message.expires_at is not None and message.expires_at <= now
    if too_old or job_id in ledger.ended:
        return Fate.DISCARD
    version = message.spec.dataset_version
    if version <= ledger.deleted_versions.get(job_id, 0):
        return Fate.DELETED
    return Fate.APPLY if version == ledger.atomic_versions.get(job_id, version) else Fate.OTHER_VERSION


def came_again(items: Sequence[Received], ledger: LedgerView) -> list[tuple[uuid.UUID, int]]:
    """Return job and sequence of the batches that were applied before: their digests are to be looked up."""
    again = []
    for message in (item.message for item in items if item.message.kind is Kind.BATCH):
        job_id = message.spec.key.job_id
        lane = ledger.lanes.get((job_id, lane_of(message.sequence, ledger.lane_counts.get(job_id, 1))))
        if lane is not None and message.sequence < lane.next_sequence:
            again.append((job_id, message.sequence))
    return again
