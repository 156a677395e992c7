"""What a noisy tenant does to a quiet one: the time until small jobs are visible, with and without large ones."""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from bulkgrpc.bench import observe, readings, service_processes
from bulkgrpc.bench.burn import burning
from bulkgrpc.bench.cpu import cpu_s
from bulkgrpc.bench.environment import Environment
from bulkgrpc.bench.model import BenchFailed, Quantiles, Report
from bulkgrpc.bench.noisy_cases import (
    NOISY,
    PARTITIONS,
    QUIET_INTERVAL_S,
    QUIET_PARTITION,
    QUIET_ROWS,
    WORKERS,
    Case,
    NoisyCase,
    NoisyLoad,
    NoisyResults,
    noisy_partitions,
    tenant_on,
    unrelated_cores,
)
from bulkgrpc.bench.spawned import Pipe, Spawned, receive, spawned
from bulkgrpc.client import AsyncBulkClient, AsyncJobHandle, Batch
from bulkgrpc.datasets.codec import BatchCodec
from bulkgrpc.datasets.definition import Dataset
from bulkgrpc.model import JobState
from bulkgrpc.postgres import bench_state
from bulkgrpc.postgres.connection import Connection
from bulkgrpc.postgres.inspection import row_lookup

NOISY_BATCH_ROWS = 20_000
NOISY_JOB_BATCHES = 10
NOISY_JOBS_OPEN_MAX = 5
"""Jobs of the noisy tenant that have not ended: 1,000,000 rows, 33 MB."""
LOOKUPS_AT_ONCE_MAX = 5
"""Batches that are looked up in one pass, the oldest first: a backlog of them must not keep PostgreSQL busy."""
POLL_S = 0.001
WARM_UP_JOBS = 10
_TIMEOUT_S = 120.0
_IDLE_TIMEOUT_S = 3600.0
_LOADED = "loaded"
_STOP = "stop"


def run(environment: Environment, load: NoisyLoad, report: Report) -> NoisyResults:
    """Measure all cases, one after the other; each starts without a backlog. Raises BenchFailed."""
    dataset, quiet_tenant = readings.dataset(), tenant_on(QUIET_PARTITION, "quiet")
    with (
        environment.deployment("noisy", PARTITIONS) as deployment,
        service_processes.workers(deployment, WORKERS, environment.directory) as running,
        service_processes.server(deployment, environment.directory) as (server, target),
        spawned(submit_paced, [(target, quiet_tenant)]) as (quiet,),
        spawned(submit_large, [(target,)]) as (noisy,),
        environment.connection() as connection,
    ):
        assignment = observe.wait_group_balanced(deployment, WORKERS)
        pids = [environment.postgres_pid, environment.kafka_pid, server.pid, noisy.pid, *(one.pid for one in running)]
        bench = _Bench(dataset, connection, (quiet_tenant, quiet), noisy, pids, noisy_partitions(assignment))
        report("warming up")
        bench.warm_up()
        measured = list[NoisyCase]()
        for case in Case:
            report(case.value)
            measured.append(bench.measure(case, load, unrelated_cores(measured) if case is Case.UNRELATED else 0.0))
        if observe.wait_group_balanced(deployment, WORKERS) != assignment:
            raise BenchFailed("the workers exchanged partitions during the measurement")
        quiet.send(None)
        noisy.send(None)
    return NoisyResults(load, tuple(measured))


def steps() -> int:
    """Return how often `run` reports."""
    return len(Case) + 1


@dataclass(slots=True)
class _Noise:
    """What the noisy tenant wrote: rows, and the seconds from its first batch until its last job ended."""

    rows: int = 0
    seconds: float = 1.0


@dataclass(frozen=True, slots=True)
class _Bench:
    """Measures one case after the other.

    quiet: the tenant, and its client. pids: whose CPU time is counted. partitions: the noisy tenant's, by case.
    """

    dataset: Dataset
    connection: Connection
    quiet: tuple[str, Spawned]
    noisy: Spawned
    pids: Sequence[int]
    partitions: dict[Case, int]

    def warm_up(self) -> None:
        """Let both workers write jobs of both tenants."""
        for case in NOISY:
            bench_state.clear(self.connection, self.dataset)
            with self._noise(case):
                self._visible_s(WARM_UP_JOBS)

    def measure(self, case: Case, load: NoisyLoad, unrelated: float) -> NoisyCase:
        """Measure one case. unrelated: CPU seconds per second that unrelated processes take. Raises BenchFailed."""
        bench_state.clear(self.connection, self.dataset)
        with self._noise(case) as noise, burning(unrelated):
            start_s, start_cpu_s = time.perf_counter(), cpu_s(self.pids)
            visible_s = self._visible_s(load.samples)
            cores = unrelated + (cpu_s(self.pids) - start_cpu_s) / (time.perf_counter() - start_s)
        observe.check_table(self.connection, self.dataset, noise.rows + load.samples * QUIET_ROWS)
        return NoisyCase(case, Quantiles.of(visible_s), noise.rows / noise.seconds, cores)

    @contextmanager
    def _noise(self, case: Case) -> Iterator[_Noise]:
        """Let the noisy tenant stream for the time of the context, if it has a partition; then drain its backlog."""
        noise = _Noise()
        if case not in self.partitions:
            yield noise
            return
        self.noisy.send(tenant_on(self.partitions[case], "noisy"))
        self.noisy.receive(_TIMEOUT_S)  # _LOADED
        yield noise
        self.noisy.send(_STOP)
        noise.rows, noise.seconds = self.noisy.receive(_TIMEOUT_S)

    def _visible_s(self, jobs: int) -> list[float]:
        """Let the quiet tenant submit jobs; return the seconds until each was visible, once all have ended."""
        tenant, client = self.quiet
        exists, pause = row_lookup(self.connection, self.dataset), threading.Event()
        waiting, visible_s = deque[tuple[int, float]](), list[float]()
        client.send(jobs)
        while len(visible_s) < jobs:
            while len(waiting) + len(visible_s) < jobs and client.pipe.poll():
                waiting.append(client.receive(_TIMEOUT_S))
            for number, sent_s in list(itertools.islice(waiting, LOOKUPS_AT_ONCE_MAX)):
                if exists((tenant, *readings.key_of((number + 1) * QUIET_ROWS - 1))):
                    visible_s.append(time.perf_counter() - sent_s)
                    waiting.remove((number, sent_s))
                elif time.perf_counter() - sent_s > _TIMEOUT_S:
                    raise BenchFailed(f"a quiet job was not visible after {_TIMEOUT_S:.0f} s")
            client.check()
            pause.wait(POLL_S)
        client.receive(_TIMEOUT_S)
        return visible_s


def submit_paced(pipe: Pipe, target: str, tenant: str) -> None:
    """Whenever a number of jobs arrives, submit one of QUIET_ROWS every QUIET_INTERVAL_S, whether or not others ended.

    Sends the number and the time of each job when it is submitted, then True once all have ended. None ends it.
    """
    codec = BatchCodec(readings.dataset())
    pipe.send(True)
    asyncio.run(_submit_paced(pipe, codec, target, tenant))


async def _submit_paced(pipe: Pipe, codec: BatchCodec, target: str, tenant: str) -> None:
    clock = asyncio.get_running_loop().time
    async with AsyncBulkClient(target, tenant=tenant) as client:

        async def submit(payload: bytes) -> AsyncJobHandle:
            return await client.submit(readings.TABLE, [Batch(payload, QUIET_ROWS)])

        while (jobs := await asyncio.to_thread(receive, pipe, _IDLE_TIMEOUT_S)) is not None:
            payloads = readings.batches(codec, 0, jobs * QUIET_ROWS, QUIET_ROWS)
            next_s = clock()
            async with asyncio.TaskGroup() as tasks:
                submitted = []
                for number, payload in enumerate(payloads):
                    await asyncio.sleep(max(0.0, next_s - clock()))
                    next_s += QUIET_INTERVAL_S
                    pipe.send((number, time.perf_counter()))
                    submitted.append(tasks.create_task(submit(payload)))
            for task in submitted:
                await _ended(task.result())
            pipe.send(True)


def submit_large(pipe: Pipe, target: str) -> None:
    """Whenever a tenant arrives, submit jobs for it as fast as the server accepts them, until a message arrives.

    At most NOISY_JOBS_OPEN_MAX have not ended. Sends _LOADED when so many have not; at the end, once all have ended,
    the rows and the seconds since the tenant arrived. None instead of a tenant ends it.
    """
    codec = BatchCodec(readings.dataset())
    pipe.send(True)
    asyncio.run(_submit_large(pipe, codec, target))


async def _submit_large(pipe: Pipe, codec: BatchCodec, target: str) -> None:
    while (tenant := await asyncio.to_thread(receive, pipe, _IDLE_TIMEOUT_S)) is not None:
        start_s = time.perf_counter()
        async with AsyncBulkClient(target, tenant=tenant) as client:
            rows = await _submit_until_message(pipe, codec, client)
        pipe.send((rows, time.perf_counter() - start_s))


async def _submit_until_message(pipe: Pipe, codec: BatchCodec, client: AsyncBulkClient) -> int:
    """Submit jobs until a message arrives, and wait until they have ended. Returns their rows."""
    stopping = asyncio.create_task(asyncio.to_thread(receive, pipe, _IDLE_TIMEOUT_S))
    free, loaded, rows = asyncio.Semaphore(NOISY_JOBS_OPEN_MAX), False, 0

    async def ended(job: AsyncJobHandle) -> None:
        await _ended(job)
        free.release()

    async with asyncio.TaskGroup() as tasks:
        while not stopping.done():
            if free.locked() and not loaded:
                loaded = True
                pipe.send(_LOADED)
            await free.acquire()
            # Each batch has keys of its own: a conflict would let the workers write more slowly.
            job = await client.submit(readings.TABLE, _large_batches(codec, rows))
            rows += NOISY_JOB_BATCHES * NOISY_BATCH_ROWS
            tasks.create_task(ended(job))
    return rows


def _large_batches(codec: BatchCodec, first: int) -> Iterator[Batch]:
    for number in range(NOISY_JOB_BATCHES):
        (payload,) = readings.batches(codec, first + number * NOISY_BATCH_ROWS, NOISY_BATCH_ROWS, NOISY_BATCH_ROWS)
        yield Batch(payload, NOISY_BATCH_ROWS)


async def _ended(job: AsyncJobHandle) -> None:
    """Wait until a job has ended. Raises BenchFailed unless it succeeded."""
    ended = await job.wait(deadline_s=_TIMEOUT_S)
    if ended.state is not JobState.SUCCEEDED:
        raise BenchFailed(f"job {ended.name} is {ended.state.name}: {ended.failure_reason}")
