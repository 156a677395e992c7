"""Plans a chunk: what becomes of each message, and the lanes' positions afterwards. Pure."""

from __future__ import annotations

import enum
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

import numpy as np
import numpy.typing as npt

from bulkgrpc.consume.assembly import Received
from bulkgrpc.consume.losses import Loss, loss_shown_by
from bulkgrpc.model import Kind, Message, lane_of
from bulkgrpc.positions import Outcome, may_apply_batch

LaneKey = tuple[uuid.UUID, int]


@dataclass(frozen=True, slots=True)
class Lane:
    """A lane in the ledger. next_sequence: counted over the whole job, so that of a new lane is the lane's number."""

    next_sequence: int
    sealed: bool


class Fate(enum.Enum):
    """What becomes of a message of a chunk."""

    APPLY = "apply"
    """It is next: its records are written, or it seals its lane. The seal of the last open lane ends the job."""
    DISCARD = "discard"
    """It is next, but its job has ended, its time to live is over or its dataset is discarded: its records expire."""
    DELETED = "deleted"
    """It is next, but its dataset's version was deleted. It was acknowledged, so its records are rejected."""
    OTHER_VERSION = "other version"
    """It is next, but its job is atomic and has another version of its dataset: its records are rejected."""
    DISCARDED_JOB = "discarded job"
    """It is next, and an operator discards its job: its records are rejected."""
    KNOWN = "known"
    """Nothing is done: it was applied before; it follows a gap and so was never acknowledged; or its job failed because
    Kafka lost batches of it, and all of the job from there on is sent again."""
    LOST = "lost"
    """It shows that its lane lost batches that were acknowledged: its job fails, and is opened again by its client."""
    CONFLICT = "conflict"
    """Another batch with its sequence was applied before. It may be acknowledged, so its records are rejected."""
    LATE = "late"
    """It follows its lane's seal: it is reported as late, and counts for nothing. It was not acknowledged."""
    LATE_CONFLICT = "late conflict"
    """As CONFLICT, but it follows its lane's seal: it is reported as late, and counts for nothing."""
    EXPIRED_CONFLICT = "expired conflict"
    """As CONFLICT, but its job ended before its lane's seal: its records expire, as those of other batches then do."""
    DEFERRED = "deferred"
    """It is parked. `bulkgrpc.consume.deferral` decides that; `plan_lanes` neither reads nor returns it."""


EXPIRED = (Fate.DISCARD, Fate.EXPIRED_CONFLICT)
"""The fates of a batch whose records count as expired."""
TAKEN = (Fate.APPLY, Fate.DISCARD, Fate.DELETED, Fate.OTHER_VERSION, Fate.DISCARDED_JOB)
"""The fates of a batch that is next: the lane advances past it."""
REPORTED_LATE = (Fate.LATE, Fate.LATE_CONFLICT)
"""The fates of a batch that changes no count, because those of its job may have been reported as final."""


@dataclass(frozen=True, slots=True)
class LedgerView:
    """What the ledger has of a chunk's jobs, read in the chunk's transaction.

    ended: jobs that have ended. lost: those of them that failed because Kafka lost batches of them. attempts: of every
    job that has a row. lanes: those with a row. digests: by job and sequence, of the chunk's batches that were applied
    before. lane_counts: of jobs with several lanes. deleted_versions: per job, the last deleted version of its dataset.
    atomic_versions: per atomic job, the dataset version that it was opened with. discarding_datasets: those whose next
    batches are discarded because an operator asked for it. discarded_jobs: those that an operator discards.
    """

    ended: frozenset[uuid.UUID] = frozenset()
    lanes: Mapping[LaneKey, Lane] = field(default_factory=dict)
    digests: Mapping[tuple[uuid.UUID, int], bytes] = field(default_factory=dict)
    lane_counts: Mapping[uuid.UUID, int] = field(default_factory=dict)
    deleted_versions: Mapping[uuid.UUID, int] = field(default_factory=dict)
    atomic_versions: Mapping[uuid.UUID, int] = field(default_factory=dict)
    discarding_datasets: frozenset[str] = frozenset()
    discarded_jobs: frozenset[uuid.UUID] = frozenset()
    lost: frozenset[uuid.UUID] = frozenset()
    attempts: Mapping[uuid.UUID, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class LanePlan:
    """What becomes of each message of a chunk.

    fates: one per item. lanes: those that change, with their state after the chunk. losses: of the jobs that fail
    because Kafka lost batches of them, what the first message shows that shows any.
    """

    fates: tuple[Fate, ...]
    lanes: Mapping[LaneKey, Lane]
    losses: Mapping[uuid.UUID, Loss] = field(default_factory=dict)

    def mask(self, fate: Fate) -> npt.NDArray[np.bool_]:
        """Return a mask over the items: True where the item has this fate."""
        return np.fromiter((found is fate for found in self.fates), np.bool_, len(self.fates))


def plan_lanes(items: Sequence[Received], ledger: LedgerView, now: datetime) -> LanePlan:
    """Decide, in order, what becomes of each message of a chunk.

    | the message                              | of a job that has not ended     | of one that has      |
    |------------------------------------------|---------------------------------|----------------------|
    | batch, next of its lane                  | APPLY; too old: DISCARD         | DISCARD              |
    | batch, the same, its version deleted     | DELETED; too old: DISCARD       | DISCARD              |
    | batch, the same, not its atomic job's    | OTHER_VERSION; too old: DISCARD | DISCARD              |
    | batch, sequence below, same digest       | KNOWN                           | KNOWN                |
    | batch, sequence below, other digest      | CONFLICT                        | EXPIRED_CONFLICT     |
    | batch, the same, lane sealed             | LATE_CONFLICT                   | LATE_CONFLICT        |
    | batch, sequence above (after a gap)      | KNOWN                           | KNOWN                |
    | batch, next or above, lane sealed        | LATE                            | LATE                 |
    | seal, at or below the next of its lane   | APPLY                           | APPLY: the lane only |
    | seal, after a gap, or a second one       | KNOWN                           | KNOWN                |
    | any, and shows a loss (`loss_shown_by`)  | LOST: what follows is KNOWN     | as if it did not     |
    | any, of a job that failed for a loss     |                                 | KNOWN                |
    | seal of an earlier attempt               | KNOWN                           | KNOWN                |

    A seal below the next sequence is valid: its server did not know of batches that an earlier stream had sent.

    Of a job that an operator discards, a batch that is next is DISCARDED_JOB, and a seal after a gap APPLY: it ends the
    job. A damaged batch has the fate of any other; the caller has no rows of it, and must not apply it.
    """
    lanes, digests, lost = dict(ledger.lanes), dict(ledger.digests), set(ledger.lost)
    moved: dict[LaneKey, Lane] = {}
    losses: dict[uuid.UUID, Loss] = {}
    fates = []
    for item in items:
        message, job_id = item.message, item.message.spec.key.job_id
        fate = Fate.KNOWN
        if job_id not in lost and (loss := _loss_shown_by(message, lanes, ledger)) is not None:
            fate, losses[job_id] = Fate.LOST, loss
            lost.add(job_id)
        if job_id in lost:
            fates.append(fate)
            continue
        lane_count = ledger.lane_counts.get(job_id, 1)
        for number in _lanes_of(message, lane_count):
            lane = _lane(lanes, job_id, number)
            found = _fate(message, lane, digests.get((job_id, message.sequence)), ledger)
            if found is Fate.KNOWN:
                continue
            is_next = found is Fate.APPLY and message.kind is Kind.BATCH
            fate = _fate_of_next(message, ledger, now) if is_next else found
            if message.kind is Kind.SEAL:
                # A seal has no sequence of its own: the next sequence stays.
                lanes[job_id, number] = moved[job_id, number] = Lane(lane.next_sequence, sealed=True)
            elif fate in TAKEN:
                lanes[job_id, number] = moved[job_id, number] = Lane(lane.next_sequence + lane_count, sealed=False)
                digests[job_id, message.sequence] = message.digest
        fates.append(fate)
    return LanePlan(tuple(fates), moved, losses)


def _lane(lanes: Mapping[LaneKey, Lane], job_id: uuid.UUID, number: int) -> Lane:
    return lanes.get((job_id, number)) or Lane(number, sealed=False)


def _loss_shown_by(message: Message, lanes: Mapping[LaneKey, Lane], ledger: LedgerView) -> Loss | None:
    """Return what a message shows that its job, which has not ended, has lost."""
    job_id = message.spec.key.job_id
    # An operator discards a job whose batches may be unreadable: those are not lost.
    if not message.stored_sequence or job_id in ledger.ended or job_id in ledger.discarded_jobs:
        return None
    attempt = ledger.attempts.get(job_id)
    for number in _lanes_of(message, ledger.lane_counts.get(job_id, 1)):
        lane = _lane(lanes, job_id, number)
        # What follows its lane's seal is late, whatever it says.
        if not lane.sealed and (loss := loss_shown_by(message, number, lane.next_sequence, attempt)) is not None:
            return loss
    return None


def _lanes_of(message: Message, lane_count: int) -> Sequence[int]:
    """Return the lanes of a job with `lane_count` lanes that a message belongs to.

    The job's row has the count. A server that could not read the row assumed one lane: its batches, all in one
    partition, are in order for any number of lanes, and its seal counts for every lane.
    """
    if message.kind is Kind.BATCH:
        return (lane_of(message.sequence, lane_count),)
    return (message.lane,) if message.lanes == lane_count else range(lane_count)


def _fate(message: Message, lane: Lane, known: bytes | None, ledger: LedgerView) -> Fate:
    job_id = message.spec.key.job_id
    outcome = may_apply_batch(lane.next_sequence, message.sequence)
    if message.kind is Kind.SEAL:
        waits = outcome is Outcome.GAP and job_id not in ledger.discarded_jobs
        is_old = message.attempt < ledger.attempts.get(job_id, 0)
        return Fate.KNOWN if waits or lane.sealed or is_old else Fate.APPLY
    if outcome is Outcome.REPLAY:
        if known is None or known == message.digest:
            return Fate.KNOWN
        if lane.sealed:
            return Fate.LATE_CONFLICT
        return Fate.EXPIRED_CONFLICT if job_id in ledger.ended else Fate.CONFLICT
    if lane.sealed:
        return Fate.LATE
    return Fate.KNOWN if outcome is Outcome.GAP else Fate.APPLY


def _fate_of_next(message: Message, ledger: LedgerView, now: datetime) -> Fate:
    """Return what becomes of a batch that is its lane's next one."""
    job_id = message.spec.key.job_id
    too_old = message.expires_at is not None and message.expires_at <= now
    if too_old or job_id in ledger.ended or message.spec.dataset in ledger.discarding_datasets:
        return Fate.DISCARD
    if job_id in ledger.discarded_jobs:
        return Fate.DISCARDED_JOB
    if message.damage:
        return Fate.APPLY
    version = message.spec.dataset_version
    if version <= ledger.deleted_versions.get(job_id, 0):
        return Fate.DELETED
    return Fate.APPLY if version == ledger.atomic_versions.get(job_id, version) else Fate.OTHER_VERSION


def repeated_batches(items: Sequence[Received], ledger: LedgerView) -> list[tuple[uuid.UUID, int]]:
    """Return job and sequence of the batches that were applied before. Their digests must be read from the ledger."""
    repeated = []
    for message in (item.message for item in items if item.message.kind is Kind.BATCH):
        job_id = message.spec.key.job_id
        lane = ledger.lanes.get((job_id, lane_of(message.sequence, ledger.lane_counts.get(job_id, 1))))
        if lane is not None and message.sequence < lane.next_sequence:
            repeated.append((job_id, message.sequence))
    return repeated
