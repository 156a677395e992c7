"""The checker must be able to fail: for each promise a protection is switched off, and the checker detects it."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime

import psutil
import pytest
from confluent_kafka import Producer

from bulkgrpc.client import AsyncBulkClient, Batch, ClientConfig
from bulkgrpc.kafka.message import to_headers
from bulkgrpc.kafka.partition import partition_of
from bulkgrpc.model import JobKey, JobSpec, Kind, Message, digest_of
from tests.chaos import checker, evidence, trial
from tests.chaos.datasets import APPENDED, BOUND, CHANGING, READINGS, deleted_by_next
from tests.chaos.evidence import Evidence
from tests.chaos.fault import Fault
from tests.chaos.faults_kafka import losing_a_batch
from tests.chaos.load import PARTITIONS, Load, Plan, draw_plans
from tests.chaos.plan import FAULTS
from tests.chaos.rig import TOPIC, Rig
from tests.chaos.trial import Verdict
from tests.support import examples
from tests.support.waiting import wait_for

SEED = 1
BATCHES = 10
LIVES_WITHIN_S = 15.0
PRESS_CLIENTS = 4
PRESS_BYTES = 100 << 20
PRESS_ROWS = 20_000
PRESS_S = 6.0
PRESS_BOUND_BYTES = 120 << 20
"""The budget of 16 MiB, a batch or two of each stream in gRPC's own buffers, and what the allocator keeps."""


@pytest.fixture
def disguised(torn: Rig) -> Iterator[Rig]:
    yield torn
    torn.worker_environment.clear()
    torn.repair_ledger()
    torn.disguise("none")


def broken(verdict: Verdict) -> set[str]:
    print(f"\n{verdict}\n" + "\n".join(map(str, verdict.violations[:3])))
    return {violation.promise.name for violation in verdict.violations}


REPORTED_LOST = "LOST_IN_KAFKA, although Kafka lost nothing"


async def attempt(rig: Rig, mutant: str, fault: Fault, within_s: float = LIVES_WITHIN_S) -> set[str]:
    """Run a trial under a mutant; return the promises that the checker sees broken.

    REPORTED_LOST is among them if a job reported lost batches: they are sent again, and nothing is missing at the end.
    """
    await asyncio.to_thread(rig.disguise, mutant)
    verdict = await trial.run(rig, f"m-{mutant.replace('_', '')}", fault, SEED, BATCHES, within_s)
    reported = {REPORTED_LOST} if any(event.kind == "lost" for event in verdict.evidence.events) else set[str]()
    return broken(verdict) | reported


async def test_without_the_fence_p5_is_broken(disguised: Rig) -> None:
    @contextmanager
    def taken_over(rig: Rig, _: random.Random) -> Iterator[None]:
        """Another owner acquires the partitions and advances; the worker does not know yet."""
        yield
        with rig.database() as connection, connection.transaction():
            connection.execute(
                "UPDATE bulk.offsets SET owner_epoch = owner_epoch + 1, next_offset = next_offset + 1000"
            )
        wait_for(lambda: False, 1)

    fault = Fault("taken over", "worker", taken_over)
    assert "P5" in await attempt(disguised, "no_fence", fault)


async def test_with_the_ledger_in_another_transaction_p1_is_broken(disguised: Rig) -> None:
    disguised.worker_environment["BULKGRPC_FAULT"] = "after_rows:kill:2"

    @contextmanager
    def unarmed(rig: Rig, _: random.Random) -> Iterator[None]:
        rig.worker_environment.clear()
        yield

    assert "P2" in await attempt(disguised, "ledger_apart", Fault("killed after the rows", "worker", unarmed))


async def test_with_the_end_of_an_atomic_job_apart_from_its_rows_p2_is_broken(disguised: Rig) -> None:
    disguised.worker_environment["BULKGRPC_FAULT"] = "task_before_commit:kill:1"

    @contextmanager
    def unarmed(rig: Rig, _: random.Random) -> Iterator[None]:
        rig.worker_environment.clear()
        yield

    assert "P2" in await attempt(disguised, "end_apart", Fault("killed after the rows", "worker", unarmed))


async def test_with_acknowledgements_before_delivery_p1_is_broken(disguised: Rig) -> None:
    @contextmanager
    def kafka_stops_and_the_server_dies(rig: Rig, _: random.Random) -> Iterator[None]:
        kafka = rig.stack.part("kafka")
        kafka.kill(signal.SIGSTOP)
        wait_for(lambda: False, 1)
        rig.signal(rig.server, signal.SIGKILL)
        yield
        kafka.kill(signal.SIGCONT)

    fault = Fault("Kafka stops, the server dies", "server", kafka_stops_and_the_server_dies)
    # A later message of the job says that what is missing was stored: the worker notices it, too.
    assert {"P1", REPORTED_LOST} & await attempt(disguised, "early_acknowledgement", fault)


async def test_without_the_sequence_check_p2_is_broken(disguised: Rig) -> None:
    assert {"P2"} <= await resend(disguised, "no_sequence", (0, 1, 2, 1, 2))


async def test_without_the_sequence_check_a_table_without_a_key_breaks_p2(disguised: Rig) -> None:
    assert {"P2"} <= await resend(disguised, "no_sequence", (0, 1, 2, 1, 2), APPENDED)


async def test_with_deletes_first_whatever_their_order_p2_is_broken(disguised: Rig) -> None:
    assert {"P2"} <= await resend(disguised, "deletes_first", (0, 1, 2), CHANGING)


async def test_without_the_sequence_check_deleted_rows_come_back(disguised: Rig) -> None:
    assert {"P2"} <= await resend(disguised, "no_sequence", (0, 1, 0), CHANGING)


@pytest.mark.parametrize("dataset", [APPENDED, BOUND, CHANGING])
async def test_with_all_protections_on_none_is_broken_of_any_dataset(disguised: Rig, dataset: str) -> None:
    assert not await resend(disguised, "none", (0, 1, 2, 1, 2, 0), dataset)


async def test_with_holes_allowed_p4_is_broken(disguised: Rig) -> None:
    assert {"P4"} <= await resend(disguised, "holes", (0, 2))


@pytest.mark.parametrize("sequences", [(0, 1, 2, 1, 2), (0, 2), (0, 2, 1, 2), (1,), (0, 0, 0)])
async def test_with_all_protections_on_none_is_broken(disguised: Rig, sequences: tuple[int, ...]) -> None:
    assert not await resend(disguised, "none", sequences)


async def test_without_waiting_for_the_disk_p3_is_broken(disguised: Rig) -> None:
    assert "P3" in await crash_after_the_end(disguised, "careless_commit")


async def test_an_end_that_was_told_outlives_a_crash_of_postgres(disguised: Rig) -> None:
    assert not await crash_after_the_end(disguised, "none")


async def test_without_reports_of_rejections_p6_is_broken(disguised: Rig) -> None:
    assert "P6" in await attempt(disguised, "silent_rejections", Fault("none", "none", calm_weather))


async def test_without_trying_again_p8_is_broken(disguised: Rig) -> None:
    @contextmanager
    def hung_up(rig: Rig, _: random.Random) -> Iterator[None]:
        yield
        with rig.database() as connection:
            for _turn in range(20):
                connection.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'bulkgrpc-worker'"
                )
                wait_for(lambda: False, 0.05)

    assert "P8" in await attempt(disguised, "no_retry", Fault("hung up", "postgres", hung_up), 5.0)


async def test_with_a_seal_that_passes_what_was_set_aside_p8_is_broken(disguised: Rig) -> None:
    fault = FAULTS["postgres: the registry forgets dataset versions"]
    # What the seal passed is found missing by what the seal says was stored.
    assert {"P8", REPORTED_LOST} & await attempt(disguised, "seal_passes", fault)


async def test_with_control_records_waited_for_p8_is_broken(disguised: Rig) -> None:
    assert "P8" in await attempt(disguised, "strict_offsets", FAULTS["kafka: transactions in the topic"], 5.0)


async def test_with_aborted_transactions_applied_p2_is_broken(disguised: Rig) -> None:
    assert "P2" in await attempt(disguised, "reads_aborted", FAULTS["kafka: transactions in the topic"])


async def test_with_a_position_that_outlives_a_restore_p1_is_broken(disguised: Rig) -> None:
    assert "P1" in await attempt(disguised, "trusts_its_position", FAULTS["postgres: restored to an earlier time"])


@pytest.mark.timeout(240)
async def test_with_losses_unseen_p11_is_broken(disguised: Rig) -> None:
    fault = Fault("a batch vanishes unseen", "kafka", losing_a_batch(seen=False))
    assert "P11" in await attempt(disguised, "blind_to_losses", fault)


async def test_without_a_byte_budget_p7_is_broken(disguised: Rig) -> None:
    assert "P7" in await press(disguised, "no_budget")


async def test_a_kafka_that_stands_still_does_not_fill_the_servers_memory(disguised: Rig) -> None:
    assert not await press(disguised, "none")


@contextmanager
def calm_weather(_: Rig, __: random.Random) -> Iterator[None]:
    yield


async def press(rig: Rig, mutant: str) -> set[str]:
    """Clients send as fast as they can while Kafka is frozen; return the broken promises about the server's bounds."""
    await asyncio.to_thread(rig.disguise, mutant)
    history = rig.renew_history(f"press-{mutant.replace('_', '')}")
    batch = Batch(examples.reading_batch(0, PRESS_ROWS), PRESS_ROWS)
    config = ClientConfig(buffer_bytes_max=PRESS_BYTES, retry_deadline_s=5)
    kafka, server = rig.stack.part("kafka"), psutil.Process(rig.server.pid)

    async def submit(number: int) -> None:
        batches = PRESS_BYTES // len(batch.payload)
        async with AsyncBulkClient(rig.address, tenant=f"press-{number}", config=config) as client:
            await client.submit("sensor_readings", [batch] * batches)

    before = server.memory_info().rss
    kafka.kill(signal.SIGSTOP)
    submissions = [asyncio.create_task(submit(number)) for number in range(PRESS_CLIENTS)]
    try:
        most = before
        for _ in range(20):
            await asyncio.sleep(PRESS_S / 20)
            most = max(most, server.memory_info().rss)
        history.note("server", "memory", grown_bytes=most - before, bound_bytes=PRESS_BOUND_BYTES)
    finally:
        for submission in submissions:
            submission.cancel()
        await asyncio.gather(*submissions, return_exceptions=True)
        kafka.kill(signal.SIGCONT)
    await trial.catch_up(rig, LIVES_WITHIN_S)
    found = checker.check(Evidence(history.events(), {}, {}))
    print("\n".join(map(str, found)))
    return {violation.promise.name for violation in found}


async def resend(rig: Rig, mutant: str, sequences: tuple[int, ...], dataset: str = READINGS) -> set[str]:
    """Put batches of these sequences on Kafka, as crashing servers and clients would; return the broken promises."""
    await asyncio.to_thread(rig.disguise, mutant)
    name = f"r{''.join(map(str, sequences))}-{mutant.replace('_', '')}-{dataset.partition('_')[0]}"
    plan = await begin(rig, name, max(sequences) + 1, dataset)
    await put(rig, plan, sequences)
    async with trial.attended(rig, [plan]):
        await trial.catch_up(rig, 2 * LIVES_WITHIN_S)
    return broken(await asyncio.to_thread(trial.conclude, rig, time.monotonic()))


async def begin(rig: Rig, name: str, batches: int, dataset: str = READINGS) -> Plan:
    """Begin a history of one job whose batches no client sends."""
    plan = replace(draw_plans(random.Random(name), name, batches)[0], dataset=dataset)
    history = rig.renew_history(plan.who)
    await asyncio.to_thread(evidence.clear, rig.postgres)
    what = {"key": plan.key, "base": plan.base, "batches": batches, "rows": evidence.ROWS, "bad": 0}
    history.note(plan.who, "submit", **what, left=plan.left, deleted_by_next=deleted_by_next(dataset))
    history.note(plan.who, "sent", key=plan.key, batches=batches)
    return plan


async def put(rig: Rig, plan: Plan, sequences: tuple[int, ...], *, seals: bool = False) -> None:
    """Produce messages as a server would, without its checks."""
    producer = Producer({"bootstrap.servers": rig.stack.addresses.kafka, "acks": "all", "log_level": 0})
    spec = JobSpec(JobKey.derive(plan.who, plan.key), plan.key, plan.dataset, 1)
    messages = []
    for sequence in sequences:
        payload = Load.payload(plan, sequence)
        digest = digest_of(payload)
        batch = Message(Kind.BATCH, spec, 0, sequence, evidence.ROWS, 0, datetime.now(UTC), digest=digest)
        messages.append((batch, payload))
    if seals:
        messages.append((Message(Kind.SEAL, spec, 0, len(sequences), 0, plan.batches, datetime.now(UTC)), b""))
    for message, payload in messages:
        partition = partition_of(plan.who, PARTITIONS)
        producer.produce(TOPIC, payload, plan.who.encode(), partition, headers=to_headers(message))
    assert await asyncio.to_thread(producer.flush, 10) == 0


async def crash_after_the_end(rig: Rig, mutant: str) -> set[str]:
    """A small job ends and a reader sees it. PostgreSQL is killed at once, and read again without workers.

    The WAL writer is stopped, so that PostgreSQL flushes nothing by itself.
    """
    await asyncio.to_thread(rig.disguise, mutant)
    plan = await begin(rig, f"crash-{mutant[:4]}", 1)
    with rig.database() as connection:
        row = connection.execute("SELECT pid FROM pg_stat_activity WHERE backend_type = 'walwriter'").fetchone()
        assert row is not None
        os.kill(row[0], signal.SIGSTOP)
    await put(rig, plan, (0,), seals=True)

    def ended() -> bool:
        trial.read_once(rig, [plan])
        return f'"{plan.who}/{plan.key}": [3,' in (rig.history.directory / "reader.jsonl").read_text()

    assert await asyncio.to_thread(wait_for, ended, LIVES_WITHIN_S)
    for worker in rig.workers:
        rig.signal(worker, signal.SIGSTOP)
    await asyncio.to_thread(rig.stack.part("postgres").kill)
    await asyncio.to_thread(rig.stack.part("postgres").start)
    await asyncio.to_thread(trial.read_once, rig, [plan])
    for worker in rig.workers:
        rig.signal(worker, signal.SIGCONT)
    await trial.catch_up(rig, LIVES_WITHIN_S)
    return broken(await asyncio.to_thread(trial.conclude, rig, time.monotonic()))
