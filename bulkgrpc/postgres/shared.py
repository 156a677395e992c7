"""Jobs with several lanes, for which several workers write at the same time.

Their rows are written side by side. What becomes of the job then is said by one worker at a time: it holds the job's
row from here to the end of its transaction, and sees what the others said before. Who seals a lane changes the
job's row, if only its time: so PostgreSQL refuses a transaction that sees an older picture, as a repeatable read does.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import dataclass

from bulkgrpc.consume.plan import LanePlan, LedgerView
from bulkgrpc.postgres import ledger
from bulkgrpc.postgres.ledger import Connection, JobRow


class Overtaken(Exception):
    """A job ended, or a lane of it moved, after the chunk was planned: roll back, and write the chunk again."""


@dataclass(frozen=True, slots=True)
class Held:
    """Jobs as they stand now that nobody else moves them. unsealed: those of which a lane's seal is still to come."""

    jobs: Mapping[uuid.UUID, JobRow]
    unsealed: frozenset[uuid.UUID] = frozenset()


def hold(connection: Connection, jobs: Mapping[uuid.UUID, JobRow], planned: LedgerView, plan: LanePlan) -> Held:
    """Hold those of a chunk's jobs that have several lanes until the transaction ends.

    After the chunk's rows are written: workers then wait for each other's ends only, and whoever holds jobs waits for
    no row, but that of an atomic job's end. Asks nothing if there are no such jobs. Raises Overtaken.
    """
    shared = {job_id: row for job_id, row in jobs.items() if row.lanes > 1}
    if not shared:
        return Held(jobs)
    found = ledger.hold_jobs(connection, shared)
    lanes = ledger.lanes(connection, found)
    for job_id, row in shared.items():
        if job_id not in found or found[job_id].state.ended != row.state.ended:
            raise Overtaken(f"job {job_id} ended meanwhile")
    for key in plan.lanes:
        if key[0] in shared and lanes.get(key) != planned.lanes.get(key):
            raise Overtaken(f"lane {key[1]} of job {key[0]} moved meanwhile")
    after = {**lanes, **plan.lanes}
    sealed = {key for key, lane in after.items() if lane.sealed}
    unsealed = {job_id for job_id, row in shared.items() if any((job_id, n) not in sealed for n in range(row.lanes))}
    return Held({**jobs, **found}, frozenset(unsealed))
