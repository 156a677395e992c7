"""One trial: load, a fault in its middle, a reader throughout, repair, a deadline; then the checker."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass

import psycopg

from bulkgrpc.promises import P1
from tests.chaos import checker, evidence
from tests.chaos.checker import Summary, Violation
from tests.chaos.datasets import deleted_by_next
from tests.chaos.evidence import ROWS, Evidence, job_id
from tests.chaos.fault import Fault
from tests.chaos.load import Gate, Load, Plan, draw_plans
from tests.chaos.rig import Rig

CATCHES_UP_WITHIN_S = 60.0
"""After the last fault healed: no lag, no sealed job that has not ended."""
READ_EVERY_S = 0.2
READ_AT_ONCE_MAX = 3
# A job that lost batches and is to be opened again is no more ended than an open one.
_READ = """
SELECT v.key, CASE WHEN j.lost THEN 1 ELSE coalesce(j.state, 0) END, coalesce(j.written, 0),
       (SELECT count(*) FROM chaos.readings r
        WHERE r.tenant = v.tenant AND r.value >= v.base AND r.value < v.base + v.size)
FROM unnest(%(keys)s::text[], %(tenants)s::text[], %(ids)s::uuid[], %(bases)s::float8[], %(sizes)s::float8[])
     AS v (key, tenant, id, base, size)
LEFT JOIN bulk.jobs j ON j.job_id = v.id
"""
_OFFSETS = "SELECT partition, next_offset, owner_epoch FROM bulk.offsets"


@dataclass(frozen=True, slots=True)
class Verdict:
    """The result of a trial."""

    violations: list[Violation]
    summary: Summary
    evidence: Evidence
    seconds: float

    def __str__(self) -> str:
        s = self.summary
        return (
            f"{self.seconds:.1f} s, {s.sent} records sent, {s.acknowledged} acknowledged, {s.found} found, "
            f"{s.duplicates} twice, {s.lost} lost, {s.processes_ended} processes ended; "
            f"violations: {checker.count(self.violations)}"
        )


async def run(
    rig: Rig, name: str, fault: Fault, seed: int, batches: int = 30, within_s: float = CATCHES_UP_WITHIN_S
) -> Verdict:
    """Run one trial of a fault and return its verdict; afterwards the rig works and the tables are empty."""
    began_s = time.monotonic()
    chance = random.Random(seed)
    history = rig.renew_history(name)
    await asyncio.to_thread(evidence.clear, rig.postgres)
    gate = Gate()
    plans = draw_plans(chance, name, batches)
    load = Load(rig.address, history, gate)

    async def strike() -> None:
        await gate.hurt.wait()
        history.note("rig", "fault", name=fault.name, phase="begun")
        with ExitStack() as stack:
            try:
                await asyncio.to_thread(stack.enter_context, fault.hurt(rig, chance))
                await asyncio.sleep(fault.dwell_s)
            finally:
                gate.healed.set()
                await asyncio.to_thread(stack.close)
        history.note("rig", "fault", name=fault.name, phase="healed")

    async with attended(rig, plans):
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(strike())
            tasks.create_task(load.run(plans, within_s + fault.dwell_s))
        await catch_up(rig, within_s)
    return await asyncio.to_thread(conclude, rig, began_s)


@asynccontextmanager
async def attended(rig: Rig, plans: Sequence[Plan]) -> AsyncIterator[None]:
    """Restart ended processes and run the reader meanwhile."""
    tasks = [asyncio.create_task(rig.tending()), asyncio.create_task(reading(rig, plans))]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def reading(rig: Rig, plans: Sequence[Plan]) -> None:
    """Read a few jobs and the ledger repeatedly, each time in one snapshot."""
    chance = random.Random(len(plans))
    while True:
        # Of jobs that delete rows, what they report is not what is there.
        counted = [plan for plan in plans if not deleted_by_next(plan.dataset)]
        some = chance.sample(counted, min(len(counted), READ_AT_ONCE_MAX))
        try:
            async with asyncio.timeout(5):
                await asyncio.to_thread(read_once, rig, some)
        except (psycopg.Error, TimeoutError):
            pass  # PostgreSQL is unavailable now
        await asyncio.sleep(READ_EVERY_S)


def read_once(rig: Rig, plans: Sequence[Plan]) -> None:
    """Note what some jobs report, their rows in the table, and the ledger's positions, in one snapshot."""
    values = {
        "keys": [f"{plan.who}/{plan.key}" for plan in plans],
        "tenants": [plan.who for plan in plans],
        "ids": [job_id(plan.who, plan.key) for plan in plans],
        "bases": [plan.base for plan in plans],
        "sizes": [plan.batches * ROWS for plan in plans],
    }
    with psycopg.connect(
        rig.postgres, connect_timeout=2, options="-c statement_timeout=4s", autocommit=True
    ) as connection:
        jobs = connection.execute(_READ, values).fetchall()
        offsets = connection.execute(_OFFSETS).fetchall()
    rig.history.note(
        "reader",
        "read",
        jobs={key: [state, written, found] for key, state, written, found in jobs},
        offsets={partition: [next_offset, epoch] for partition, next_offset, epoch in offsets},
    )


async def catch_up(rig: Rig, within_s: float) -> None:
    """Wait until there is no lag; note this, or the lag at the deadline."""
    began_s = time.monotonic()
    while behind := await asyncio.to_thread(rig.behind):
        if time.monotonic() - began_s > within_s:
            rig.history.note("rig", "behind", after_s=within_s, what=behind)
            return
        await asyncio.sleep(READ_EVERY_S)
    rig.history.note("rig", "caught_up", after_s=round(time.monotonic() - began_s, 2))


def conclude(rig: Rig, began_s: float) -> Verdict:
    """Collect the evidence, check it, and clear the tables for the next trial."""
    found = evidence.collect(rig.postgres, rig.history)
    found.write(rig.history.directory / "evidence.json")
    violations = checker.check(found)
    if rig.victims is not None:
        violations.extend(Violation(P1, what) for what in rig.victims.violations(rig.postgres))
    return Verdict(violations, checker.summarize(found), found, time.monotonic() - began_s)
