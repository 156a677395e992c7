"""The checker: compares what was sent with what is stored, and returns the violations. Pure.

The jobs of a tenant and dataset are replayed in the order in which they were sent, under the dataset's policy, without
the records that were rejected with a reason. The result must equal the table, value by value, and every job's counts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby

from bulkgrpc.datasets.definition import ConflictPolicy
from bulkgrpc.model import JobState
from bulkgrpc.rejections import RejectionCode
from tests.blast.evidence import Evidence, JobOutcome, Rejected, Row
from tests.blast.fault import Effect
from tests.blast.records import deletes, differences, wanted
from tests.blast.traffic import Sent, Victim

_CLEAN = (Effect.BLOCKED, Effect.CONVERTED, Effect.UNAVAILABLE)
_DUPLICATE = RejectionCode.DUPLICATE_KEY.value
SAME_MAX = 3
"""So many violations of a kind are written down."""


@dataclass(frozen=True, slots=True)
class Violation:
    """A broken promise. who: the case, or the innocent tenants."""

    who: str
    what: str

    def __str__(self) -> str:
        return f"{self.who}: {self.what}"


@dataclass(slots=True)
class _Replayed:
    """The expected rows of a tenant in a table: by number, the job and position that the row is from."""

    rows: dict[int, tuple[Sent, int]] = field(default_factory=dict)
    ever: dict[int, list[tuple[Sent, int]]] = field(default_factory=dict)
    skipped: int = 0
    written: int = 0


def check_dataset(evidence: Evidence, dataset: str, sent: Sequence[Sent], policy: ConflictPolicy) -> Iterator[str]:
    """Yield what is wrong with a dataset's rows and its jobs' counts."""
    if dataset in evidence.unread:
        yield f"the table cannot be read: {evidence.unread[dataset]}"
        return
    ours = sorted((job for job in sent if job.dataset == dataset), key=lambda job: job.tenant)
    for tenant, jobs in groupby(ours, key=lambda job: job.tenant):
        replayed = _Replayed()
        for job in sorted(jobs, key=lambda job: int(job.key.rpartition("-")[2])):
            yield from _replay(evidence, job, policy, replayed)
        yield from _compare(evidence.rows.get((dataset, tenant), ()), tenant, replayed, policy)
    known = {job.tenant for job in ours}
    yield from (
        f"rows of {tenant}, who sent none" for name, tenant in evidence.rows if name == dataset and tenant not in known
    )


def check_effect(victim: Victim, evidence: Evidence, sent: Sequence[Sent]) -> Iterator[str]:
    """Yield where the jobs of a victim do not show the effect that its fault must have."""
    ours = [job for job in sent if job.dataset == victim.table and job.job_id in evidence.jobs]
    effect = victim.case.effect
    clean = [job for job in ours if job.poison is None and (effect in _CLEAN or job.phase == "after")]
    for job in clean:
        other = [found for found in evidence.rejections.get(job.job_id, ()) if found.code != _DUPLICATE]
        report = evidence.jobs[job.job_id]
        if other:
            yield f"{job.key} ({job.phase}) has {len(other)} rejections, the first {other[0]}"
        elif job.sealed and report.rejected == 0 and report.ended and report.state != JobState.SUCCEEDED:
            yield f"{job.key} ({job.phase}) is {JobState(report.state).name}: {report.failure_reason}"
    during = [job for job in ours if job.phase == "during"]
    if effect is Effect.ROWS_REJECTED and victim.case.fault.poison is None and not _rejected(during, evidence):
        yield "no record was rejected"
    if effect is Effect.SKIPPED and not sum(evidence.jobs[job.job_id].skipped for job in during):
        yield "no record counts as skipped"


def percentiles(sent: Sequence[Sent], jobs: Mapping[str, JobOutcome]) -> tuple[float, float, float]:
    """Return the median, 99th percentile and maximum of the seconds from submission to end."""
    took = sorted(
        (end - job.begun).total_seconds()
        for job in sent
        if (report := jobs.get(job.job_id)) is not None and (end := report.end_time) is not None
    )
    if not took:
        return (0.0, 0.0, 0.0)
    return took[len(took) // 2], took[int(len(took) * 0.99)], took[-1]


def some(found: Iterator[str]) -> list[str]:
    """Return a few violations of each kind: those that differ only in digits are of one kind."""
    kinds: Counter[str] = Counter()
    kept = []
    for what in found:
        kind = "".join(letter for letter in what if not letter.isdigit())[:60]
        kinds[kind] += 1
        if kinds[kind] <= SAME_MAX:
            kept.append(what)
    return kept + [f"({kinds.total() - len(kept)} more)"] * (kinds.total() > len(kept))


def _rejected(jobs: Sequence[Sent], evidence: Evidence) -> bool:
    """Return whether records of a job were rejected with reasons."""
    return any(
        any(found.code != _DUPLICATE and found.reason for found in evidence.rejections.get(job.job_id, ()))
        or (
            job.atomic
            and evidence.jobs[job.job_id].state == JobState.FAILED
            and evidence.jobs[job.job_id].failure_reason
        )
        for job in jobs
    )


def _replay(evidence: Evidence, job: Sent, policy: ConflictPolicy, replayed: _Replayed) -> Iterator[str]:
    """Apply a job as far as it was accepted; yield what is wrong with its counts and rejections."""
    report = evidence.jobs.get(job.job_id)
    if report is None:
        if job.sealed:
            yield f"{job.key} was sealed and is not known"
        return
    if job.sealed and not report.ended:
        yield f"{job.key} ({job.phase}) was sealed and is {JobState(report.state).name}"
    elif job.sealed and report.accepted != job.records:
        yield f"{job.key} has {job.records} records and reports {report.accepted}"
    if report.ended and report.accepted != report.total:
        yield f"{job.key} accepted {report.accepted} records and accounts for {report.total}"
    rejections = evidence.rejections.get(job.job_id, ())
    places = {(found.sequence, found.index): found for found in rejections}
    if len(places) != len(rejections) or len(rejections) != report.rejected:
        yield f"{job.key} counts {report.rejected} rejections, has {len(rejections)} at {len(places)} places"
    replayed.skipped += report.skipped
    if job.atomic and report.state != JobState.SUCCEEDED:
        yield from _failed(job, report)
        return
    written, duplicate = yield from _apply(job, report, places, policy, replayed)
    replayed.written += report.written
    if report.skipped or replayed.skipped:
        return
    if (written, duplicate) != (report.written, report.duplicate) and report.ended and not report.expired:
        yield (
            f"{job.key} ({job.phase}) reports {report.written} written and {report.duplicate} duplicate, "
            f"not {written} and {duplicate}"
        )


def _failed(job: Sent, report: JobOutcome) -> Iterator[str]:
    if report.written:
        yield f"{job.key} is atomic and {JobState(report.state).name}, and reports {report.written} records as written"
    if report.state == JobState.FAILED and not report.failure_reason:
        yield f"{job.key} failed without saying why"


def _apply(
    job: Sent,
    report: JobOutcome,
    places: Mapping[tuple[int, int], Rejected],
    policy: ConflictPolicy,
    replayed: _Replayed,
) -> Generator[str, None, tuple[int, int]]:
    """Apply the records of a job; return how many count as written and as duplicates."""
    written = duplicate = 0
    bad = job.poison.bad if job.poison is not None else frozenset[int]()
    position = 0
    for sequence, count in enumerate(job.batches):
        for index in range(count):
            here, position = position, position + 1
            if here >= report.accepted:
                return written, duplicate
            number, found = job.base + here, places.get((sequence, index))
            there = number in replayed.rows
            if here in bad:
                yield from _bad(job, here, found)
            elif found is not None and found.code == _DUPLICATE:
                if policy != "reject" or not there:
                    yield f"{job.key} rejects {number} as a duplicate, which it is not"
            elif found is not None:
                if not found.reason:
                    yield f"{job.key} rejects {number} as {found.code} without a reason"
            elif there and policy == "ignore":
                duplicate += 1
                replayed.ever.setdefault(number, []).append((job, here))
            elif there and policy == "reject" and not replayed.skipped:
                yield f"{job.key} sends {number} again, and does not reject it"
            elif job.message == "Change" and deletes(number, job.revision):
                written += 1
                replayed.rows.pop(number, None)
            else:
                written += 1
                replayed.rows[number] = (job, here)
                replayed.ever.setdefault(number, []).append((job, here))
    return written, duplicate


def _bad(job: Sent, position: int, found: Rejected | None) -> Iterator[str]:
    assert job.poison is not None
    if found is None:
        yield f"{job.key} does not reject record {position}, which cannot be written"
    elif job.poison.code and found.code != job.poison.code:
        yield f"{job.key} rejects record {position} as {found.code}, not {job.poison.code}"
    elif not found.reason:
        yield f"{job.key} rejects record {position} without a reason"


def _compare(rows: Sequence[Row], tenant: str, replayed: _Replayed, policy: ConflictPolicy) -> Iterator[str]:
    """Compare a tenant's rows with what must be there."""
    numbers = Counter(row["id"] for row in rows if "id" in row)
    for number, count in numbers.items():
        if count > 1:
            yield f"{tenant} has {count} rows of the key {number}"
    columns: dict[str, dict[str, list[object]]] = {}

    def differ(row: Row, job: Sent, position: int) -> list[str]:
        if job.key not in columns:
            columns[job.key] = wanted(job.base, job.records, job.revision, sparse=job.sparse)
        return differences(row, columns[job.key], position)

    for row in rows:
        number = row.get("id")
        if not isinstance(number, int) or number not in replayed.rows:
            yield f"{tenant} has a row that is to be none: {row}"
            continue
        candidates = replayed.ever[number] if replayed.skipped else [replayed.rows[number]]
        if not any(not differ(row, *candidate) for candidate in candidates):
            yield f"{tenant} has a wrong row {number}: {'; '.join(differ(row, *candidates[-1]))}"
    missing = [number for number in replayed.rows if number not in numbers]
    if replayed.skipped:
        if policy != "update" and replayed.written != len(rows):
            yield f"{tenant} has {replayed.written} rows reported as written, {len(rows)} are there"
        missing = missing if len(missing) > replayed.skipped else []
    if missing:
        yield f"{tenant} misses {len(missing)} rows that are acknowledged and not reported, as {missing[:5]}"
