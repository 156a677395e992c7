"""The checker: evidence in, violations out. Pure; it knows the promises, not the implementation.

Not a violation: a batch whose outcome its client does not know (refused, broken off, given up, or sent and never
answered) may be there whole or not at all. A job that its client did not seal may be open or expired. Records of
different jobs may come in any order.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from bulkgrpc.model import JobState
from bulkgrpc.promises import P1, P2, P3, P4, P5, P6, P7, P8, P9, P11, Promise
from tests.chaos.evidence import Evidence, JobReport, job_id
from tests.chaos.history import Event

TAKEN_BACK = ()
"""Among what a job reported: PostgreSQL was restored here, and the job is as it was at an earlier time."""
_LOST = re.compile(r"LOST_IN_KAFKA: .* continues at batch (\d+)", re.DOTALL)
"""The failure reason of a job that lost batches in Kafka: all of it from that batch on is to be sent again."""
_TERMINAL = (JobState.SUCCEEDED, JobState.PARTIALLY_SUCCEEDED, JobState.FAILED)


@dataclass(frozen=True, slots=True)
class Violation:
    """A promise that was broken, and what shows it."""

    promise: Promise
    what: str

    def __str__(self) -> str:
        return f"{self.promise.name}: {self.what}"


@dataclass(slots=True)
class Submitted:
    """One job as its client saw it, over all its submissions. rows: records per batch; bad: invalid ones
    among them. lanes: batches are distributed over them in turn, and are in order on each. left: rows that a batch
    leaves, -1 for one of each valid record. deleted_by_next: how many of them the next batch deletes.
    """

    who: str
    key: str
    base: int
    batches: int
    rows: int
    bad: int
    lanes: int = 1
    left: int = -1
    deleted_by_next: int = 0
    sent: int = 0
    acknowledged: int = 0
    sealed: bool = False
    outcome: str = "unknown"
    reported: list[tuple[int, ...]] = field(default_factory=list)

    @property
    def good(self) -> int:
        """The number of rows that each batch leaves."""
        return self.rows - self.bad if self.left < 0 else self.left


@dataclass(frozen=True, slots=True)
class Summary:
    """A run in numbers: records sent, acknowledged, found (different ones), found twice, acknowledged and lost."""

    sent: int
    acknowledged: int
    found: int
    duplicates: int
    lost: int
    faults: int
    processes_ended: int


def check(evidence: Evidence) -> list[Violation]:
    """Return every violation that the evidence shows."""
    jobs = submitted(evidence.events)
    faults = {e.data.get("name") for e in evidence.events if e.kind == "fault"}
    # What retention deleted waits for an operator. Of a topic that was replaced, one decided in the run.
    waits = "retention" in faults and any(e.kind == "stopped" for e in evidence.events)
    found = [
        *_strays(evidence, jobs),
        *(v for job in jobs for v in _batches(evidence, job)),
        *(v for job in jobs for v in _report(evidence, job)),
        *_reads(evidence.events),
        *_moves(evidence),
        *_memory(evidence.events),
        *_liveness(evidence.events),
        *_contained(evidence.events),
    ]
    if waits:
        return [v for v in found if v.promise not in (P1, P8)]
    if any(v.promise is P1 for v in found):
        if "retention" in faults:
            found.append(Violation(P9, "records are lost and no partition stopped for it"))
        if "topic replaced" in faults:
            found.append(Violation(P11, "records are lost with the topic, and their jobs do not say so"))
        if "batch lost" in faults:
            found.append(Violation(P11, "records are lost in the log, and their jobs do not say so"))
    return found


def submitted(events: Sequence[Event]) -> list[Submitted]:
    """Collect what the clients saw of each job."""
    jobs: dict[tuple[str, str], Submitted] = {}
    for event in events:
        if event.kind == "submit":
            fresh = Submitted(event.who, **event.data)
            jobs.setdefault((event.who, event.data["key"]), fresh)
            continue
        if event.kind == "restored":
            for known in jobs.values():
                known.reported.append(TAKEN_BACK)
            continue
        job = jobs.get((event.who, event.data.get("key", "")))
        if job is None:
            continue
        if event.kind == "sent":
            job.sent = max(job.sent, event.data["batches"])
        elif event.kind == "acknowledged":
            job.acknowledged = max(job.acknowledged, event.data["batches"])
            # A submission that resumes a job counts as sent only what it sends itself.
            job.sent = max(job.sent, min(job.acknowledged, job.batches))
        elif event.kind == "sealed":
            job.sealed, job.acknowledged, job.outcome = True, job.batches, "acknowledged"
        elif event.kind in ("refused", "unknown"):
            job.outcome = event.kind
        elif event.kind == "job":
            values = [event.data[name] for name in ("state", "accepted", "written", "rejected", "expired")]
            if event.data.get("lost"):
                # It says itself that it is no end: it is to be opened again.
                values[0] = JobState.OPEN
            job.reported.append(tuple(values))
    return list(jobs.values())


def summarize(evidence: Evidence) -> Summary:
    """Return the run in numbers."""
    jobs = submitted(evidence.events)
    twice = sum(rows - distinct for rows, distinct in evidence.batches.values())
    lost = sum(
        job.good
        for job in jobs
        for number in range(job.acknowledged)
        if (job.who, job.base // job.rows + number) not in evidence.batches and not _excused(evidence, job, number)
    )
    return Summary(
        sent=sum(job.sent * job.rows for job in jobs),
        acknowledged=sum(job.acknowledged * job.rows for job in jobs),
        found=sum(distinct for _, distinct in evidence.batches.values()),
        duplicates=twice,
        lost=lost,
        faults=sum(e.kind == "fault" and e.data["phase"] == "begun" for e in evidence.events),
        processes_ended=sum(e.kind == "process" for e in evidence.events),
    )


def _excused(evidence: Evidence, job: Submitted, number: int) -> bool:
    """Return whether a missing batch is accounted for: the job reports expired records, or names it as lost."""
    report = evidence.jobs.get(job_id(job.who, job.key))
    return report is not None and (report.expired > 0 or number >= _continues_at(report, job.batches))


def _continues_at(report: JobReport, otherwise: int) -> int:
    """Return the batch from which on a job that lost some is to be sent again, `otherwise` if it lost none."""
    found = _LOST.match(report.failure_reason) if report.state == JobState.FAILED else None
    return otherwise if found is None else int(found[1])


def _strays(evidence: Evidence, jobs: list[Submitted]) -> Iterator[Violation]:
    known = {(job.who, job.base // job.rows + number) for job in jobs for number in range(job.sent)}
    for who, number in evidence.batches:
        if (who, number) not in known:
            yield Violation(P2, f"batch {number} of {who} is there and was not sent in this run")


def _batches(evidence: Evidence, job: Submitted) -> Iterator[Violation]:
    """A job's batches are there as a whole and in their lane's order: once if acknowledged, otherwise at most once."""
    is_there = [True] * job.lanes
    for number in range(job.sent):
        rows, distinct = evidence.batches.get((job.who, job.base // job.rows + number), (0, 0))
        name = f"batch {number} of {job.who}/{job.key}"
        if rows > distinct:
            yield Violation(P2, f"{name}: {rows - distinct} records are there twice")
        good = job.good
        if job.deleted_by_next and _rows_of(evidence, job, number + 1):
            good -= job.deleted_by_next
        if distinct not in (0, good):
            yield Violation(P2 if job.bad == 0 else P6, f"{name}: {distinct} of {good} good records are there")
        if number < job.acknowledged and distinct == 0 and not _excused(evidence, job, number):
            yield Violation(P1, f"{name} was acknowledged and is not there")
        lane = number % job.lanes
        if distinct and not is_there[lane]:
            yield Violation(P4, f"{name} is there, the batch before it is not")
        is_there[lane] = distinct > 0


def _rows_of(evidence: Evidence, job: Submitted, number: int) -> int:
    """Return how many rows of a batch of a job are there; 0 beyond its last batch."""
    if number >= job.batches:
        return 0
    return evidence.batches.get((job.who, job.base // job.rows + number), (0, 0))[0]


def _report(evidence: Evidence, job: Submitted) -> Iterator[Violation]:
    """A job's row must agree with the table, and with what GetJob reported to its client."""
    name = f"{job.who}/{job.key}"
    report = evidence.jobs.get(job_id(job.who, job.key))
    if report is None:
        if job.acknowledged:
            yield Violation(P1, f"{name} was acknowledged and has no row")
        return
    first = job.base // job.rows
    found = sum(evidence.batches.get((job.who, first + number), (0, 0))[0] for number in range(job.batches))
    if job.good < job.rows - job.bad:
        # Records that delete count as written.
        found = job.rows * sum(_rows_of(evidence, job, number) > 0 for number in range(job.batches))
    if report.written != found:
        yield Violation(P3, f"{name} reports {report.written} records as written, {found} are there")
    if report.duplicate:
        yield Violation(P2, f"{name} has no record twice, and {report.duplicate} count as duplicates: applied twice")
    if report.rejected != report.reported:
        yield Violation(P6, f"{name} counts {report.rejected} rejected records, {report.reported} are in its report")
    if job.sealed:
        yield from _ended(name, job, report)
    yield from _reported(name, job, report)


def _ended(name: str, job: Submitted, report: JobReport) -> Iterator[Violation]:
    if report.state not in _TERMINAL:
        yield Violation(P8, f"{name} was sealed and is {JobState(report.state).name}")
    if _continues_at(report, -1) >= 0:
        return
    if report.accepted != job.batches * job.rows:
        yield Violation(P1, f"{name} was sealed with {job.batches * job.rows} records and reports {report.accepted}")
    if report.rejected != job.batches * job.bad:
        yield Violation(P6, f"{name} has {job.batches * job.bad} bad records and reports {report.rejected}")


def _reported(name: str, job: Submitted, report: JobReport) -> Iterator[Violation]:
    """What GetJob has reported must never be revoked: of an ended job neither its state nor any count.

    If the job ended before its seal was applied, `accepted` and `expired` may grow by the same number: docs/jobs.md.
    A restore takes an end back until the job's messages are read again; then it ends in the same way.
    """
    early = bool(report.failure_reason) or report.state in (JobState.CANCELLED, JobState.EXPIRED)

    def final(state: int, accepted: int, written: int, rejected: int, expired: int) -> tuple[int, ...]:
        if early:
            return state, accepted - expired, written, rejected
        return state, accepted, written, rejected, expired

    known, ended, ends = 0, None, False
    for told in job.reported:
        if told == TAKEN_BACK:
            known, ends = 0, False
            continue
        state, _, written, _, _ = told
        # While PostgreSQL is unavailable, GetJob answers from Redis, with `written = 0`. See docs/guarantees.md.
        if 0 < written < known:
            yield Violation(P3, f"{name} reported {known} records as written, then {written}")
        known = max(known, written)
        final_again = state in _TERMINAL or (ends and written)
        if ended is not None and final(*ended) != final(*told) and final_again:
            yield Violation(P3, f"{name} was reported as {ended}, then as {told}")
        if state in _TERMINAL:
            ended, ends = told, True
    now = (report.state, report.accepted, report.written, report.rejected, report.expired)
    if ended is not None and final(*ended) != final(*now):
        yield Violation(P3, f"{name} was reported as {ended}, and is {report}")


def _reads(events: Sequence[Event]) -> Iterator[Violation]:
    """The reader during the faults: each snapshot is consistent, and later ones never go back."""
    jobs: dict[str, tuple[int, int]] = {}
    offsets: dict[str, tuple[int, int]] = {}
    restored: set[str] = set()
    for event in events:
        if event.kind == "restored" or (event.kind == "fault" and event.data["name"] in ("replay", "restored")):
            # Each once, and not at once: setting the ledger back waits for the workers that are at it.
            restored.update(offsets)
        if event.kind == "restored":
            # What a reader saw of a job is taken back with the ledger.
            jobs.clear()
        if event.kind != "read":
            continue
        for key, (state, written, found) in event.data["jobs"].items():
            if written != found:
                yield Violation(P3, f"a reader saw {written} records counted and {found} in the table, of {key}")
            known_state, known_written = jobs.get(key, (0, 0))
            ended = known_state in _TERMINAL
            if written < known_written or (ended and (state, written) != (known_state, known_written)):
                yield Violation(P3, f"a reader saw {key} go from {(known_state, known_written)} to {(state, written)}")
            jobs[key] = (state, written)
        for partition, (next_offset, epoch) in event.data["offsets"].items():
            known_offset, known_epoch = offsets.get(partition, (0, 0))
            goes_back = next_offset < known_offset or epoch < known_epoch
            if goes_back and partition not in restored:
                yield Violation(P5, f"a reader saw partition {partition} go back to {(next_offset, epoch)}")
            if goes_back:
                restored.discard(partition)
            offsets[partition] = (next_offset, epoch)


def _moves(evidence: Evidence) -> Iterator[Violation]:
    """Every commit of a partition starts at the end of the one before it, moves forward, and has no older epoch."""
    positions: dict[int, tuple[int, int]] = {}
    for move in evidence.moves:
        if move.owner_epoch < 0:
            positions.pop(move.partition, None)
            continue
        offset, epoch = positions.get(move.partition, (move.from_offset, move.owner_epoch))
        if move.to_offset <= move.from_offset or move.from_offset != offset or move.owner_epoch < epoch:
            yield Violation(P5, f"the ledger was at {(offset, epoch)} and was moved by {move}")
        positions[move.partition] = (move.to_offset, move.owner_epoch)


def _memory(events: Sequence[Event]) -> Iterator[Violation]:
    for event in events:
        if event.kind == "memory" and event.data["grown_bytes"] > event.data["bound_bytes"]:
            yield Violation(P7, f"{event.who} grew by {event.data['grown_bytes'] >> 20} MiB")


def _liveness(events: Sequence[Event]) -> Iterator[Violation]:
    ends = [event for event in events if event.kind in ("caught_up", "behind")]
    for event in ends:
        if event.kind == "behind":
            yield Violation(P8, f"{event.data['after_s']} s after the last fault: {event.data['what']}")
    if not ends:
        yield Violation(P8, "the run did not check that the lag returned to zero")


def _contained(events: Sequence[Event]) -> Iterator[Violation]:
    for event in events:
        if event.kind == "not_contained":
            yield Violation(P8, f"{event.data['ended']} ended by what a user did: {event.data['names']}")


def count(violations: list[Violation]) -> str:
    """Return the number of violations of each promise as text."""
    return (
        ", ".join(f"{name} x{n}" for name, n in sorted(Counter(v.promise.name for v in violations).items())) or "none"
    )


def by_promise(violations: list[Violation]) -> dict[str, list[str]]:
    """Sort violations by promise."""
    found: dict[str, list[str]] = defaultdict(list)
    for violation in violations:
        found[violation.promise.name].append(violation.what)
    return dict(found)
