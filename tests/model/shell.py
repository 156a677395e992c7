"""The modelled shell: what the worker's transactions do around the real decisions, statement by statement.

Each function is a generator that stops where other transactions may run. A crash closes it and rolls back.
"""

from __future__ import annotations

import functools
import uuid
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime

from bulkgrpc.consume import deferral
from bulkgrpc.consume.assembly import Received, Span
from bulkgrpc.consume.deferral import DeferralReason, Deferrals, DeferralView, QueueKey, queue_of
from bulkgrpc.consume.express import LeftToMainPath, check_jobs_ahead, defer_ahead, left_to_main_path
from bulkgrpc.consume.job_delta import failure_reason
from bulkgrpc.consume.plan import EXPIRED, REPORTED_LATE, TAKEN, Fate, Lane, LanePlan, LedgerView
from bulkgrpc.model import JobCounts, JobState, Kind, Message, lane_of
from bulkgrpc.positions import Outcome, Ownership, may_apply_span
from tests.model.database import Block, Database, JobRow, Steps, Transaction, require
from tests.model.mutant import Mutant

BLOCKS = (DeferralReason.UNREADABLE,)
"""Of a message that is deferred for this reason, the job is blocked in the same transaction."""
RECORDS = 2
"""In each batch. A batch whose digest starts with `r` has one that the table rejects."""


class Overtaken(Exception):
    """A job ended, or a lane of it moved, after the chunk was planned."""


class TableBroken(Exception):
    """The table of a dataset cannot be written."""

    def __init__(self, dataset: str) -> None:
        super().__init__(dataset)
        self.dataset = dataset


class PoisonBatch(Exception):
    """A batch of a job can neither be written nor rejected in time."""

    def __init__(self, job_id: uuid.UUID) -> None:
        super().__init__(job_id)
        self.job_id = job_id


class Unreadable(Exception):
    """A slice has a batch to apply that cannot be read. before: how many messages are before it."""

    def __init__(self, before: int, job_id: uuid.UUID) -> None:
        super().__init__(before)
        self.before, self.job_id = before, job_id


@dataclass(eq=False)
class Shell:
    """Database, users' tables, and what the workers' memories say.

    broken: datasets whose table cannot be written. poison: jobs with a batch that cannot be decided. missing: jobs
    whose batches cannot be read: the registry lacks their dataset's version. paused: datasets, by operators.
    transactions: of each actor. What starts with `ever_` is for the checks.
    """

    now: datetime
    mutants: frozenset[Mutant] = frozenset()
    database: Database = field(default_factory=Database)
    broken: set[str] = field(default_factory=set)
    paused: set[str] = field(default_factory=set)
    poison: set[uuid.UUID] = field(default_factory=set)
    missing: set[uuid.UUID] = field(default_factory=set)
    transactions: dict[str, Transaction] = field(default_factory=dict)
    ever_blocked: set[str] = field(default_factory=set)
    ever_blocked_jobs: set[uuid.UUID] = field(default_factory=set)
    ever_queued: set[QueueKey] = field(default_factory=set)
    times_lost: Counter[uuid.UUID] = field(default_factory=Counter)

    def begin(self, actor: str) -> Transaction:
        require(actor not in self.transactions, f"{actor} is in a transaction")
        return self.transactions.setdefault(actor, Transaction(self.database))

    def commit(self, actor: str) -> None:
        self.transactions.pop(actor).commit()

    def rollback(self, actor: str) -> None:
        if actor in self.transactions:
            self.transactions.pop(actor).rollback()

    def block(self, dataset: str, **changes: bool) -> None:
        self.ever_blocked.add(dataset)
        self.database.blocked[dataset] = replace(self.database.blocked.get(dataset, Block()), **changes)

    def pause(self, dataset: str) -> None:
        self.paused.add(dataset)
        self.block(dataset, paused=True)

    def resume(self, dataset: str) -> None:
        """An operator lifts whatever blocks a dataset. If its table is still broken, it is blocked again."""
        is_paused = self.database.blocked.get(dataset, Block()).paused
        require(is_paused or dataset not in self.paused, "a pause was lifted by no operator")
        self.paused.discard(dataset)
        self.database.blocked.pop(dataset, None)

    def block_job(self, job_id: uuid.UUID) -> None:
        self.ever_blocked_jobs.add(job_id)
        self.database.blocked_jobs.add(job_id)

    # The main path

    def write_chunk(
        self, actor: str, spans: Sequence[Span], items: Sequence[Received], prepared: tuple[DeferralView, Done]
    ) -> Steps:
        """Write a chunk, and again with more deferred if a dataset or a job turns out to be blocked.

        prepared: the view when the chunk was prepared, which may be old; what to call once the chunk is over.
        """
        blocked: set[str] = set()
        jobs: set[uuid.UUID] = set()
        early, done = prepared
        unreadable = self.unreadable(items)
        yield False
        while True:
            try:
                known = (early, frozenset(blocked), frozenset(jobs), unreadable)
                yield from self._write_chunk(actor, spans, items, done, known)
                return
            except Overtaken:
                self.rollback(actor)
            except TableBroken as error:
                self.rollback(actor)
                blocked.add(error.dataset)
                yield False
                self.block(error.dataset, failed=True)
            except PoisonBatch as error:
                self.rollback(actor)
                jobs.add(error.job_id)
                yield False
                self.block_job(error.job_id)
            yield False

    def _write_chunk(
        self,
        actor: str,
        spans: Sequence[Span],
        items: Sequence[Received],
        done: Done,
        known: tuple[DeferralView, frozenset[str], frozenset[uuid.UUID], frozenset[int]],
    ) -> Steps:
        database, transaction = self.database, self.begin(actor)
        yield from transaction.lock(*(("offset", span.partition) for span in spans))
        outcomes = {span.partition: self._outcome(span) for span in spans}
        if any(outcome is not Outcome.NEXT for outcome in outcomes.values()):
            self.rollback(actor)
            done(outcomes)
            return
        yield False
        ledger = database.ledger_view(transaction)
        if Mutant.LANES_BEFORE_VIEW in self.mutants:
            yield False
        early, blocked, jobs, unreadable = known
        view = early if Mutant.VIEW_BEFORE_LOCK in self.mutants else self.view(span.partition for span in spans)
        view = replace(view, blocked_datasets=view.blocked_datasets | blocked, blocked_jobs=view.blocked_jobs | jobs)
        deferrals = self._defer(items, view, early, unreadable)
        yield False
        yield from self._open_jobs(transaction, items, deferrals)
        if Mutant.SHARES_UNLOCKED not in self.mutants:
            yield from transaction.share(item.message.spec.key.job_id for item in items)
        if Mutant.LANES_BEFORE_VIEW not in self.mutants:
            yield False
            ledger = database.ledger_view(transaction)
        else:
            ledger = replace(database.ledger_view(transaction), lanes=ledger.lanes, digests=ledger.digests)
        plan = self._plan(items, deferrals, view, ledger)
        yield False
        yield from self._apply(transaction, items, plan, ledger, view)
        for job_id in {i.message.spec.key.job_id for i, r in zip(items, deferrals, strict=True) if r in BLOCKS}:
            transaction.writes.append(functools.partial(self.block_job, job_id))
        park = self._park(items, deferrals)
        if Mutant.OFFSET_BEFORE_PARKED not in self.mutants:
            transaction.writes.append(park)
        transaction.writes.append(lambda: self._advance(spans))
        yield False
        self.commit(actor)
        if Mutant.OFFSET_BEFORE_PARKED in self.mutants:
            yield False
            park()
        yield False
        done(outcomes)

    def view(self, partitions: Iterable[int]) -> DeferralView:
        return self.database.deferral_view(partitions, main_path=True)

    def unreadable(self, items: Sequence[Received]) -> frozenset[int]:
        """Return the indices of the batches that cannot be read now."""
        messages = enumerate(item.message for item in items)
        return frozenset(n for n, m in messages if m.kind is Kind.BATCH and m.spec.key.job_id in self.missing)

    def _outcome(self, span: Span) -> Outcome:
        position = self.database.offsets[span.partition]
        epoch = position.owner_epoch if Mutant.OLD_EPOCH in self.mutants else span.owner_epoch
        return may_apply_span(position.next_offset, position.owner_epoch, span.from_offset, epoch)

    def _defer(
        self, items: Sequence[Received], view: DeferralView, early: DeferralView, unreadable: frozenset[int]
    ) -> Deferrals:
        # The first half of the chunk was decoded by an older view than the second: what it says is blocked was not.
        first_half = items[: (len(items) + 1) // 2]
        undecoded = {n for n, may in enumerate(deferral.eligible(first_half, early)) if not may}
        if Mutant.NOT_BEHIND_PARKED in self.mutants:
            view = replace(view, parked_queues=frozenset())
        deferrals = deferral.defer(items, view, undecoded, unreadable)
        if Mutant.SET_ASIDE_ALONE in self.mutants:
            others = deferral.defer(items, view, undecoded)
            deferrals = tuple(r if n in unreadable else others[n] for n, r in enumerate(deferrals))
        if Mutant.NOT_BEHIND_OWN_CHUNK in self.mutants:
            deferrals = tuple(
                deferral.defer([item], view, {0} if n in undecoded else ())[0] for n, item in enumerate(items)
            )
        if Mutant.QUEUE_PER_JOB in self.mutants:
            deferrals = self._defer_per_job(items, deferrals, view)
        if Mutant.SEAL_NOT_DEFERRED in self.mutants:
            kinds = [item.message.kind for item in items]
            deferrals = tuple(r if kind is Kind.BATCH else None for r, kind in zip(deferrals, kinds, strict=True))
        return deferrals

    def _defer_per_job(self, items: Sequence[Received], deferrals: Deferrals, view: DeferralView) -> Deferrals:
        waiting = {item.message.spec.key.job_id for item in self.database.parked.values()}
        alone = replace(view, parked_queues=frozenset())
        found: list[DeferralReason | None] = []
        for item, reason in zip(items, deferrals, strict=True):
            job_id = item.message.spec.key.job_id
            is_alone = reason is DeferralReason.BEHIND_PARKED and job_id not in waiting
            found.append(deferral.defer([item], alone)[0] if is_alone else reason)
            if found[-1] is not None:
                waiting.add(job_id)
        return tuple(found)

    def _open_jobs(self, transaction: Transaction, items: Sequence[Received], deferrals: Deferrals) -> Steps:
        """Create the rows of the jobs that begin here, parked or not: one transaction at a time creates a job."""
        begun = {
            item.message.spec.key.job_id: item
            for item, reason in zip(items, deferrals, strict=True)
            if item.message.opens
            and reason is not DeferralReason.PASSED
            and (reason is None or Mutant.NO_TRACE not in self.mutants)
        }
        for job_id in sorted(begun.keys() - self.database.jobs.keys()):
            yield from transaction.lock(("open", job_id))
            if job_id not in self.database.jobs:
                message = begun[job_id].message
                transaction.created[job_id] = JobRow(message.spec, message.partitions or (begun[job_id].partition,))

    def _park(self, items: Sequence[Received], deferrals: Deferrals) -> Callable[[], None]:
        parked = [(item, reason) for item, reason in zip(items, deferrals, strict=True) if reason is not None]

        def park() -> None:
            database = self.database
            for item, reason in parked:
                copies = Mutant.COPIES_DROPPED in self.mutants and any(
                    other.message == item.message and item.message.kind is Kind.BATCH
                    for other in database.parked.values()
                )
                if copies:
                    database.decide(item, Fate.KNOWN)
                else:
                    database.parked.setdefault((item.partition, item.offset), item)
                    database.park_reasons[item.partition, item.offset] = reason
                    self._check_parked(item)

        return park

    def _check_parked(self, item: Received) -> None:
        message = item.message
        job_id = message.spec.key.job_id
        concerned = (
            message.spec.dataset in self.ever_blocked
            or queue_of(item) in self.ever_queued
            or job_id in self.ever_blocked_jobs
        )
        if job_id in self.ever_blocked_jobs:
            self.ever_queued.add(queue_of(item))
        require(concerned, f"an innocent queue is parked: {queue_of(item)}")
        require(not message.opens or job_id in self.database.jobs, f"parked job {job_id.int} has no row")

    def _advance(self, spans: Sequence[Span]) -> None:
        for span in spans:
            position = self.database.offsets[span.partition]
            require(position.owner_epoch == span.owner_epoch, "a chunk is committed under an old epoch")
            require(position.next_offset == span.from_offset, "a chunk is committed that is not the next one")
            self.database.offsets[span.partition] = replace(position, next_offset=span.to_offset)

    # The express path

    def write_ahead(
        self,
        actor: str,
        span: Span,
        items: Sequence[Received],
        left: Callable[[frozenset[str]], None],
        applied: Callable[[Sequence[Received]], None],
    ) -> Steps:
        """Apply messages before the main path does.

        left: called with the tenants that are left to the main path. applied: called with what was committed.
        """
        yield False
        while items:
            try:
                yield from self._write_ahead(actor, span, items, applied)
                return
            except Overtaken:
                self.rollback(actor)
                continue
            except LeftToMainPath as error:
                tenants = error.tenants
            except (TableBroken, PoisonBatch) as error:
                tenants = frozenset(
                    item.message.spec.key.tenant
                    for item in items
                    if isinstance(error, PoisonBatch) or item.message.spec.dataset == error.dataset
                )
            self.rollback(actor)
            left(tenants)
            items = [item for item in items if item.message.spec.key.tenant not in tenants]
            yield False

    def _write_ahead(
        self, actor: str, span: Span, items: Sequence[Received], applied: Callable[[Sequence[Received]], None]
    ) -> Steps:
        database, transaction = self.database, self.begin(actor)
        deferrals: Deferrals = ()
        view = DeferralView()
        known = set[uuid.UUID]()
        for last in (False, True):
            if Mutant.AHEAD_WITHOUT_LOCK not in self.mutants:
                known = {item.message.spec.key.job_id for item in items} & database.jobs.keys()
                yield from transaction.exclude(known)
            yield False
            if Mutant.AHEAD_VIEW_FIRST in self.mutants:
                view = self.view([span.partition])
                yield False
            if database.offsets[span.partition].owner_epoch != span.owner_epoch:
                self.rollback(actor)
                return
            positions = {partition: owned.next_offset for partition, owned in database.offsets.items()}
            if Mutant.AHEAD_OF_NOTHING in self.mutants:
                positions = dict.fromkeys(positions, 0)
            yield False
            if Mutant.AHEAD_VIEW_FIRST not in self.mutants:
                view = self.view([span.partition])
            deferrals = defer_ahead(items, view, self.unreadable(items), positions)
            begun = {
                item.message.spec.key.job_id
                for item, reason in zip(items, deferrals, strict=True)
                if item.message.opens and reason is None
            }
            if last or not begun - database.jobs.keys() or Mutant.AHEAD_OPENS_LATE in self.mutants:
                break
            yield from self._open_jobs(transaction, items, deferrals)
            yield False
        if Mutant.AHEAD_OPENS_LATE in self.mutants:
            yield from self._open_jobs(transaction, items, deferrals)
        if Mutant.AHEAD_PAST_DEFERRED in self.mutants:
            items = [item for item, reason in zip(items, deferrals, strict=True) if reason is None]
            deferrals = (None,) * len(items)
        yield False
        ledger = database.ledger_view(transaction)
        rows = {**transaction.created, **database.jobs}
        # A row that another has created since is not locked.
        unlocked = {Mutant.AHEAD_WITHOUT_LOCK, Mutant.AHEAD_OPENS_LATE} & self.mutants
        mine = rows.keys() if unlocked else rows.keys() & (known | transaction.created.keys())
        check_jobs_ahead(items, deferrals, {job_id: len(rows[job_id].partitions) for job_id in mine})
        plan = self._plan(items, deferrals, view, ledger)
        if tenants := self._left(items, deferrals, plan, ledger):
            raise LeftToMainPath(tenants)
        yield False
        yield from self._apply(transaction, items, plan, ledger, view, ahead=True)
        yield False
        self.commit(actor)
        yield False
        applied(items)

    def _left(
        self, items: Sequence[Received], deferrals: Deferrals, plan: LanePlan, ledger: LedgerView
    ) -> frozenset[str]:
        allowed: set[Fate] = set()
        if Mutant.AHEAD_REJECTS in self.mutants:
            allowed |= {Fate.CONFLICT, Fate.LATE}
        if Mutant.AHEAD_AFTER_GAP in self.mutants:
            allowed.add(Fate.KNOWN)
        checked = [n for n, fate in enumerate(plan.fates) if fate not in allowed]
        return left_to_main_path(
            [items[n] for n in checked],
            tuple(deferrals[n] for n in checked),
            LanePlan(tuple(plan.fates[n] for n in checked), plan.lanes),
            ledger,
        )

    # What the main path, the express path and the drain share

    def _plan(
        self, items: Sequence[Received], deferrals: Deferrals, view: DeferralView, ledger: LedgerView
    ) -> LanePlan:
        if Mutant.LOST_TAKES_MORE in self.mutants:
            ledger = replace(ledger, lost=frozenset())
        seen = [replace(item, message=self._seen(item.message, ledger)) for item in items]
        plan = deferral.plan_chunk(seen, deferrals, view, ledger, self.now)
        lanes = {**ledger.lanes, **plan.lanes}
        for item, fate in zip(items, plan.fates, strict=True):
            message, job_id = item.message, item.message.spec.key.job_id
            if fate is Fate.KNOWN and ledger.attempts.get(job_id) == message.attempt:
                over = job_id in ledger.ended or job_id in plan.losses
                number = lane_of(message.sequence, ledger.lane_counts.get(job_id, 1))
                number = message.lane if message.kind is Kind.SEAL else number
                lane = lanes.get((job_id, number), Lane(number, sealed=False))
                shows = lane.next_sequence < message.stored_sequence and not lane.sealed
                require(over or not shows, f"job {job_id.int}: {message.kind} behind a hole is ignored")
        return plan

    def _seen(self, message: Message, ledger: LedgerView) -> Message:
        """Return a message as the decisions see it."""
        if message.stored_sequence:
            if Mutant.STORED_IGNORED in self.mutants:
                message = replace(message, stored_sequence=0)
            if Mutant.STORED_ONE_LESS in self.mutants:
                message = replace(message, stored_sequence=message.stored_sequence - 1)
            if Mutant.STORED_ONE_MORE in self.mutants:
                message = replace(message, stored_sequence=message.stored_sequence + 1)
        if Mutant.GAP_IS_LOSS in self.mutants:
            message = replace(message, stored_sequence=message.sequence)
        if Mutant.OLD_ATTEMPTS_COUNT in self.mutants:
            message = replace(message, attempt=ledger.attempts.get(message.spec.key.job_id, 0))
        return message

    def _apply(
        self,
        transaction: Transaction,
        items: Sequence[Received],
        plan: LanePlan,
        ledger: LedgerView,
        view: DeferralView,
        *,
        ahead: bool = False,
    ) -> Steps:
        """Write rows, lanes, counts and the ends of jobs. Raises what a writer raises."""
        database = self.database
        for item, fate in zip(items, plan.fates, strict=True):
            spec = item.message.spec
            if item.message.kind is Kind.BATCH and fate is Fate.APPLY:
                if spec.key.job_id in self.poison:
                    raise PoisonBatch(spec.key.job_id)
                if spec.dataset in self.broken and not spec.options.atomic:
                    raise TableBroken(spec.dataset)
        created = dict(transaction.created)
        transaction.writes.append(lambda: database.jobs.update(created))
        decided = [(item, fate) for item, fate in zip(items, plan.fates, strict=True) if fate is not Fate.DEFERRED]
        by_job: dict[uuid.UUID, list[tuple[Received, Fate]]] = {}
        for item, fate in decided:
            by_job.setdefault(item.message.spec.key.job_id, []).append((item, fate))
        for job_id in sorted(by_job):
            item = by_job[job_id][0][0]
            row = database.jobs.get(job_id) or transaction.created.get(job_id) or JobRow(item.message.spec, (0,))
            if len(row.partitions) > 1:
                yield from transaction.lock(("row", job_id))
                row = database.jobs.get(job_id, row)
                moved = any(k[0] == job_id and database.lanes.get(k) != ledger.lanes.get(k) for k in plan.lanes)
                if row.state.ended != (job_id in ledger.ended) or moved:
                    raise Overtaken
            lanes = {**database.lanes, **plan.lanes}
            ends = all((job_id, n) in lanes and lanes[job_id, n].sealed for n in range(len(row.partitions)))
            self._count(transaction, row, by_job[job_id], view, ends=ends, lost=job_id in plan.losses)
        moved_lanes = dict(plan.lanes)
        transaction.writes.append(lambda: database.lanes.update(moved_lanes))
        transaction.writes.append(lambda: self._decide(decided, ahead=ahead))

    def _decide(self, decided: Sequence[tuple[Received, Fate]], *, ahead: bool) -> None:
        for item, fate in decided:
            message = item.message
            self.database.decide(item, fate, ahead=ahead)
            if message.kind is Kind.BATCH and fate in TAKEN:
                key = (message.spec.key.job_id, message.sequence)
                require(key not in self.database.digests, f"batch {message.sequence} of a job is taken twice")
                self.database.digests[key] = message.digest

    def _count(
        self,
        transaction: Transaction,
        row: JobRow,
        decided: Sequence[tuple[Received, Fate]],
        view: DeferralView,
        *,
        ends: bool,
        lost: bool,
    ) -> None:
        spec = row.spec
        batches = [(item.message, fate) for item, fate in decided if item.message.kind is Kind.BATCH]
        sealed = any(item.message.kind is Kind.SEAL and fate is Fate.APPLY for item, fate in decided) and ends
        applied = [message for message, fate in batches if fate is Fate.APPLY]
        accepted = sum(
            message.records for message, fate in batches if fate not in (Fate.KNOWN, Fate.LOST, *REPORTED_LATE)
        )
        expired = sum(message.records for message, fate in batches if fate in EXPIRED)
        rejected = sum(message.digest.startswith(b"r") for message in applied)
        rejected += sum(message.records for message, fate in batches if fate in (Fate.CONFLICT, Fate.DISCARDED_JOB))
        written, staged, fails, left = accepted - expired - rejected, 0, False, False
        if not row.state.ended:
            counts = row.counts
            atomic = spec.options.atomic
            fails = bool(
                failure_reason(
                    atomic, spec.options.rejections_max, counts.rejected + rejected, counts.expired + expired
                )
            )
            fails = fails or lost
            # Discarding an atomic job's dataset fails the job at its seal: its staged rows must not be applied.
            # Otherwise its seal leaves them to a task.
            fails = fails or (atomic and sealed and spec.dataset in view.discarding_datasets)
            if spec.key.job_id in view.discarded_jobs:
                fails = sealed or Mutant.DISCARD_ENDS_EARLY in self.mutants
            if atomic:
                waiting = row.staged + written
                if fails:
                    written, expired, staged = 0, expired + waiting, -row.staged
                else:
                    written, staged, left = 0, written, sealed and waiting > 0
        done = JobCounts(accepted, written, 0, rejected, expired)
        job_id, jobs = spec.key.job_id, self.database.jobs

        def count() -> None:
            if job_id in jobs:
                jobs[job_id] = jobs[job_id].after(done, staged, sealed=sealed, failure=fails, lost=lost, left=left)
                if lost:
                    self.times_lost[job_id] += 1
                if left:
                    self.database.tasks.add(job_id)

        transaction.writes.append(count)

    # Tasks

    def apply_task(self, actor: str, job_id: uuid.UUID) -> Steps:
        """Apply the staged records of an atomic job and end the job. The job's row is locked at the end only."""
        database, transaction = self.database, self.begin(actor)
        if job_id not in database.tasks or not transaction.try_lock(("task", job_id)):
            self.rollback(actor)
            return
        yield False
        staged_before = database.jobs.get(job_id)
        if staged_before is not None and staged_before.spec.dataset in self.broken:
            self.rollback(actor)
            yield False
            self.block(staged_before.spec.dataset, failed=True)
            return
        yield False
        yield from transaction.lock(("row", job_id))
        row = database.jobs.get(job_id)
        if Mutant.TASK_FROM_CLAIMED in self.mutants:
            row = staged_before
        if row is None or row.state is not JobState.SEALED:
            # It was cancelled, or discarded: nothing of it is written.
            self.rollback(actor)
            yield False
            database.tasks.discard(job_id)
            return
        done = JobCounts(written=row.staged)

        def end() -> None:
            if job_id in database.jobs:
                database.jobs[job_id] = database.jobs[job_id].after(done, -row.staged, sealed=True, failure=False)
            database.tasks.discard(job_id)

        transaction.writes.append(end)
        yield False
        self.commit(actor)

    # The drain

    def drain(self, actor: str, queue: QueueKey, slice_max: int, *, trial: bool, merge: bool) -> Steps:
        """Apply one slice of a queue. trial: of a blocked dataset. merge: the rest of the queue, offset locked."""
        prepared = self.database.queue(queue)
        yield False
        try:
            yield from self._drain(actor, queue, slice_max, prepared, (trial, merge))
        except Overtaken:
            self.rollback(actor)
        except Unreadable as error:
            self.rollback(actor)
            yield False
            if error.before:
                yield from self.drain(actor, queue, error.before, trial=trial, merge=False)
            else:
                self.block_job(error.job_id)
        except TableBroken as error:
            self.rollback(actor)
            yield False
            self.block(error.dataset, failed=True)
        except PoisonBatch as error:
            self.rollback(actor)
            yield False
            self.block_job(error.job_id)

    def _drain(
        self, actor: str, queue: QueueKey, slice_max: int, prepared: Sequence[Received], how: tuple[bool, bool]
    ) -> Steps:
        trial, merge = how
        transaction = self.begin(actor)
        if merge and Mutant.MERGE_WITHOUT_OFFSET_LOCK not in self.mutants:
            yield from transaction.lock(("offset", queue.partition))
        if Mutant.NO_QUEUE_LOCK not in self.mutants and not transaction.try_lock(queue):
            self.rollback(actor)
            return
        yield False
        view = self.database.deferral_view([queue.partition])
        if trial:
            view = view.on_trial(queue.dataset)
        yield False
        items = yield from self._select(transaction, queue, slice_max, prepared, view)
        if items:
            yield False
            yield from transaction.share(item.message.spec.key.job_id for item in items)
            yield False
            ledger = self.database.ledger_view(transaction)
            plan = self._plan(items, (None,) * len(items), view, ledger)
            if Mutant.DISCARD_WITHOUT_LANES in self.mutants and queue.dataset in view.discarding_datasets:
                fates = [Fate.DISCARD if item.message.kind is Kind.BATCH else Fate.APPLY for item in items]
                plan = LanePlan(tuple(fates), plan.lanes)
            self._check_readable(items, plan)
            yield False
            yield from self._apply(transaction, items, plan, ledger, view)
            transaction.writes.append(lambda: self._delete(items))
        if trial and items:
            transaction.writes.append(lambda: self.lift(queue.dataset))
        yield False
        self.commit(actor)

    def _select(
        self,
        transaction: Transaction,
        queue: QueueKey,
        slice_max: int,
        prepared: Sequence[Received],
        view: DeferralView,
    ) -> Generator[bool, None, list[Received]]:
        """SELECT … ORDER BY message_offset LIMIT … FOR UPDATE: leaves out a row that is gone once it is locked."""
        unchecked = Mutant.DRAIN_FROM_PREPARED in self.mutants
        unlocked = unchecked or Mutant.NO_ROW_LOCK in self.mutants
        parked = prepared if unchecked else self.database.queue(queue)
        if Mutant.DRAIN_UNORDERED in self.mutants:
            parked = parked[::-1]
        mask = deferral.eligible(parked, view)
        items: list[Received] = []
        for item in (item for item, may in zip(parked, mask, strict=True) if may):
            place = (item.partition, item.offset)
            if len(items) == slice_max:
                break
            if not unlocked:
                yield from transaction.lock(("parked", place))
            if unlocked or place in self.database.parked:
                items.append(item)
        return items

    def _check_readable(self, items: Sequence[Received], plan: LanePlan) -> None:
        for n in sorted(self.unreadable(items)):
            if plan.fates[n] is Fate.APPLY:
                raise Unreadable(n, items[n].message.spec.key.job_id)

    def _delete(self, items: Sequence[Received]) -> None:
        if Mutant.DRAIN_KEEPS_ROWS in self.mutants:
            return
        for item in items:
            self.database.parked.pop((item.partition, item.offset), None)

    def lift(self, dataset: str) -> None:
        """DELETE FROM blocked_datasets WHERE dataset = … AND NOT paused, evaluated again when the row is locked."""
        block = self.database.blocked.get(dataset)
        if block is not None and (not block.paused or Mutant.PROBER_LIFTS_PAUSE in self.mutants):
            del self.database.blocked[dataset]

    # Prober, maintenance, operators: one statement each

    def claim(self, dataset: str) -> QueueKey | None:
        """Return a queue to try a blocked dataset with. Without one, the block is lifted: the main path tries it."""
        block = self.database.blocked.get(dataset)
        if block is None or (block.paused and Mutant.PROBER_LIFTS_PAUSE not in self.mutants):
            return None
        view = self.database.deferral_view([]).on_trial(dataset)
        items = [item for _, item in sorted(self.database.parked.items()) if item.message.spec.dataset == dataset]
        found = [item for item, may in zip(items, deferral.eligible(items, view), strict=True) if may]
        if found:
            return queue_of(found[0])
        if Mutant.PROBER_NEEDS_PARKED not in self.mutants:
            self.lift(dataset)
        return None

    def has_parked(self, job_id: uuid.UUID) -> bool:
        return any(item.message.spec.key.job_id == job_id for item in self.database.parked.values())

    def end_abandoned(self, job_id: uuid.UUID, ends: dict[int, int]) -> bool:
        """End an open job of which nothing may still come; return whether that was done."""
        database, row = self.database, self.database.jobs[job_id]
        applied = all(database.offsets.get(p, Ownership(p, 0, 0)).next_offset >= ends[p] for p in row.partitions)
        parked = self.has_parked(job_id) and Mutant.ABANDONED_IGNORES_PARKED not in self.mutants
        busy = ("row", job_id) in database.locks or bool(database.sharers.get(job_id))
        if row.state is not JobState.OPEN or not applied or parked or busy:
            return False
        self._end(job_id, JobState.EXPIRED)
        return True

    def end_unapplied(self, job_id: uuid.UUID, ends: dict[int, int]) -> bool:
        """Fail a sealed job of which nothing may still come; return whether that was done."""
        database, row = self.database, self.database.jobs[job_id]
        applied = all(database.offsets.get(p, Ownership(p, 0, 0)).next_offset >= ends[p] for p in row.partitions)
        parked = self.has_parked(job_id) and Mutant.TAIL_IGNORES_PARKED not in self.mutants
        busy = ("row", job_id) in database.locks or bool(database.sharers.get(job_id))
        if row.state.ended or not applied or parked or busy or Mutant.NO_TAIL in self.mutants:
            return False
        self._end(job_id, JobState.FAILED)
        database.jobs[job_id] = replace(database.jobs[job_id], lost=True)
        self.times_lost[job_id] += 1
        return True

    def open_again(self, job_id: uuid.UUID) -> bool:
        """Open a job again that lost batches; return whether that was done. Waits for who has the job."""
        database, row = self.database, self.database.jobs[job_id]
        if not row.lost or ("row", job_id) in database.locks or database.sharers.get(job_id):
            return False
        keeps = not row.spec.options.atomic or Mutant.OPENED_KEEPS_STAGED_LANES in self.mutants
        counts = row.counts if keeps else JobCounts()
        database.jobs[job_id] = replace(row, state=JobState.OPEN, lost=False, attempt=row.attempt + 1, counts=counts)
        for key in [key for key in database.lanes if key[0] == job_id]:
            if not keeps:
                del database.lanes[key]
            elif Mutant.OPENED_STAYS_SEALED not in self.mutants:
                database.lanes[key] = replace(database.lanes[key], sealed=False)
        for batch in [key for key in database.digests if key[0] == job_id and not keeps]:
            del database.digests[batch]
        for place in [] if keeps else [p for p, d in database.decisions.items() if d.item.message.spec is row.spec]:
            # What the express path staged of it is staged again when the main path comes to it.
            del database.decisions[place]
        return True

    def cancel(self, job_id: uuid.UUID) -> bool:
        """CancelJob; return whether it ended the job. Waits for the writer of a job with one lane."""
        database, row = self.database, self.database.jobs.get(job_id)
        if row is None or row.state.ended or ("row", job_id) in database.locks:
            return False
        if len(row.partitions) == 1 and database.sharers.get(job_id):
            return False
        self._end(job_id, JobState.CANCELLED)
        return True

    def _end(self, job_id: uuid.UUID, state: JobState) -> None:
        row = self.database.jobs[job_id]
        counts = row.counts + JobCounts(expired=row.staged)
        self.database.jobs[job_id] = replace(row, state=state, counts=counts, staged=0)

    def discard_job(self, job_id: uuid.UUID) -> bool:
        """DiscardJob, for a job that is blocked; return whether workers reject what is not applied of it."""
        row = self.database.jobs.get(job_id)
        if row is None or row.state.ended or job_id not in self.database.blocked_jobs:
            return False
        self.database.discarded_jobs.add(job_id)
        return True

    def discard_tasks(self, dataset: str) -> None:
        """Fail the jobs of a dataset whose staged records are not applied, but for one that is about to end."""
        for job_id in sorted(self.database.tasks):
            row = self.database.jobs.get(job_id)
            about_to_end = ("row", job_id) in self.database.locks
            sealed = row is not None and row.state is JobState.SEALED and row.spec.dataset == dataset
            if sealed and not about_to_end:
                self._end(job_id, JobState.FAILED)

    def forget(self, job_id: uuid.UUID) -> bool:
        """DeleteJob, or a day past retention; return whether the job is gone."""
        database, row = self.database, self.database.jobs.get(job_id)
        parked = self.has_parked(job_id) and Mutant.FORGET_IGNORES_PARKED not in self.mutants
        if row is None or not row.state.ended or row.lost or parked or database.sharers.get(job_id):
            return False
        if ("task", job_id) in database.locks:
            return False
        database.tasks.discard(job_id)
        del database.jobs[job_id]
        for lane in [key for key in database.lanes if key[0] == job_id]:
            del database.lanes[lane]
        for batch in [key for key in database.digests if key[0] == job_id]:
            del database.digests[batch]
        return True


Done = Callable[[dict[int, Outcome]], None]
"""Called when a chunk is over: committed if every outcome is NEXT."""
