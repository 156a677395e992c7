"""A database in memory, as far as deferral depends on one: transactions, row locks, advisory locks.

READ COMMITTED: a statement reads what is committed when it starts. So the modelled shell reads `Database` directly, one
statement between two interleaving points, and collects its writes in a `Transaction`, which applies them at once.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Generator, Hashable, Iterable
from dataclasses import dataclass, field, replace

from bulkgrpc.consume.assembly import Received
from bulkgrpc.consume.deferral import DeferralReason, DeferralView, QueueKey, queue_of
from bulkgrpc.consume.plan import Fate, Lane, LaneKey, LedgerView
from bulkgrpc.model import JobCounts, JobSpec, JobState, final_state
from bulkgrpc.positions import Ownership

Place = tuple[int, int]
"""Partition and offset of a message."""
Steps = Generator[bool, None, None]
"""A shell's work. It stops at each point where others may run; True if it waits for a lock."""


class Violation(AssertionError):
    """A promise is broken."""


def require(kept: bool, promise: str) -> None:
    if not kept:
        raise Violation(promise)


@dataclass(frozen=True)
class JobRow:
    """A row of bulk.jobs. staged: records of an atomic job that are not applied yet. lost, attempt: as in `Job`."""

    spec: JobSpec
    partitions: tuple[int, ...]
    state: JobState = JobState.OPEN
    counts: JobCounts = field(default_factory=JobCounts)
    staged: int = 0
    lost: bool = False
    attempt: int = 0

    def after(
        self, done: JobCounts, staged: int, *, sealed: bool, failure: bool, lost: bool = False, left: bool = False
    ) -> JobRow:
        """Add counts, as the function bulk.add_counts does. left: the staged records are left to a task."""
        ended_as = (0, 0, 0) if self.state.ended else (done.written, done.duplicate, done.rejected)
        require((done.written, done.duplicate, done.rejected) == ended_as, f"the end of {self} is changed by {done}")
        counts, state = self.counts + done, self.state
        if not state.ended and failure:
            state = JobState.FAILED
        elif not state.ended and sealed:
            state = JobState.SEALED if left else final_state(counts)
        return replace(self, counts=counts, staged=self.staged + staged, state=state, lost=self.lost or lost)


@dataclass(frozen=True)
class Block:
    """A row of bulk.blocked_datasets."""

    failed: bool = False
    paused: bool = False
    discarding: bool = False


@dataclass(frozen=True)
class Decision:
    """What became of a message. The dictionary of them is in the order of the commits.

    ahead: on the express path, so that the main path or a drain comes to the message once more.
    """

    item: Received
    fate: Fate
    ahead: bool = False


@dataclass(eq=False)
class Transaction:
    """Collects writes and locks; nothing is visible before `commit`. created: the rows of jobs that it inserts."""

    database: Database
    created: dict[uuid.UUID, JobRow] = field(default_factory=dict)
    writes: list[Callable[[], None]] = field(default_factory=list)

    def lock(self, *keys: Hashable) -> Steps:
        """Lock rows for this transaction alone, in this order; wait for each."""
        for key in keys:
            while not self.try_lock(key):
                yield True

    def try_lock(self, key: Hashable) -> bool:
        holder = self.database.locks.setdefault(key, self)
        return holder is self

    def share(self, jobs: Iterable[uuid.UUID]) -> Steps:
        """Keep jobs from being cancelled (FOR KEY SHARE). Conflicts with `exclude` only."""
        for job_id in sorted(set(jobs)):
            while self.database.excluders.get(job_id, self) is not self:
                yield True
            self.database.sharers.setdefault(job_id, set()).add(self)

    def exclude(self, jobs: Iterable[uuid.UUID]) -> Steps:
        """Keep every other transaction from jobs (FOR UPDATE)."""
        for job_id in sorted(set(jobs)):
            while self.database.sharers.get(job_id, set()) - {self} or (
                self.database.excluders.setdefault(job_id, self) is not self
            ):
                yield True
            self.database.excluders[job_id] = self
            self.database.sharers.setdefault(job_id, set()).add(self)

    def commit(self) -> None:
        for write in self.writes:
            write()
        self.rollback()

    def rollback(self) -> None:
        self.writes.clear()
        self.created.clear()
        locks, sharers = self.database.locks, self.database.sharers
        for key in [key for key, holder in locks.items() if holder is self]:
            del locks[key]
        for found in sharers.values():
            found.discard(self)
        for job_id in [job_id for job_id, holder in self.database.excluders.items() if holder is self]:
            del self.database.excluders[job_id]


@dataclass(eq=False)
class Database:
    """What is committed."""

    offsets: dict[int, Ownership] = field(default_factory=dict)
    jobs: dict[uuid.UUID, JobRow] = field(default_factory=dict)
    lanes: dict[LaneKey, Lane] = field(default_factory=dict)
    digests: dict[tuple[uuid.UUID, int], bytes] = field(default_factory=dict)
    parked: dict[Place, Received] = field(default_factory=dict)
    blocked: dict[str, Block] = field(default_factory=dict)
    blocked_jobs: set[uuid.UUID] = field(default_factory=set)
    discarded_jobs: set[uuid.UUID] = field(default_factory=set)
    tasks: set[uuid.UUID] = field(default_factory=set)
    decisions: dict[Place, Decision] = field(default_factory=dict)
    park_reasons: dict[Place, DeferralReason] = field(default_factory=dict)
    locks: dict[Hashable, Transaction] = field(default_factory=dict)
    sharers: dict[uuid.UUID, set[Transaction]] = field(default_factory=dict)
    excluders: dict[uuid.UUID, Transaction] = field(default_factory=dict)

    def deferral_view(self, partitions: Iterable[int], *, main_path: bool = False) -> DeferralView:
        chosen = set(partitions)
        discarded = self.discarded_jobs
        return DeferralView(
            blocked_datasets=frozenset(self.blocked),
            discarding_datasets=frozenset(name for name, block in self.blocked.items() if block.discarding),
            blocked_jobs=frozenset(self.blocked_jobs | discarded if main_path else self.blocked_jobs - discarded),
            discarded_jobs={} if main_path else dict.fromkeys(discarded, "given up"),
            parked_queues=frozenset(queue_of(item) for place, item in self.parked.items() if place[0] in chosen),
        )

    def ledger_view(self, transaction: Transaction) -> LedgerView:
        rows = {**transaction.created, **self.jobs}
        return LedgerView(
            ended=frozenset(job_id for job_id, row in rows.items() if row.state.ended),
            lost=frozenset(job_id for job_id, row in rows.items() if row.lost),
            attempts={job_id: row.attempt for job_id, row in rows.items()},
            lanes=dict(self.lanes),
            digests=dict(self.digests),
            lane_counts={job_id: len(row.partitions) for job_id, row in rows.items()},
        )

    def queue(self, key: QueueKey) -> list[Received]:
        """Return the parked messages of a queue, in the order of their offsets."""
        return [item for _, item in sorted(self.parked.items()) if queue_of(item) == key]

    def decide(self, item: Received, fate: Fate, *, ahead: bool = False) -> None:
        """Record what became of a message; once, or once more as known if that was, or is, on the express path."""
        place = (item.partition, item.offset)
        before = self.decisions.get(place)
        if before is None:
            if not (ahead and fate is Fate.KNOWN):
                self.decisions[place] = Decision(item, fate, ahead)
            return
        require(ahead or before.ahead, f"message {place} is decided twice")
        require(fate is Fate.KNOWN, f"message {place} is {before.fate}, and {fate} when it comes again")
