"""A server is paused in the middle of a stream, its job is ended on another one: the end stays, and nothing is lost."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Iterator
from typing import Any

import grpc
import pytest

from bulkgrpc.client import AsyncBulkClient, Job, JobState
from bulkgrpc.client.connection import TENANT_METADATA
from bulkgrpc.errors import Reason
from bulkgrpc.limits import LEASE_TTL_S
from bulkgrpc.rpc_status import from_rpc_error
from bulkgrpc.v1 import ingest_pb2, ingest_pb2_grpc
from tests.chaos import evidence, trial
from tests.chaos.load import Load, Plan
from tests.chaos.proxy import Mood, Way
from tests.chaos.rig import Rig
from tests.chaos.test_mutants import begin
from tests.support.waiting import wait_for

BEFORE, LATE = 3, 2
"""Batches that are acknowledged before the pause, and those that are on their way to Kafka when it begins."""
WITHIN_S = 3.0 * LEASE_TTL_S
Request = ingest_pb2.StreamRecordsRequest


@pytest.fixture
def disguised(torn: Rig) -> Iterator[Rig]:
    yield torn
    torn.repair_ledger()
    torn.disguise("none")


@pytest.mark.timeout(180)
async def test_a_paused_server_acknowledges_nothing_of_a_job_that_ended_elsewhere(disguised: Rig) -> None:
    broken, refused, job = await supersede(disguised, "none")
    assert not broken
    assert refused is Reason.JOB_BUSY
    assert (job.state, job.counts.accepted, job.late_batches) == (JobState.SUCCEEDED, BEFORE * evidence.ROWS, LATE)


@pytest.mark.timeout(180)
async def test_acknowledgements_without_a_lease_break_p1(disguised: Rig) -> None:
    broken, _, job = await supersede(disguised, "acks_without_lease")
    assert broken == {"P1"}
    # Finality is the workers' part: it holds.
    assert (job.state, job.late_batches) == (JobState.SUCCEEDED, LATE)


async def supersede(rig: Rig, mutant: str) -> tuple[set[str], Reason | None, Job]:
    """Return the promises that are broken, how the paused stream is refused, and the job at the end.

    The client listens to the paused stream all the time, although it ends the job on another server meanwhile.
    """
    await asyncio.to_thread(rig.disguise, mutant)
    plan = await begin(rig, f"pause-{mutant[:4]}", BEFORE + LATE)
    kafka = rig.proxies["server-kafka"]
    async with trial.attended(rig, [plan]):
        with rig.another_server() as address:
            async with grpc.aio.insecure_channel(rig.address) as channel:
                stub = ingest_pb2_grpc.IngestServiceStub(channel)  # type: ignore[no-untyped-call]
                stream = stub.StreamRecords(metadata=[(TENANT_METADATA, plan.who)])
                await _send_first(rig, plan, stream)
                kafka.set(Mood(stalled=frozenset({Way.TO})))
                for sequence in range(BEFORE, BEFORE + LATE):
                    await stream.write(_batch(plan, sequence))
                await asyncio.to_thread(wait_for, lambda: False, 0.5)
                rig.signal(rig.server, signal.SIGSTOP)
                try:
                    await _end_elsewhere(rig, plan, address)
                finally:
                    rig.signal(rig.server, signal.SIGCONT)
                    kafka.set(Mood())
                refused = await _listen(rig, plan, stream)
            await trial.catch_up(rig, WITHIN_S)
            job = await _look(rig, plan, address)
    verdict = await asyncio.to_thread(trial.conclude, rig, time.monotonic())
    print(f"\n{verdict}\n" + "\n".join(map(str, verdict.violations)))
    return {violation.promise.name for violation in verdict.violations}, refused, job


async def _send_first(rig: Rig, plan: Plan, stream: Any) -> None:
    await stream.write(_header(plan))
    for sequence in range(BEFORE):
        await stream.write(_batch(plan, sequence))
    while (await _answer(rig, plan, stream)) < BEFORE:
        pass


async def _answer(rig: Rig, plan: Plan, stream: Any) -> int:
    """Return what the next answer acknowledges, 0 if nothing, and note it."""
    answer = await stream.read()
    if answer is grpc.aio.EOF:
        raise EOFError
    batches = int(answer.acknowledged.next_sequence) if answer.HasField("acknowledged") else 0
    if batches:
        rig.history.note(plan.who, "acknowledged", key=plan.key, batches=batches)
    return batches


async def _listen(rig: Rig, plan: Plan, stream: Any) -> Reason | None:
    """Note what a stream still acknowledges; return how it is refused, None if it acknowledges everything."""
    try:
        async with asyncio.timeout(WITHIN_S):
            while (await _answer(rig, plan, stream)) < BEFORE + LATE:
                pass
    except grpc.aio.AioRpcError as error:
        found = from_rpc_error(error)
        return None if found is None else found.reason
    except EOFError:
        raise AssertionError(f"the stream ended with {await stream.code()}") from None
    return None


async def _end_elsewhere(rig: Rig, plan: Plan, address: str) -> None:
    """Seal the job after the batches that were acknowledged, as its client would that reconnects; note the end.

    Returns once the paused server's lease has run out: it has had none since the other server acquired it.
    """
    paused_s = time.monotonic()
    async with grpc.aio.insecure_channel(address) as channel:
        stub = ingest_pb2_grpc.IngestServiceStub(channel)  # type: ignore[no-untyped-call]
        requests = [_header(plan), Request(seal=ingest_pb2.Seal(batch_count=BEFORE))]
        metadata = [(TENANT_METADATA, plan.who)]
        answers = [answer async for answer in stub.StreamRecords(iter(requests), metadata=metadata, timeout=WITHIN_S)]
    assert answers[0].opened.job.next_sequence == BEFORE
    async with AsyncBulkClient(address, tenant=plan.who) as client:
        _note(rig, plan, await client.job(answers[-1].sealed.job.name).wait(deadline_s=WITHIN_S))
    # Not longer than Kafka's client keeps what it could not send: the late batches must arrive.
    await asyncio.sleep(LEASE_TTL_S + 1 - (time.monotonic() - paused_s))


async def _look(rig: Rig, plan: Plan, address: str) -> Job:
    """Return the job once its late batches have arrived, and note what it reports."""
    async with AsyncBulkClient(address, tenant=plan.who) as client:
        name = f"tenants/{plan.who}/jobs/{evidence.job_id(plan.who, plan.key)}"
        job = await client.get_job(name)
    _note(rig, plan, job)
    return job


def _note(rig: Rig, plan: Plan, job: Job) -> None:
    counts = {name: getattr(job.counts, name) for name in ("accepted", "written", "duplicate", "rejected", "expired")}
    rig.history.note(plan.who, "job", key=plan.key, state=int(job.state), **counts)


def _header(plan: Plan) -> Request:
    name = f"datasets/{plan.dataset}"
    return Request(header=ingest_pb2.JobHeader(dataset=name, idempotency_key=plan.key, session_id="one"))


def _batch(plan: Plan, sequence: int) -> Request:
    payload = Load.payload(plan, sequence)
    found = ingest_pb2.RecordBatch.FromString(payload)
    found.sequence = sequence
    return Request(batch=found)
