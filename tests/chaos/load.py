"""The clients: what they submit is drawn from a seed, what they see goes to the history."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field

from bulkgrpc.client import AsyncBulkClient, AsyncJobHandle, Batch, BulkError, ClientConfig, Job, JobOptions, Progress
from bulkgrpc.consume.losses import LOST_IN_KAFKA
from bulkgrpc.kafka.partition import partition_of
from tests.chaos.datasets import (
    APPENDED,
    BOUND,
    CHANGING,
    FLEET,
    READINGS,
    ROWS,
    deleted_by_next,
    left_by,
    payload,
)
from tests.chaos.history import History, Kind

CONFIG = ClientConfig(
    open_deadline_s=10, acknowledge_deadline_s=10, retry_deadline_s=60, retry_cap_s=1, buffer_batches_max=24
)
PARTITIONS = 4
LANES = 4
"""Of jobs of `fleet_readings`."""
SEVERAL_LANES = 0.4
"""How likely a job has them."""
OTHERS = 0.6
"""How likely a job is of a dataset without a key, with deletes, or in a team's table."""
BAD_RECORD = b"\x0a\xff\x01"
"""A record that says it is longer than it is."""


@dataclass(frozen=True, slots=True)
class Plan:
    """A job to submit. quits_at: break off after so many acknowledged batches; 0: never. returns: submit it again.

    dataset: where its records go. lanes: 1, or those of the dataset that has several. atomic: nothing of it is visible
    before all of it is.
    """

    who: str
    key: str
    base: int
    batches: int
    bad: int = 0
    quits_at: int = 0
    returns: bool = False
    lanes: int = 1
    atomic: bool = False
    dataset: str = READINGS

    @property
    def left(self) -> int:
        """How many rows each batch leaves."""
        return left_by(self.dataset) - self.bad


def draw_plans(chance: random.Random, run: str, batches: int, clients: int = 5) -> list[Plan]:
    """Draw a job for each of some clients: one quits, one quits and resubmits, one sends bad records, one is atomic.

    All but the first may have several lanes. Those that send no bad records may go to any dataset.
    """
    plans, several, kinds = [], random.Random(run), random.Random(f"{run}/datasets")
    for number in range(clients):
        # Fewer bad ones: each costs the worker a search.
        size = max(4, batches // 5) if number == 3 else batches
        dataset = FLEET if number and several.random() < SEVERAL_LANES else READINGS
        if number in (1, 2, 4) and kinds.random() < OTHERS:
            dataset = kinds.choice((APPENDED, BOUND, CHANGING))
        plan = Plan(
            who=_on_partition(f"{run}-c{number}", number % PARTITIONS),
            key=f"{run}-{chance.randrange(10**9)}",
            base=chance.randrange(10**6) * 10**6,
            batches=size,
            bad=int(number == 3),
            quits_at=chance.randint(1, max(1, size // 2)) if number in (1, 2) else 0,
            returns=number == 2,
            lanes=LANES if dataset == FLEET else 1,
            atomic=number == 4,
            dataset=dataset,
        )
        plans.append(plan)
    return plans


def _on_partition(name: str, partition: int) -> str:
    """Return a tenant whose batches go to this partition, so that every worker has something to do."""
    return next(who for n in range(10_000) if partition_of(who := f"{name}-{n}", PARTITIONS) == partition)


def _is_lost(text: str) -> bool:
    """Return whether a failure reason or a refusal says that a job lost batches, and to submit it again."""
    return LOST_IN_KAFKA in text


@dataclass(slots=True)
class Gate:
    """How a fault and the load wait for each other. hold_at: share of each job that is sent before `healed`."""

    hurt_at: float = 0.15
    hold_at: float = 0.6
    pause_s: float = 0.0
    hurt: asyncio.Event = field(default_factory=asyncio.Event)
    healed: asyncio.Event = field(default_factory=asyncio.Event)


class Load:
    """Runs plans against a server and notes what their clients see."""

    def __init__(self, address: str, history: History, gate: Gate) -> None:
        self._address = address
        self._history = history
        self._gate = gate
        self._total = 0
        self._acknowledged: dict[str, int] = {}

    async def run(self, plans: Sequence[Plan], ends_within_s: float) -> None:
        """Run all plans at once; return when every client has seen its job end, or has quit."""
        self._total += sum(plan.batches for plan in plans)
        async with asyncio.TaskGroup() as tasks:
            for plan in plans:
                tasks.create_task(self.one(plan, ends_within_s))

    async def one(self, plan: Plan, ends_within_s: float) -> None:
        """Run one plan."""
        what = {"key": plan.key, "base": plan.base, "batches": plan.batches, "rows": ROWS, "bad": plan.bad}
        deleted = {"left": plan.left, "deleted_by_next": deleted_by_next(plan.dataset)}
        self._history.note(plan.who, "submit", **what, lanes=plan.lanes, **deleted)
        async with AsyncBulkClient(self._address, tenant=plan.who, config=CONFIG) as client:
            if plan.quits_at and not await self._quit(client, plan):
                return
            while (handle := await self._until_sealed(client, plan, ends_within_s)) is not None:
                job = await self._until_ended(handle, plan, ends_within_s)
                if job is None or not _is_lost(job.failure_reason):
                    return
                self._history.note(plan.who, "lost", key=plan.key, reason=job.failure_reason)

    async def _quit(self, client: AsyncBulkClient, plan: Plan) -> bool:
        """Break off in the middle; return whether to submit again."""
        enough = asyncio.Event()
        submitting = asyncio.create_task(self._submit(client, plan, enough))
        reached = asyncio.create_task(enough.wait())
        await asyncio.wait((submitting, reached), return_when=asyncio.FIRST_COMPLETED)
        for task in (submitting, reached):
            task.cancel()
        await asyncio.gather(submitting, reached, return_exceptions=True)
        self._history.note(plan.who, "unknown", key=plan.key, reason="broke off")
        return plan.returns

    async def _until_sealed(self, client: AsyncBulkClient, plan: Plan, within_s: float) -> AsyncJobHandle | None:
        try:
            async with asyncio.timeout(within_s):
                while True:
                    try:
                        return await self._submit(client, plan, None)
                    except BulkError as error:
                        lost = _is_lost(error.message)
                        kind: Kind = "lost" if lost else "unknown" if error.retriable else "refused"
                        self._history.note(plan.who, kind, key=plan.key, reason=f"{error.reason}: {error.message}")
                        if not (error.retriable or lost):
                            return None
        except TimeoutError:
            self._history.note(plan.who, "unknown", key=plan.key, reason=f"not sealed within {within_s} s")
            return None

    async def _submit(self, client: AsyncBulkClient, plan: Plan, enough: asyncio.Event | None) -> AsyncJobHandle:
        known = Progress()

        def watch(progress: Progress) -> None:
            nonlocal known
            if progress.sent_batches > known.sent_batches:
                self._history.note(plan.who, "sent", key=plan.key, batches=progress.sent_batches)
            if progress.acknowledged_batches > known.acknowledged_batches:
                self._acknowledge(plan, progress.acknowledged_batches)
                if enough is not None and progress.acknowledged_batches >= plan.quits_at:
                    enough.set()
            known = progress

        handle = await client.submit(
            plan.dataset,
            self._batches(plan, holds=enough is None),
            idempotency_key=plan.key,
            options=JobOptions(atomic=plan.atomic),
            on_progress=watch,
        )
        self._history.note(plan.who, "sent", key=plan.key, batches=plan.batches)
        self._history.note(plan.who, "sealed", key=plan.key)
        return handle

    def _acknowledge(self, plan: Plan, batches: int) -> None:
        self._history.note(plan.who, "acknowledged", key=plan.key, batches=batches)
        self._acknowledged[plan.key] = batches
        if sum(self._acknowledged.values()) >= self._gate.hurt_at * self._total:
            self._gate.hurt.set()

    async def _until_ended(self, handle: AsyncJobHandle, plan: Plan, within_s: float) -> Job | None:
        def note(job: Job) -> None:
            counts = job.counts
            self._history.note(
                plan.who,
                "job",
                key=plan.key,
                state=int(job.state),
                accepted=counts.accepted,
                written=counts.written,
                duplicate=counts.duplicate,
                rejected=counts.rejected,
                expired=counts.expired,
                lost=_is_lost(job.failure_reason),
            )

        loop = asyncio.get_running_loop()
        ends_at_s = loop.time() + within_s
        while (left_s := ends_at_s - loop.time()) > 0:
            try:
                return await handle.wait(deadline_s=left_s, on_progress=note)
            except BulkError as error:
                self._history.note(plan.who, "unknown", key=plan.key, reason=f"GetJob: {error.message}")
        return None

    async def _batches(self, plan: Plan, *, holds: bool) -> AsyncIterator[Batch]:
        hold_at = int(plan.batches * self._gate.hold_at)
        for number in range(plan.batches):
            if holds and number == hold_at:
                await self._gate.healed.wait()
            await asyncio.sleep(self._gate.pause_s)
            yield Batch(self.payload(plan, number), ROWS)

    @staticmethod
    def payload(plan: Plan, number: int) -> bytes:
        """Return a batch of a plan; its last `bad` records are invalid."""
        good = payload(plan.dataset, plan.base + number * ROWS, plan.bad, plan.who)
        return good + plan.bad * (b"\x12" + bytes([len(BAD_RECORD)]) + BAD_RECORD)
