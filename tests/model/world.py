"""The world around the shell: clients that append to the log, workers that come and go, and the checks at the end."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta

from bulkgrpc.consume.assembly import Received, Span
from bulkgrpc.consume.deferral import DeferralView, QueueKey, queue_of
from bulkgrpc.consume.plan import Fate
from bulkgrpc.model import JobKey, JobOptions, JobSpec, JobState, Kind, Message, lane_of
from bulkgrpc.positions import Outcome, Ownership
from tests.model.database import Decision, JobRow, Place, Steps, Violation, require
from tests.model.mutant import Mutant
from tests.model.oracle import single_cursor
from tests.model.shell import RECORDS, Shell

START = datetime(2026, 1, 1, tzinfo=UTC)
PARTITIONS = (0, 1)
ROUNDS_MAX = 300
DISCARDS = ({Fate.APPLY, Fate.DISCARD, Fate.DISCARDED_JOB}, {Fate.CONFLICT, Fate.EXPIRED_CONFLICT})
"""What becomes of a batch before its job ends, and after."""
"""In which everything must be applied once nothing is blocked and no message is appended."""


@dataclass(eq=False)
class Submission:
    """A client's job.

    next_sequence: of the batch it sends next. sent: after the last one that it ever sent. stored: the client has an
    acknowledgement of every batch before it. excused: its batches may be discarded. late: a batch follows its seal, so
    how it ends depends on whether a chunk ends between the two. lossy: the log lost a message of it.
    """

    spec: JobSpec
    partitions: tuple[int, ...]
    next_sequence: int = 0
    sent: int = 0
    stored: int = 0
    attempt: int = 0
    lossy: bool = False
    sealed: bool = False
    excused: bool = False
    forgotten: bool = False
    late: bool = False
    discarded: bool = False
    digests: dict[int, bytes] = field(default_factory=dict)

    @property
    def job_id(self) -> uuid.UUID:
        return self.spec.key.job_id


def express_of(worker: str) -> str:
    """Return the actor that is a worker's express path."""
    return f"{worker}-express"


def submissions() -> list[Submission]:
    """Return jobs of every kind. Tenants a and b share a partition and a dataset; z and d are innocent."""
    several, ttl = (0, 1), 3.0
    rows: list[tuple[str, str, tuple[int, ...], JobOptions]] = [
        ("a", "x", (0,), JobOptions()),
        ("a", "x", (0,), JobOptions()),
        ("b", "x", (0,), JobOptions(rejections_max=1)),
        ("a", "y", (0,), JobOptions(atomic=True)),
        ("b", "y", several, JobOptions()),
        ("c", "x", (1, 0), JobOptions(time_to_live_s=ttl)),
        ("d", "z", several, JobOptions()),
    ]
    return [
        Submission(JobSpec(JobKey(tenant, uuid.UUID(int=n)), "", dataset, 1, options=options), partitions)
        for n, (tenant, dataset, partitions, options) in enumerate(rows, 1)
    ]


@dataclass(eq=False)
class Run:
    """A run of a worker's express path. ahead: the next offset of each partition. left: tenants, to the main path."""

    owned: dict[int, Ownership]
    ahead: dict[int, int]
    left: set[str]


@dataclass(eq=False)
class World:
    """Log, clients, workers and the shell that they run.

    runs: of each worker's express path. applied: what it applied, as the worker remembers it. fetched: where the main
    path's chunks end. gone: messages that the log lost.
    """

    mutants: frozenset[Mutant] = frozenset()
    jobs: Sequence[Submission] = field(default_factory=submissions)
    log: dict[int, list[Received]] = field(default_factory=lambda: {p: [] for p in PARTITIONS})
    owned: dict[str, dict[int, Ownership]] = field(default_factory=dict)
    actors: dict[str, Steps] = field(default_factory=dict)
    prepared: dict[str, DeferralView] = field(default_factory=dict)
    runs: dict[str, Run] = field(default_factory=dict)
    applied: dict[str, set[Place]] = field(default_factory=dict)
    fetched: dict[str, dict[int, int]] = field(default_factory=dict)
    gone: set[Place] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.shell = Shell(START, self.mutants)
        self.database = self.shell.database

    # Clients

    def append(self, job: Submission, sequence: int, digest: bytes) -> None:
        lanes = len(job.partitions)
        self._send(job, Kind.BATCH, lane_of(sequence, lanes), sequence, digest)

    def send_next(self, job: Submission, digest: bytes) -> None:
        self.append(job, job.next_sequence, job.digests.setdefault(job.next_sequence, digest))
        job.next_sequence += 1
        job.sent = max(job.sent, job.next_sequence)
        # Acknowledgements come one batch later, sometimes.
        job.stored = max(job.stored, job.next_sequence - len(self.log[job.partitions[0]]) % 2)

    def send_after_gap(self, job: Submission, digest: bytes) -> None:
        """The log did not take the lane's next batch, but took the one after it. The client will send both again."""
        sequence = job.next_sequence + len(job.partitions)
        self.append(job, sequence, job.digests.setdefault(sequence, digest))

    def send_copy(self, job: Submission, sequence: int, *, conflict: bool) -> None:
        job.late |= job.sealed
        self.append(job, sequence, b"other" if conflict else job.digests.setdefault(sequence, b"late"))

    def seal(self, job: Submission) -> None:
        while job.next_sequence < job.sent:
            # Of a job that is opened again: its client has sent these before.
            self.send_next(job, b"")
        job.stored = job.next_sequence
        for lane in range(len(job.partitions)):
            self._send(job, Kind.SEAL, lane, job.next_sequence, b"")
        job.sealed = True

    def _send(self, job: Submission, kind: Kind, lane: int, sequence: int, digest: bytes) -> None:
        now, ttl_s = self.shell.now, job.spec.options.time_to_live_s
        several = job.partitions if len(job.partitions) > 1 else ()
        message = Message(
            kind,
            job.spec,
            lane,
            sequence,
            RECORDS if kind is Kind.BATCH else 0,
            0,
            now,
            digest=digest,
            expires_at=now + timedelta(seconds=ttl_s) if ttl_s and kind is Kind.BATCH else None,
            partitions=several,
            stored_sequence=job.stored,
            attempt=job.attempt,
        )
        partition = job.partitions[lane]
        self.log[partition].append(Received(partition, len(self.log[partition]), message, b""))

    def lose(self, job: Submission, back: int) -> None:
        """The log loses one of a job's last messages, whether or not it is read already."""
        sent = self._messages(job)
        opening = any(job.job_id in transaction.created for transaction in self.shell.transactions.values())
        if len(sent) < back or job.forgotten or opening:
            return
        item = sorted(sent, key=lambda item: (item.message.sequence, item.partition))[-back]
        # Its server has created the row.
        self.database.jobs.setdefault(job.job_id, JobRow(job.spec, job.partitions))
        self.gone.add((item.partition, item.offset))
        job.lossy = True

    def submit_again(self, job: Submission) -> None:
        """A client opens a job again that lost batches, and continues where the job does."""
        if job.job_id not in self.database.jobs or not self.shell.open_again(job.job_id):
            return
        lanes = [self.database.lanes.get((job.job_id, n)) for n in range(len(job.partitions))]
        job.next_sequence = job.stored = min(n if lane is None else lane.next_sequence for n, lane in enumerate(lanes))
        job.sealed, job.attempt = False, self.database.jobs[job.job_id].attempt

    def _read(self, partition: int, from_offset: int, messages_max: int) -> tuple[int, list[Received]]:
        """Return where a read of a log ends, and its messages."""
        span = self.log[partition][from_offset:][:messages_max]
        return from_offset + len(span), [item for item in span if (partition, item.offset) not in self.gone]

    # Workers

    def acquire(self, worker: str, partition: int) -> None:
        """Kafka assigns a partition; its former owner does not notice. Waits for who holds the offset row."""
        if worker in self.actors or ("offset", partition) in self.database.locks:
            return
        known = self.database.offsets.get(partition, Ownership(partition, 0, 0))
        raised = replace(known, owner_epoch=known.owner_epoch + 1)
        self.database.offsets[partition] = self.owned.setdefault(worker, {})[partition] = raised

    def prepare(self, worker: str) -> None:
        """Read the view that the worker's next chunk is prepared with, perhaps while another chunk is written."""
        self.prepared[worker] = self.shell.view(PARTITIONS)

    def start_chunk(self, worker: str, partitions: Iterable[int], messages_max: int) -> None:
        if worker in self.actors:
            return
        spans, items = [], []
        for partition in sorted(partitions):
            owned = self.owned.get(worker, {}).get(partition)
            to_offset, found = self._read(partition, owned.next_offset, messages_max) if owned else (0, [])
            if owned and to_offset > owned.next_offset:
                spans.append(Span(partition, owned.next_offset, to_offset, owned.owner_epoch))
                items += [item for item in found if not self._pass_over(worker, item)]
        self.fetched[worker] = {span.partition: span.to_offset for span in spans}
        if spans:

            def done(outcomes: dict[int, Outcome]) -> None:
                self._done(worker, spans, outcomes)

            view = self.prepared.pop(worker, None) or self.shell.view(PARTITIONS)
            self.actors[worker] = self.shell.write_chunk(worker, spans, items, (view, done))

    def _pass_over(self, worker: str, item: Received) -> bool:
        """Return whether the worker's express path was at a message, which is applied or known then."""
        place = (item.partition, item.offset)
        if place not in self.applied.get(worker, ()):
            return False
        self.database.decisions.setdefault(place, Decision(item, Fate.KNOWN, ahead=True))
        return True

    def _done(self, worker: str, spans: Sequence[Span], outcomes: dict[int, Outcome]) -> None:
        written = all(outcome is Outcome.NEXT for outcome in outcomes.values())
        for span in spans:
            mine = self.owned[worker]
            if outcomes[span.partition] is Outcome.FENCED:
                del mine[span.partition]
            else:
                next_offset = span.to_offset if written else self.database.offsets[span.partition].next_offset
                mine[span.partition] = Ownership(span.partition, next_offset, span.owner_epoch)

    def start_run(self, worker: str, tenant: str) -> None:
        """Begin a run of the express path, which passes over a hot tenant."""
        if express_of(worker) in self.actors:
            return
        # The ledger's positions, read after the worker's: a chunk may be under way.
        positions = self.database.offsets
        owned = {p: o for p, o in self.owned.get(worker, {}).items() if positions[p].owner_epoch == o.owner_epoch}
        ahead = {partition: positions[partition].next_offset for partition in owned}
        if Mutant.AHEAD_FROM_FETCHED in self.mutants and worker in self.actors:
            ahead |= {p: offset for p, offset in self.fetched.get(worker, {}).items() if p in ahead}
        self.runs[worker] = Run(owned, ahead, {tenant})

    def leave(self, worker: str, tenant: str, *, hot: bool) -> None:
        """A tenant becomes hot in the middle of a run."""
        if worker not in self.runs:
            return
        if hot:
            self.runs[worker].left.add(tenant)
        elif Mutant.HOT_AGAIN in self.mutants:
            self.runs[worker].left.discard(tenant)

    def start_ahead(self, worker: str, partition: int, messages_max: int) -> None:
        """Read the next messages of a run, and apply those that are not left to the main path."""
        run, actor = self.runs.get(worker), express_of(worker)
        if run is None or partition not in run.ahead or actor in self.actors:
            return
        start = run.ahead[partition]
        run.ahead[partition], found = self._read(partition, start, messages_max)
        items = [item for item in found if item.message.spec.key.tenant not in run.left]
        span = Span(partition, start, run.ahead[partition], run.owned[partition].owner_epoch)

        def applied(done: Sequence[Received]) -> None:
            self.applied.setdefault(worker, set()).update((item.partition, item.offset) for item in done)

        self.actors[actor] = self.shell.write_ahead(actor, span, items, run.left.update, applied)

    def queues(self) -> list[QueueKey]:
        return sorted({queue_of(item) for item in self.database.parked.values()})

    def start_drain(
        self, drainer: str, queue: QueueKey, slice_max: int, *, trial: bool = False, merge: bool = False
    ) -> None:
        if drainer not in self.actors:
            self.actors[drainer] = self.shell.drain(drainer, queue, slice_max, trial=trial, merge=merge)

    def start_task(self, drainer: str, number: int) -> None:
        """Apply the staged records of an atomic job whose dataset is not blocked."""
        jobs, blocked = self.database.jobs, self.database.blocked
        due = [t for t in sorted(self.database.tasks) if t not in jobs or jobs[t].spec.dataset not in blocked]
        if due and drainer not in self.actors:
            self.actors[drainer] = self.shell.apply_task(drainer, due[number % len(due)])

    def probe(self, drainer: str, dataset: str, slice_max: int) -> None:
        if drainer not in self.actors:
            queue = self.shell.claim(dataset)
            if queue is not None:
                self.start_drain(drainer, queue, slice_max, trial=True)

    def step(self, actor: str, steps_max: int) -> None:
        """Let an actor run up to `steps_max` statements, or until it waits for a lock."""
        for _ in range(steps_max):
            if actor not in self.actors:
                return
            try:
                waits = next(self.actors[actor])
            except StopIteration:
                del self.actors[actor]
                return
            if waits:
                return

    def crash(self, actor: str) -> None:
        """Kill an actor: what it did not commit is rolled back, what it knew is gone."""
        for killed in (actor, express_of(actor)):
            if killed in self.actors:
                self.actors.pop(killed).close()
            self.shell.rollback(killed)
        self.runs.pop(actor, None)
        self.applied.pop(actor, None)
        self.owned.pop(actor, None)
        self.prepared.pop(actor, None)

    # Operators

    def discard(self, dataset: str) -> None:
        self.shell.block(dataset, discarding=True)
        self.shell.discard_tasks(dataset)
        for job in self.jobs:
            job.excused |= job.spec.dataset == dataset

    def discard_job(self, job: Submission) -> None:
        """Only a sealed job can be discarded: the report is to have every record."""
        if job.sealed and self.shell.discard_job(job.job_id):
            job.excused = job.discarded = True

    def cancel(self, job: Submission) -> None:
        job.excused |= self.shell.cancel(job.job_id)

    def end_abandoned(self, job: Submission) -> None:
        if job.job_id not in self.database.jobs:
            return
        if self.shell.end_abandoned(job.job_id, {p: len(self.log[p]) for p in PARTITIONS}):
            job.excused = True
            require(not self._undecided(job), "maintenance ends a job although acknowledged batches are not applied")

    def end_unapplied(self, job: Submission) -> None:
        if job.sealed and job.job_id in self.database.jobs:
            self.shell.end_unapplied(job.job_id, {p: len(self.log[p]) for p in PARTITIONS})

    def forget(self, job: Submission) -> None:
        """Delete a job whose messages all left Kafka."""
        passed = {p: self.database.offsets.get(p, Ownership(p, 0, 0)).next_offset for p in PARTITIONS}
        if all(item.offset < passed[item.partition] for item in self._messages(job)):
            job.forgotten |= self.shell.forget(job.job_id)

    def _messages(self, job: Submission) -> list[Received]:
        return [item for items in self.log.values() for item in items if item.message.spec.key == job.spec.key]

    def _undecided(self, job: Submission) -> bool:
        places = {(item.partition, item.offset) for item in self._messages(job)} - self.gone
        return bool(places - self.database.decisions.keys())

    # The end

    def settle(self) -> None:
        """Repair everything, crash every actor, let new ones run until nothing is left to do. Raises Violation."""
        for actor in [*self.actors, *self.owned]:
            self.crash(actor)
        self.shell.broken.clear()
        self.shell.poison.clear()
        self.shell.missing.clear()
        self.database.blocked_jobs.clear()
        for dataset in sorted(self.shell.paused | set(self.database.blocked)):
            block = self.database.blocked.get(dataset)
            if block is None or block.paused or block.discarding:
                self.shell.resume(dataset)
        for partition in PARTITIONS:
            self.acquire("last", partition)
        for _ in range(ROUNDS_MAX):
            if self._settled() and not any(self._continue(job) for job in self.jobs if job.lossy):
                return
            self.start_chunk("last", PARTITIONS, 3)
            for dataset in list(self.database.blocked):
                self.probe("prober", dataset, 3)
            for queue in self.queues():
                self.step("drainer", 1000)
                self.start_drain("drainer", queue, 3)
            self.start_task("applier", 0)
            for actor in ("last", "prober", "drainer", "applier"):
                self.step(actor, 1000)
        raise Violation(f"not drained: {len(self.database.parked)} parked, blocked: {sorted(self.database.blocked)}")

    def _continue(self, job: Submission) -> bool:
        """Do what the client of a job does that lost messages, and maintenance; return whether something was left."""
        row = self.database.jobs.get(job.job_id)
        if row is None or job.excused or (row.state.ended and not row.lost):
            return False
        if row.lost:
            self.submit_again(job)
        elif job.sealed:
            # Unless another client has just sent something.
            over = self.shell.end_unapplied(job.job_id, {p: len(self.log[p]) for p in PARTITIONS})
            require(over or not self._settled(), f"job {job.job_id.int} stays sealed")
            return True
        self.seal(job)
        return True

    def _settled(self) -> bool:
        read = all(self.database.offsets[p].next_offset == len(self.log[p]) for p in PARTITIONS)
        waiting = self.database.parked or self.database.tasks
        return read and not waiting and not self.database.blocked and not self.actors

    def check(self) -> None:
        """Compare what was decided with a consumer that has one cursor and defers nothing. Raises Violation."""
        lossy = {job.job_id for job in self.jobs if job.lossy}
        self._check_losses()
        oracle = single_cursor(self.log, START, lossy)
        decisions = self.database.decisions
        jobs = {job.job_id: job for job in self.jobs}
        for place, expected in oracle.decisions.items():
            item, fate = expected.item, expected.fate
            require(place in decisions, f"message {place} is lost")
            found = decisions[place].fate
            job = jobs[item.message.spec.key.job_id]
            options = job.spec.options
            may_discard = job.excused or options.time_to_live_s or options.rejections_max or options.atomic
            same = found is fate or (may_discard and any({found, fate} <= kinds for kinds in DISCARDS))
            require(bool(same), f"message {place} of job {job.job_id.int}: {found}, should be {fate}")
        for job in self.jobs:
            row = self.database.jobs.get(job.job_id)
            if row is not None and job.lossy:
                self._check_lossy(job, row)
            elif row is not None:
                self._check_job(job, row, oracle.jobs[job.job_id])
        self._check_order()

    def _check_losses(self) -> None:
        """Once a client has sent again what was lost, its job fails for nothing but another loss."""
        for job in self.jobs:
            places = {(item.partition, item.offset) for item in self._messages(job)}
            gone, times = len(places & self.gone), self.shell.times_lost[job.job_id]
            require(times <= gone, f"job {job.job_id.int} failed {times} times for the loss of {gone} messages")

    def _check_job(self, job: Submission, row: JobRow, expected: JobRow) -> None:
        counts, name = row.counts, f"job {job.job_id.int}"
        total = counts.written + counts.duplicate + counts.rejected + counts.expired + row.staged
        require(counts.accepted == total, f"{name}: the counts do not add up: {row}")
        require(not job.sealed or row.state.ended, f"{name} has not ended")
        require(not row.state.ended or not row.staged, f"{name} has ended with staged records")
        if job.discarded and row.state is JobState.FAILED and not (job.late or job.spec.options != JobOptions()):
            require(not counts.expired, f"{name}: discarded records expired instead of being reported: {counts}")
        if job.excused or job.spec.options.time_to_live_s:
            return
        require(counts.accepted == expected.counts.accepted, f"{name}: {counts}, should be {expected.counts}")
        if not (job.spec.options.rejections_max or job.spec.options.atomic):
            require(counts == expected.counts, f"{name}: {counts}, should be {expected.counts}")
        if not job.late and (len(job.partitions) == 1 or counts.written):
            require(row.state is expected.state, f"{name} is {row.state}, should be {expected.state}")

    def _check_lossy(self, job: Submission, row: JobRow) -> None:
        """A job that lost messages, and was opened again until it ended, has taken every batch once."""
        name, counts = f"job {job.job_id.int}", row.counts
        total = counts.written + counts.duplicate + counts.rejected + counts.expired + row.staged
        require(counts.accepted == total, f"{name}: the counts do not add up: {row}")
        require(row.state.ended or job.excused, f"{name} has not ended")
        options = job.spec.options
        if job.excused or job.forgotten or options.rejections_max or (options.atomic and counts.rejected):
            return
        missing = [n for n in range(job.sent) if (job.job_id, n) not in self.database.digests]
        require(not missing and not row.lost, f"{name} lost batches {missing} in silence: {row}")
        if not options.time_to_live_s:
            require(not counts.expired, f"{name}: acknowledged records expired: {counts}")
        if options.atomic:
            # Each batch was staged by the attempt that ended it.
            require(counts.accepted >= job.sent * RECORDS, f"{name} has not written every batch: {counts}")

    def _check_order(self) -> None:
        """Batches are applied in the order of their offsets: in a queue without blocked jobs; in any job."""
        last: dict[tuple[int, str], int] = {}
        for (partition, offset), decision in self.database.decisions.items():
            if decision.fate is Fate.APPLY:
                job_id = decision.item.message.spec.key.job_id
                queue = queue_of(decision.item)
                keys = [f"job {job_id.int}"]
                if job_id not in self.shell.ever_blocked_jobs:
                    keys.append(f"queue {queue}")
                for key in keys:
                    require(last.get((partition, key), -1) < offset, f"{key} is applied out of order")
                    last[partition, key] = offset
