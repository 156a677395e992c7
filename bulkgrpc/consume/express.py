"""The express path: who is served before the main path comes to them, and what may be applied so. Pure.

The main path applies a partition in the order of its offsets, so a tenant with much to write makes all others wait. The
express path reads ahead of it, passes over the *hot* tenants, and applies what it finds of the others. It moves no
offset: the main path meets the same messages later and knows them by their lanes. So the express path needs no state of
its own, and a crash of it loses nothing.
"""

from __future__ import annotations

import uuid
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from bulkgrpc.consume.assembly import ChunkBounds, Received
from bulkgrpc.consume.deferral import DeferralReason, Deferrals, DeferralView, defer
from bulkgrpc.consume.plan import TAKEN, Fate, LanePlan, LedgerView
from bulkgrpc.model import Kind

LATE_AFTER = timedelta(seconds=0.2)
"""A message that is applied later than this after it was accepted has waited for others."""
HALF_LIFE_S = 5.0
"""After which what a tenant had written counts half."""
HOT_FACTOR = 1.25
"""A tenant is hot from this many times an equal share on."""
HOT_TOGETHER_MIN = 0.5
"""What the hot tenants must have together: else the load is that of many, and serving some first gains nothing."""
FORGOTTEN_BELOW = 1e-4


class LeftToMainPath(Exception):
    """Some messages may not be applied ahead. tenants: theirs; the main path applies what comes of them."""

    def __init__(self, tenants: frozenset[str]) -> None:
        super().__init__(", ".join(sorted(tenants)))
        self.tenants = tenants


def defer_ahead(
    items: Sequence[Received], view: DeferralView, undecoded: Container[int], next_offsets: Mapping[int, int]
) -> Deferrals:
    """Return for each message of the express path why it is not planned. next_offsets: of the main path."""
    deferrals = defer(items, view, undecoded)
    return tuple(
        DeferralReason.PASSED if item.offset < next_offsets[item.partition] else reason
        for item, reason in zip(items, deferrals, strict=True)
    )


def check_deferrals_ahead(items: Sequence[Received], deferrals: Deferrals) -> None:
    """Check that no message is deferred. Raises LeftToMainPath."""
    deferred = {item.message.spec.key.tenant for item, reason in zip(items, deferrals, strict=True) if reason}
    if deferred:
        raise LeftToMainPath(frozenset(deferred))


def check_jobs_ahead(items: Sequence[Received], deferrals: Deferrals, lane_counts: Mapping[uuid.UUID, int]) -> None:
    """Check the jobs of the messages. lane_counts: of those that have a row.

    Raises LeftToMainPath for jobs without a row, whose first message the main path has, and for those with several
    lanes: many workers share their rows, which the express path would wait for.
    """
    left = {
        item.message.spec.key.tenant
        for item, reason in zip(items, deferrals, strict=True)
        if reason is not DeferralReason.PASSED and lane_counts.get(item.message.spec.key.job_id, 0) != 1
    }
    if left:
        raise LeftToMainPath(frozenset(left))


def left_to_main_path(
    items: Sequence[Received], deferrals: Deferrals, plan: LanePlan, ledger: LedgerView
) -> frozenset[str]:
    """Return the tenants of the messages that may not be applied ahead.

    items: all messages of their tenants in their partitions since the main path's position, or the next ones after
    those that were applied ahead. Their jobs passed `check_jobs_ahead`. plan: of `items`. ledger: what it was made of.

    | the message is                           | may be passed | why                                                 |
    |------------------------------------------|---------------|-----------------------------------------------------|
    | next of its lane, whatever becomes of it | yes           | later it is below the next sequence: known          |
    | a seal that applies                      | yes           | later its lane is sealed: known                     |
    | known, by the ledger before the chunk    | yes           | it is known later, too                              |
    | passed by the main path                  | yes           | nothing is done                                     |
    | deferred for any other reason            | no            | the main path parks it, and what follows            |
    | of another digest, or late               | no            | it would be reported again when it comes again      |
    | after a gap, or known within the chunk   | no            | later, with the gap closed, it would look different |
    | of a job that lost batches, or shows it  | no            | the main path fails the job                         |

    All that follows of such a tenant is left to the main path as well, so the order of its queues holds.
    """
    left = set[str]()
    for item, reason, fate in zip(items, deferrals, plan.fates, strict=True):
        if reason is DeferralReason.PASSED or fate in TAKEN:
            continue
        if fate is not Fate.KNOWN or not _is_known_before(item, ledger):
            left.add(item.message.spec.key.tenant)
    return frozenset(left)


def _is_known_before(item: Received, ledger: LedgerView) -> bool:
    message = item.message
    # The only one: `check_jobs_ahead`.
    lane = ledger.lanes.get((message.spec.key.job_id, 0))
    if lane is None:
        return False
    return lane.sealed if message.kind is Kind.SEAL else message.sequence < lane.next_sequence


def is_late(items: Sequence[Received], now: datetime) -> bool:
    """Return whether one of the messages, which were just applied, has waited for others. now: the time of day."""
    return any(now - item.message.sent_at > LATE_AFTER for item in items)


@dataclass(slots=True)
class TenantShares:
    """Which part of the work is each tenant's, lately. Work is measured in full chunks."""

    _work: dict[str, float] = field(default_factory=dict)
    _counted_at_s: float = 0.0

    def add(self, items: Iterable[Received], bounds: ChunkBounds, now_s: float) -> None:
        """Add messages that were applied. now_s: seconds of the monotonic clock."""
        kept = 0.5 ** ((now_s - self._counted_at_s) / HALF_LIFE_S)
        self._counted_at_s = now_s
        work = {tenant: done * kept for tenant, done in self._work.items()}
        for item in items:
            tenant = item.message.spec.key.tenant
            work[tenant] = work.get(tenant, 0.0) + bounds.share(item.message.records, len(item.payload))
        least = FORGOTTEN_BELOW * sum(work.values())
        self._work = {tenant: done for tenant, done in work.items() if done >= least}

    def hot(self) -> frozenset[str]:
        """Return the tenants that have more than their share, if they have most of the work. A single one has it."""
        total = sum(self._work.values())
        if not total:
            return frozenset()
        share = total / len(self._work)
        alone = len(self._work) == 1
        hot = {tenant for tenant, done in self._work.items() if alone or done > HOT_FACTOR * share}
        together = sum(self._work[tenant] for tenant in hot)
        return frozenset(hot) if together >= HOT_TOGETHER_MIN * total else frozenset()

    @property
    def several(self) -> bool:
        """Whether more than one tenant has had work lately."""
        return len(self._work) > 1
