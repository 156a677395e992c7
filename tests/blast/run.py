"""One wave: traffic, faults in its middle, a hold, repairs, a drain; then the checks.

`python -m tests.blast.run --help` runs any selection by hand and prints a table.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

import psycopg

from bulkgrpc.client import AsyncBulkClient, Refused
from tests.blast import checker, evidence
from tests.blast.catalog import PARTITIONS, Case, tenant_on
from tests.blast.checker import Violation, percentiles, some
from tests.blast.evidence import Evidence
from tests.blast.fault import Effect, sql_names
from tests.blast.faults_kinds import existing_table
from tests.blast.records import Shape, differences, wanted
from tests.blast.stand import Connection, Exit, Stand
from tests.blast.traffic import HALF, INNOCENT, SIBLING, Sent, Traffic, Victim, victims_of
from tests.support.waiting import LOOK_AGAIN_S, eventually, wait_for

WARM_UP_WITHIN_S = 90.0
AFTER_S = 1.0
KEEP = (
    "LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE; CREATE TABLE {kept} (LIKE {table} INCLUDING ALL); "
    "INSERT INTO {kept} SELECT * FROM {table}; "
)
"""What comes before a fault that keeps the rows."""
_APPLIED_WITHIN_S = 120.0
_PASSING = (Effect.ROWS_REJECTED, Effect.CONVERTED, Effect.SKIPPED)
"""Effects of faults that do not block their dataset."""
COLUMNS = {
    "columns": "tenant, id, at, small, large, single, number, label, note",
    "key": "id",
    "keys": "id, at",
    "time": "at",
    "int": "small",
    "bigint": "large",
    "real": "single",
    "double": "number",
    "text": "label",
    "nullable": "note",
}


@dataclass(frozen=True, slots=True)
class Times:
    """How long a wave takes. hold_s: each fault lasts. felt_within_s: more, until each was met.

    drained_within_s: from the end of the traffic until every sealed job has ended. innocent_s_max: a job of an innocent
    tenant that takes longer is a violation.
    """

    hold_s: float = 6.0
    felt_within_s: float = 15.0
    drained_within_s: float = 60.0
    innocent_s_max: float = math.inf


@dataclass(frozen=True, slots=True)
class Verdict:
    """The result of a wave. latencies_s: of the innocent jobs: median, 99th percentile, maximum. blocked: by case."""

    violations: list[Violation]
    exits: list[Exit]
    innocent_jobs: int
    victim_jobs: int
    latencies_s: tuple[float, float, float]
    seconds: float
    felt: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        median, late, latest = (1000 * seconds for seconds in self.latencies_s)
        return (
            f"{self.seconds:.1f} s, {self.innocent_jobs} innocent jobs (p50 {median:.0f} ms, p99 {late:.0f} ms, max "
            f"{latest:.0f} ms), {self.victim_jobs} of victims; exits: {len(self.exits)}; "
            f"violations: {len(self.violations)}"
        )


class Wave:
    """Cases that run together. run: a name that no other wave of the stand has; part of the tables' and tenants' names.

    faulty: whether the faults are applied; without, it is the baseline.
    """

    def __init__(self, stand: Stand, cases: Sequence[Case], run: str, times: Times, *, faulty: bool = True) -> None:
        self._stand = stand
        self._run = run
        self._times = times
        self._faulty = faulty
        self._victims = victims_of(cases, run)
        self._innocents = [tenant_on(partition, f"{run}i{partition}") for partition in range(PARTITIONS)]
        self._innocent, self._sibling = f"{run}_{INNOCENT}", f"{run}_{SIBLING}"
        self._traffic = Traffic(stand.running.address, run, patience_s=times.hold_s + 120)
        self._violations: list[Violation] = []
        self._felt: dict[str, str] = {}
        self._locks = ExitStack()

    async def go(self) -> Verdict:
        """Run the wave and check it."""
        began_s = time.monotonic()
        await self._register()
        self._traffic.start(self._innocents, self._innocent, self._sibling, self._victims)
        try:
            await self._warm_up()
            logs = self._stand.log_sizes()
            await asyncio.to_thread(self._apply)
            self._traffic.phase = "during"
            poisoned = [victim for victim in self._victims if self._faulty and victim.case.fault.poison]
            await self._traffic.each_victim(poisoned, self._traffic.poison)
            await self._hold(logs)
            await asyncio.to_thread(self._look_while_it_lasts, self._stand.logged(logs))
        finally:
            await asyncio.to_thread(self._repair)
        await asyncio.to_thread(self._stand.restart_ended)
        self._traffic.phase = "after"
        await asyncio.sleep(AFTER_S)
        await self._traffic.stop(self._times.drained_within_s)
        await asyncio.to_thread(wait_for, self._drained, self._times.drained_within_s)
        return await asyncio.to_thread(self._conclude, began_s)

    async def _register(self) -> None:
        for victim in self._victims:
            if victim.case.kind == "existing":
                self._execute(victim, existing_table(victim.case.fault.hash_partitions))
        shapes = [Shape(self._innocent, "ignore"), Shape(self._sibling, "ignore")]
        shapes += [victim.shape for victim in self._victims]
        async with AsyncBulkClient(self._stand.running.address) as client:
            for shape in shapes:
                await _register(client, shape)

    async def _warm_up(self) -> None:
        """Return once every tenant has seen a job of its own end."""
        tenants = {*self._innocents, *(tenant for victim in self._victims for tenant in victim.tenants)}

        def served() -> bool:
            reports = self._reports()
            return tenants <= {job.tenant for job in self._traffic.sent if self._ended(reports, job)}

        await eventually(served, WARM_UP_WITHIN_S)

    def _apply(self) -> None:
        if not self._faulty:
            return
        for victim in self._victims[: 1 if self._whole else None]:
            fault = victim.case.fault
            if fault.keeps:
                self._execute(victim, KEEP + fault.apply)
            elif fault.apply:
                self._execute(victim, fault.apply)
            if fault.around is not None:
                self._locks.enter_context(fault.around(self._stand.postgres, f"public.{victim.table}"))
            if fault.holds:
                connection = self._locks.enter_context(self._stand.database())
                connection.execute("BEGIN")
                connection.execute(self._format(victim, fault.holds))

    async def _hold(self, logs: dict[str, int]) -> None:
        """Wait until the time is over and every fault had an effect: on an ended job, or in the log of a process."""
        await asyncio.sleep(self._times.hold_s)
        passing = {victim.table for victim in self._victims if victim.case.effect in _PASSING}
        blocking = {victim.table for victim in self._victims if victim.case.effect is Effect.BLOCKED}

        def met() -> bool:
            reports = self._reports()
            ended = {job.dataset for job in self._traffic.sent if job.phase == "during" and self._ended(reports, job)}
            poisons = [job for job in self._traffic.sent if job.poison is not None]
            logged = self._stand.logged(logs)
            named = all(table in logged for table in (blocking if self._faulty else ()))
            return named and passing <= ended and all(self._ended(reports, job) for job in poisons)

        await asyncio.to_thread(wait_for, lambda: met() or bool(self._stand.note_exits()), self._times.felt_within_s)

    def _look_while_it_lasts(self, logged: str) -> None:
        """Note which victims are blocked, whether a log says so, and values that are already wrong."""
        self._stand.note_exits()
        reports = self._reports()
        for victim in self._victims if self._faulty else ():
            during = [job for job in self._traffic.sent if job.dataset == victim.table and job.phase == "during"]
            ended = sum(self._ended(reports, job) for job in during)
            self._felt[str(victim.case)] = f"{ended} of {len(during)} ended"
            blocks = victim.case.effect in (Effect.BLOCKED, Effect.UNAVAILABLE)
            if blocks and during and ended == len(during) and not victim.case.fault.whole:
                self._blame(victim, "the fault blocked nothing")
            if victim.case.effect in _PASSING and not ended:
                self._blame(victim, "nothing was written during the fault, which blocks nothing")
            if victim.case.effect is Effect.BLOCKED and victim.table not in logged:
                self._blame(victim, "no process names the table")
            if victim.case.fault.keeps:
                with contextlib.suppress(psycopg.errors.UndefinedTable), self._stand.database() as connection:
                    self._check_new_values(victim, connection)

    def _check_new_values(self, victim: Victim, connection: Connection) -> None:
        """Compare the rows written during the fault with what was sent: a repair may hide what was stored."""
        rows = evidence.read_rows(
            connection,
            self._format(
                victim,
                "SELECT * FROM {table} t WHERE NOT EXISTS "
                "(SELECT FROM {kept} k WHERE (k.tenant, k.id) = (t.tenant, t.id))",
            ),
        )
        jobs = [job for job in self._traffic.sent if job.dataset == victim.table and job.poison is None]
        for row in rows:
            tenant = row.pop("tenant")
            fits = [job for job in jobs if job.tenant == tenant and job.base <= row["id"] < job.base + 2 * HALF]
            found = [
                differences(row, wanted(job.base, job.records, job.revision, sparse=False), row["id"] - job.base)
                for job in fits
            ]
            if all(found):
                self._blame(victim, f"wrong value under the fault: {'; '.join(found[-1]) if found else row}")
                return

    def _repair(self) -> None:
        try:
            self._locks.close()
        except psycopg.Error as error:
            self._violations.append(Violation("locks", f"the repair failed: {error}"))
        for victim in self._victims[: 1 if self._whole else None] if self._faulty else ():
            if victim.case.fault.repair:
                try:
                    self._execute(victim, victim.case.fault.repair)
                except psycopg.Error as error:
                    self._blame(victim, f"the repair failed: {str(error).splitlines()[0]}")

    def _drained(self) -> bool:
        sealed = [job.job_id for job in self._traffic.sent if job.sealed]
        with self._stand.database() as connection:
            parked = connection.execute("SELECT FROM bulk.parked LIMIT 1").fetchone()
            return parked is None and not evidence.unended(connection, sealed)

    def _conclude(self, began_s: float) -> Verdict:
        sent = self._traffic.sent
        tables = [self._innocent, self._sibling, *(victim.table for victim in self._victims)]
        with self._stand.database() as connection:
            found = evidence.collect(connection, [job.job_id for job in sent], tables)
            parked = connection.execute("SELECT dataset, count(*) FROM bulk.parked GROUP BY 1").fetchall()
        self._violations += [Violation(dataset, f"{count} messages are still parked") for dataset, count in parked]
        exits = self._stand.note_exits()
        self._violations += [Violation(" + ".join(str(v.case) for v in self._victims), str(exit_)) for exit_ in exits]
        for name in (self._innocent, self._sibling):
            self._violations += [
                Violation(name, what) for what in some(checker.check_dataset(found, name, sent, "ignore"))
            ]
        self._violations += [Violation("innocents", what) for what in some(self._innocents_served(sent, found))]
        for victim in self._victims:
            for what in some(checker.check_dataset(found, victim.table, sent, victim.policy)):
                self._blame(victim, what)
            for what in some(checker.check_effect(victim, found, sent)) if self._faulty else ():
                self._blame(victim, what)
        innocent = [job for job in sent if job.dataset in (self._innocent, self._sibling)]
        latencies = percentiles([job for job in innocent if job.phase == "during"], found.jobs)
        if latencies[-1] > self._times.innocent_s_max:
            self._violations.append(Violation("innocents", f"an innocent job took {latencies[-1]:.1f} s"))
        return Verdict(
            self._violations,
            [*exits],
            len(innocent),
            len(sent) - len(innocent),
            latencies,
            time.monotonic() - began_s,
            self._felt,
        )

    def _innocents_served(self, sent: Sequence[Sent], found: Evidence) -> Iterator[str]:
        for job in sent:
            if job.dataset not in (self._innocent, self._sibling):
                continue
            report = found.jobs.get(job.job_id)
            if not job.sealed:
                yield f"{job.key} of {job.tenant} could not be submitted: {job.refused}"
            elif report is not None and report.ended and report.accepted != report.written:
                yield f"{job.key} of {job.tenant} is {report}"

    @property
    def _whole(self) -> bool:
        """Whether this is a fault of the whole database: once for all victims."""
        return any(victim.case.fault.whole for victim in self._victims)

    def _reports(self) -> dict[str, evidence.JobOutcome]:
        """Return what the jobs report; nothing while the fault prevents the query."""
        try:
            with self._stand.database() as connection:
                return evidence.read_jobs(connection, [job.job_id for job in self._traffic.sent])
        except psycopg.OperationalError:
            return {}

    @staticmethod
    def _ended(reports: dict[str, evidence.JobOutcome], job: Sent) -> bool:
        return job.job_id in reports and reports[job.job_id].ended

    def _execute(self, victim: Victim, statements: str) -> None:
        """Execute statements in one transaction; again while a lock is not granted."""
        ends_at_s = time.monotonic() + _APPLIED_WITHIN_S
        text = self._format(victim, statements)
        while True:
            try:
                with self._stand.database(other=victim.case.fault.from_outside) as connection:
                    connection.execute(text.encode())
            except (psycopg.errors.LockNotAvailable, psycopg.errors.DeadlockDetected):
                if time.monotonic() > ends_at_s:
                    raise
            else:
                return

    def _format(self, victim: Victim, statement: str) -> str:
        partition = self._partition(victim) if "{partition}" in statement else ""
        return statement.format(**sql_names(victim.table, COLUMNS), partition=partition)

    def _partition(self, victim: Victim) -> str:
        with self._stand.database() as connection:
            found = connection.execute(
                "SELECT oid::regclass::text FROM pg_class WHERE relkind = 'r' AND relispartition AND "
                "pg_get_expr(relpartbound, oid) LIKE '%%remainder 0)' AND oid IN "
                "(SELECT inhrelid FROM pg_inherits WHERE inhparent = %s::regclass)",
                [f"public.{victim.table}"],
            ).fetchone()
        if found is None:
            # Detached: it is known by its constraint no more; what `_apply` found is what there was.
            return self._felt[f"partition {victim.table}"]
        self._felt[f"partition {victim.table}"] = str(found[0])
        return str(found[0])

    def _blame(self, victim: Victim, what: str) -> None:
        self._violations.append(Violation(str(victim.case), what))


async def _register(client: AsyncBulkClient, shape: Shape) -> None:
    """Register a dataset; again while PostgreSQL is busy with what the wave before left."""
    async with asyncio.timeout(WARM_UP_WITHIN_S):
        while True:
            try:
                await client.register_dataset(shape.descriptors(), shape.message_type)
            except Refused as refused:
                if not refused.retriable:
                    raise
                await asyncio.sleep(LOOK_AGAIN_S)
            else:
                return
