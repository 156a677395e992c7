"""Locks the jobs with several lanes, which several workers write at the same time.

Their rows are written concurrently. The job's counts and end are decided by one worker at a time: it locks the job's
row until its transaction ends, and reads then what the others committed before.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field

from bulkgrpc.consume.plan import LanePlan, LedgerView
from bulkgrpc.postgres import ledger
from bulkgrpc.postgres.connection import Connection
from bulkgrpc.postgres.ledger import JobRow


class PlanOutdated(Exception):
    """A job ended, or a lane of it advanced, after the chunk was planned: roll back and write the chunk again."""


@dataclass(frozen=True, slots=True)
class LockedJobs:
    """A chunk's jobs, which no other worker changes now.

    unsealed: those with a lane not sealed after the chunk. next_sequences: of those with several lanes, the first batch
    that is not applied after the chunk.
    """

    jobs: Mapping[uuid.UUID, JobRow]
    unsealed: frozenset[uuid.UUID] = frozenset()
    next_sequences: Mapping[uuid.UUID, int] = field(default_factory=dict)


def lock(connection: Connection, jobs: Mapping[uuid.UUID, JobRow], planned: LedgerView, plan: LanePlan) -> LockedJobs:
    """Lock those of a chunk's jobs that have several lanes until the transaction ends; no statement if there are none.

    Called after the chunk's rows are written: then workers wait only for each other's commits, and one that has locked
    jobs waits for no row, except at the end of an atomic job. Raises PlanOutdated.
    """
    shared = {job_id: row for job_id, row in jobs.items() if row.lanes > 1}
    if not shared:
        return LockedJobs(jobs)
    found = ledger.lock_multi_lane_jobs(connection, shared)
    lanes = ledger.lanes(connection, found)
    for job_id, row in shared.items():
        if job_id not in found or found[job_id].state.ended != row.state.ended:
            raise PlanOutdated(f"job {job_id} ended meanwhile")
    for key in plan.lanes:
        if key[0] in shared and lanes.get(key) != planned.lanes.get(key):
            raise PlanOutdated(f"lane {key[1]} of job {key[0]} advanced meanwhile")
    after = {**lanes, **plan.lanes}
    sealed = {key for key, lane in after.items() if lane.sealed}
    unsealed = {job_id for job_id, row in shared.items() if any((job_id, n) not in sealed for n in range(row.lanes))}
    next_sequences = {
        job_id: min(lane.next_sequence if (lane := after.get((job_id, n))) else n for n in range(row.lanes))
        for job_id, row in shared.items()
    }
    return LockedJobs({**jobs, **found}, frozenset(unsealed), next_sequences)
