"""The clients: innocent tenants at a steady rate, victims, the victims' other datasets. They note what they send."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import zlib
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal

from bulkgrpc.client import AsyncBulkClient, Batch, BulkError, ClientConfig, JobOptions
from bulkgrpc.datasets.definition import ConflictPolicy
from bulkgrpc.model import JobKey
from tests.blast.catalog import Case, tenants_of
from tests.blast.fault import Poison
from tests.blast.records import Message, Shape, payload

Phase = Literal["before", "during", "after"]
HALF = 30
"""Records of a job of a victim whose keys the job before has sent too; as many are new."""
BATCHES = 3
ROWS = 2 * HALF // BATCHES
"""Records of a batch of a victim's job."""
INNOCENT_ROWS = 20
INNOCENT_PACE_S = 1.0
SIBLING_PACE_S = 2.0
VICTIM_PACE_S = 0.6
OUTSTANDING_MAX = 200
INNOCENT, SIBLING = "innocent", "sibling"


@dataclass(slots=True)
class Sent:
    """A job as its client knows it. base: number of its first record. batches: records of each batch.

    revision, message: of its records. sealed: whether the submission returned. refused: its error if it did not.
    """

    tenant: str
    dataset: str
    key: str
    phase: Phase
    base: int
    batches: tuple[int, ...]
    revision: int = 0
    atomic: bool = False
    sparse: bool = False
    poison: Poison | None = None
    message: Message = "Record"
    begun: datetime = field(default_factory=lambda: datetime.now(UTC))
    sealed: bool = False
    refused: str = ""

    @property
    def job_id(self) -> str:
        """The job's id."""
        return str(JobKey.derive(self.tenant, self.key).job_id)

    @property
    def records(self) -> int:
        """How many records it has."""
        return sum(self.batches)


@dataclass(frozen=True, slots=True)
class Victim:
    """A dataset that a fault hits, and the two tenants that write to it."""

    case: Case
    table: str
    tenants: tuple[str, str]

    @property
    def policy(self) -> ConflictPolicy:
        """Its conflict policy."""
        return self.case.policy

    @property
    def shape(self) -> Shape:
        """The dataset to register."""
        return Shape(self.table, self.policy, self.case.message, self.case.fault.hash_partitions)

    @property
    def overlaps(self) -> bool:
        """Whether each job sends half of the keys of the one before again.

        An atomic job would fail by `reject`. Without a key, each record is distinguished by its number.
        """
        return not (self.case.atomic and self.case.policy == "reject") and self.policy != "append"

    def first_of(self, number: int) -> int:
        """Return the number of the first record of a job, by the number of the job."""
        return number * (HALF if self.overlaps else 2 * HALF)


def batches_of(job: Sent) -> list[Batch]:
    """Return the batches of a victim's job."""
    starts = range(job.base, job.base + 2 * HALF, ROWS)
    return [Batch(payload(start, ROWS, job.revision, message=job.message, tenant=job.tenant), ROWS) for start in starts]


def victims_of(cases: Sequence[Case], run: str) -> list[Victim]:
    """Return the victims of cases that run together."""
    return [Victim(case, case.table(run), tenants_of(number, run)) for number, case in enumerate(cases)]


class Traffic:
    """Everything that is submitted in a run. phase: set by the run; noted with each job."""

    def __init__(self, address: str, run: str, patience_s: float) -> None:
        self._address = address
        self._run = run
        self._config = ClientConfig(
            call_deadline_s=10,
            open_deadline_s=10,
            acknowledge_deadline_s=15,
            retry_deadline_s=patience_s,
            retry_cap_s=1,
        )
        self._clients: dict[str, AsyncBulkClient] = {}
        self._serial = itertools.count()
        self._stopping = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._jobs: set[asyncio.Task[None]] = set()
        self.phase: Phase = "before"
        self.sent: list[Sent] = []

    def start(self, innocents: Sequence[str], innocent: str, sibling: str, victims: Sequence[Victim]) -> None:
        """Start all clients. innocent: dataset of the innocent tenants. sibling: the victims' other dataset."""
        for tenant in innocents:
            self._start(self._steady(tenant, innocent, INNOCENT_PACE_S))
        for victim in victims:
            for tenant in victim.tenants:
                self._start(self._steady(tenant, sibling, SIBLING_PACE_S))
                self._start(self._victim(victim, tenant))

    async def stop(self, within_s: float) -> None:
        """Submit nothing more; wait at most this long for running submissions."""
        self._stopping.set()
        await asyncio.gather(*self._tasks)
        if self._jobs:
            await asyncio.wait(self._jobs, timeout=within_s)
        for task in [*self._jobs]:
            task.cancel()
        await asyncio.gather(*self._jobs, return_exceptions=True)
        for client in self._clients.values():
            await client.close()

    async def poison(self, victim: Victim) -> None:
        """Submit the poison of a victim's fault."""
        poison, tenant = victim.case.fault.poison, victim.tenants[0]
        assert poison is not None
        base = 1_000_000 + 100_000 * next(self._serial)
        batches = await asyncio.to_thread(poison.batches, base)
        for _ in range(1 + poison.twice):
            job = self._note(tenant, victim.table, base, tuple(count for _, count in batches))
            job.sparse, job.poison, job.atomic = poison.sparse, poison, victim.case.atomic
            await self._submit(job, [Batch(data, count) for data, count in batches])

    async def each_victim(self, victims: Sequence[Victim], do: Callable[[Victim], Coroutine[Any, Any, None]]) -> None:
        """Do something for each victim concurrently, until `stop`."""
        for victim in victims:
            self._start(do(victim))

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        self._tasks.append(asyncio.create_task(work))

    async def _steady(self, tenant: str, dataset: str, pace_s: float) -> None:
        """Submit a job at each tick, whether or not the earlier ones have ended."""
        numbers = itertools.count(0, INNOCENT_ROWS)
        # Not all at the same moment: a burst would measure itself.
        await self._pause(pace_s * (zlib.crc32(tenant.encode()) % 100) / 100)
        while not self._stopping.is_set():
            if len(self._jobs) < OUTSTANDING_MAX:
                job = self._note(tenant, dataset, next(numbers), (INNOCENT_ROWS,))
                task = asyncio.create_task(
                    self._submit(job, [Batch(payload(job.base, INNOCENT_ROWS, 0), INNOCENT_ROWS)])
                )
                self._jobs.add(task)
                task.add_done_callback(self._jobs.discard)
            await self._pause(pace_s)

    async def _victim(self, victim: Victim, tenant: str) -> None:
        """Submit job after job; each sends the second half of the keys of the one before again, revised."""
        for number in itertools.count():
            if self._stopping.is_set():
                return
            base = victim.first_of(number)
            job = self._note(tenant, victim.table, base, (ROWS,) * BATCHES)
            job.revision, job.atomic, job.message = number, victim.case.atomic, victim.case.message
            submitting = asyncio.create_task(self._submit(job, batches_of(job)))
            self._jobs.add(submitting)
            submitting.add_done_callback(self._jobs.discard)
            # The next one only afterwards: their order is what decides.
            stopping = asyncio.create_task(self._stopping.wait())
            await asyncio.wait((submitting, stopping), return_when=asyncio.FIRST_COMPLETED)
            stopping.cancel()
            await self._pause(VICTIM_PACE_S)

    async def _submit(self, job: Sent, batches: list[Batch]) -> None:
        try:
            await self._client(job.tenant).submit(
                job.dataset, batches, idempotency_key=job.key, options=JobOptions(atomic=job.atomic)
            )
        except BulkError as error:
            job.refused = f"{error.reason}: {error.message}"
        except asyncio.CancelledError:
            job.refused = "the submission did not return"
            raise
        else:
            job.sealed = True

    def _note(self, tenant: str, dataset: str, base: int, batches: tuple[int, ...]) -> Sent:
        job = Sent(tenant, dataset, f"{self._run}-{next(self._serial)}", self.phase, base, batches)
        self.sent.append(job)
        return job

    def _client(self, tenant: str) -> AsyncBulkClient:
        if tenant not in self._clients:
            self._clients[tenant] = AsyncBulkClient(self._address, tenant=tenant, config=self._config)
        return self._clients[tenant]

    async def _pause(self, pace_s: float) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._stopping.wait(), pace_s)
