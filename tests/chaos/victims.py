"""Datasets of their own for a storm's triggers, constraints and bad batches, judged by the checker of tests/blast."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Coroutine, Iterator
from typing import Any

from bulkgrpc.client import AsyncBulkClient, Batch, BulkError, ClientConfig, JobOptions
from bulkgrpc.postgres.connection import connect
from tests.blast import checker, evidence
from tests.blast.catalog import Case
from tests.blast.traffic import BATCHES, ROWS, Phase, Sent, Victim, batches_of, victims_of

_PATIENCE = ClientConfig(call_deadline_s=5, open_deadline_s=5, acknowledge_deadline_s=10, retry_deadline_s=20)
_POISON_BASE = 1_000_000


class Victims:
    """The victims of a run and the jobs that were sent to them. Used by one thread at a time, not by that of `loop`.

    loop: where the storm's own clients run: grpc.aio expects one loop in a process.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self.sent: list[Sent] = []
        self._victims: list[Victim] = []
        self._jobs: Counter[str] = Counter()
        self._lost: set[str] = set()

    def add(self, address: str, case: Case, run: str) -> Victim:
        """Register a dataset for a case. run: a name that no other victim has. Raises BulkError if it cannot."""
        victim = victims_of([case], run)[0]
        shape = victim.shape

        async def register() -> None:
            async with AsyncBulkClient(address, config=_PATIENCE) as client:
                await client.register_dataset(shape.descriptors(), shape.message_type)

        self._wait_for(register())
        self._victims.append(victim)
        return victim

    def submit(self, address: str, victim: Victim, phase: Phase, jobs: int) -> None:
        """Submit jobs one after the other, each with half of the keys of the one before, and the fault's bad batches.

        A submission that fails is the last one of its victim: the order of the jobs decides what must be there.
        """
        self._wait_for(self._submit(address, victim, phase, jobs))

    def violations(self, postgres: str) -> Iterator[str]:
        """Compare the tables and reports with what was sent."""
        if not self._victims:
            return
        tables = [victim.table for victim in self._victims]
        with connect(postgres, "chaos-checker") as connection:
            found = evidence.collect(connection, [job.job_id for job in self.sent], tables)
        for victim in self._victims:
            for what in checker.some(checker.check_dataset(found, victim.table, self.sent, victim.policy)):
                yield f"{victim.case}: {what}"

    def _wait_for(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result()

    async def _submit(self, address: str, victim: Victim, phase: Phase, jobs: int) -> None:
        tenant, poison = victim.tenants[0], victim.case.fault.poison
        async with AsyncBulkClient(address, tenant=tenant, config=_PATIENCE) as client:
            for _ in range(jobs):
                number = self._jobs[victim.table]
                base = victim.first_of(number)
                job = self._note(victim, phase, base, (ROWS,) * BATCHES)
                job.revision, job.message = number, victim.case.message
                await self._send(client, job, batches_of(job))
            if poison is None or phase != "during":
                return
            batches = poison.batches(_POISON_BASE)
            for _ in range(1 + poison.twice):
                job = self._note(victim, phase, _POISON_BASE, tuple(count for _, count in batches))
                job.sparse, job.poison = poison.sparse, poison
                await self._send(client, job, [Batch(data, count) for data, count in batches])

    def _note(self, victim: Victim, phase: Phase, base: int, batches: tuple[int, ...]) -> Sent:
        key = f"{victim.table}-{self._jobs[victim.table]}"
        self._jobs[victim.table] += 1
        return Sent(victim.tenants[0], victim.table, key, phase, base, batches, atomic=victim.case.atomic)

    async def _send(self, client: AsyncBulkClient, job: Sent, batches: list[Batch]) -> None:
        if job.dataset in self._lost:
            return
        self.sent.append(job)
        try:
            await client.submit(job.dataset, batches, idempotency_key=job.key, options=JobOptions(atomic=job.atomic))
        except BulkError as error:
            self._lost.add(job.dataset)
            job.refused = f"{error.reason}: {error.message}"
        else:
            job.sealed = True
