"""Decides which messages of a chunk are deferred: parked in the store, so that the rest of the partition continues.

Deferring a message is always safe. Applying one directly is safe only while no message of its queue is parked. So the
caller reads the `DeferralView` under the offset lock of the chunk's transaction, in a statement that starts after the
lock is held, and reads jobs and lanes in later statements.
"""

from __future__ import annotations

import enum
import uuid
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import NamedTuple

from bulkgrpc.consume.assembly import Received
from bulkgrpc.consume.plan import Fate, LanePlan, LedgerView, plan_lanes


class QueueKey(NamedTuple):
    """A queue of parked messages: those of one tenant's dataset in one partition, in the order of their offsets.

    All batches of a lane are in one queue, so the order of a lane holds if the order of each queue holds.
    """

    partition: int
    tenant: str
    dataset: str


def queue_of(item: Received) -> QueueKey:
    """Return the queue that a message is parked in, if it is parked."""
    spec = item.message.spec
    return QueueKey(item.partition, spec.key.tenant, spec.dataset)


class DeferralReason(enum.StrEnum):
    """Why a message is deferred. The first that applies, in this order."""

    BEHIND_PARKED = "behind_parked"
    """A message of its queue is parked, by this chunk or an earlier one."""
    DATASET_BLOCKED = "dataset_blocked"
    """Its dataset is blocked by a failure, or paused by an operator."""
    JOB_BLOCKED = "job_blocked"
    """Its job is blocked: a batch of it can neither be written nor rejected in time."""
    PASSED = "passed"
    """The main path has passed it, so what becomes of it is decided. On the express path only."""
    UNREADABLE = "unreadable"
    """It cannot be read: its dataset's version is missing, or its headers are damaged. Its job is blocked then."""
    NOT_DECODED = "not_decoded"
    """It was blocked when the chunk was prepared, so it was not decoded, and it is no longer blocked."""


@dataclass(frozen=True, slots=True)
class DeferralView:
    """What is deferred, for the partitions of a chunk or of a slice of parked messages.

    blocked_datasets: blocked or paused. discarding_datasets: those whose parked messages an operator discards; only for
    a drain, because what arrives later is not discarded. discarded_jobs: those that an operator discards, and why; only
    for a drain, which alone rejects their records. parked_queues: the queues that have a parked message, whether or not
    it may be applied. discard_reason: why messages of a slice are discarded.

    Only `parked_queues` decides whether a message may be applied directly. The other fields may be out of date: then a
    message is parked too late or too early, which is safe.
    """

    blocked_datasets: frozenset[str] = frozenset()
    discarding_datasets: frozenset[str] = frozenset()
    blocked_jobs: frozenset[uuid.UUID] = frozenset()
    parked_queues: frozenset[QueueKey] = frozenset()
    discard_reason: str = ""
    discarded_jobs: Mapping[uuid.UUID, str] = field(default_factory=dict)

    def on_trial(self, dataset: str) -> DeferralView:
        """Return the view for the transaction that tries whether a blocked dataset can be written again."""
        return replace(self, blocked_datasets=self.blocked_datasets - {dataset})


Deferrals = tuple[DeferralReason | None, ...]
"""For each message of a chunk, why it is deferred; None if it is planned."""


def defer(
    items: Sequence[Received], view: DeferralView, undecoded: Container[int] = (), unreadable: Container[int] = ()
) -> Deferrals:
    """Return for each message of a chunk why it is deferred; None for those that the lane plan decides.

    items: in the order of each partition's offsets. undecoded: indices of the items that were not decoded when the
    chunk was prepared; they are deferred. unreadable: those of them that cannot be read: the caller blocks the jobs of
    those that are UNREADABLE in the same transaction.

    | queue has parked messages | dataset | job     | message    | result          |
    |---------------------------|---------|---------|------------|-----------------|
    | yes                       | any     | any     | any        | BEHIND_PARKED   |
    | no                        | blocked | any     | any        | DATASET_BLOCKED |
    | no                        | free    | blocked | any        | JOB_BLOCKED     |
    | no                        | free    | free    | unreadable | UNREADABLE      |
    | no                        | free    | free    | decoded    | None: planned   |

    A message that is deferred here makes the later ones of its queue BEHIND_PARKED, the seal of its job among them. An
    operator who discards what is parked of a dataset does not discard these messages: they arrived later.
    """
    parked = set(view.parked_queues)
    deferrals: list[DeferralReason | None] = []
    for index, item in enumerate(items):
        queue = queue_of(item)
        reason = DeferralReason.BEHIND_PARKED if queue in parked else _reason(item, view)
        if reason is None and index in unreadable:
            reason = DeferralReason.UNREADABLE
        if reason is None and index in undecoded:
            reason = DeferralReason.NOT_DECODED
        if reason is not None:
            parked.add(queue)
        deferrals.append(reason)
    return tuple(deferrals)


def _reason(item: Received, view: DeferralView) -> DeferralReason | None:
    spec = item.message.spec
    if spec.dataset in view.blocked_datasets:
        return DeferralReason.DATASET_BLOCKED
    if spec.key.job_id in view.blocked_jobs:
        return DeferralReason.JOB_BLOCKED
    return None


def plan_chunk(
    items: Sequence[Received], deferrals: Deferrals, view: DeferralView, ledger: LedgerView, now: datetime
) -> LanePlan:
    """Plan a chunk: DEFERRED for the messages that `defer` chose, the lane plan for all others.

    ledger: read after `view`. Returns one fate for each item. No lane moves for a deferred message.
    """
    direct = [item for item, reason in zip(items, deferrals, strict=True) if reason is None]
    jobs = frozenset(view.discarded_jobs)
    ledger = replace(ledger, discarding_datasets=view.discarding_datasets, discarded_jobs=jobs)
    plan = plan_lanes(direct, ledger, now)
    fates: Iterator[Fate] = iter(plan.fates)
    return replace(plan, fates=tuple(next(fates) if reason is None else Fate.DEFERRED for reason in deferrals))


def eligible(parked: Sequence[Received], view: DeferralView) -> tuple[bool, ...]:
    """Return which parked messages a drain may plan and delete now.

    parked: in the order of their offsets. A message waits while its dataset or its job is blocked, and behind every
    message of its queue that waits: a later job of the tenant may write the same keys. A dataset that is discarded does
    not wait. The caller plans the eligible messages with `plan_chunk`, in this order.
    """
    waiting = set[QueueKey]()
    may = []
    for item in parked:
        queue = queue_of(item)
        if queue in waiting or not _is_eligible(item, view):
            waiting.add(queue)
        may.append(queue not in waiting)
    return tuple(may)


def _is_eligible(item: Received, view: DeferralView) -> bool:
    spec = item.message.spec
    if spec.dataset in view.discarding_datasets:
        return True
    return spec.dataset not in view.blocked_datasets and spec.key.job_id not in view.blocked_jobs
