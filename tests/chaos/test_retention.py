"""Kafka's retention deletes what the ledger needs next: the partition stops, says so, and nothing is skipped."""

from __future__ import annotations

import asyncio
import signal

from confluent_kafka import TopicPartition

from bulkgrpc.kafka.partition import partition_of
from tests.chaos import checker, evidence, trial
from tests.chaos.load import PARTITIONS
from tests.chaos.rig import TOPIC, Rig
from tests.chaos.test_mutants import begin, put
from tests.support.waiting import wait_for

BATCHES = 100
STOPS_WITHIN_S = 40.0


async def lose_a_span(rig: Rig, mutant: str) -> set[str]:
    """Batches wait for stopped workers, the first ones are deleted, workers start, and more batches follow."""
    with rig.untended(*rig.workers):
        rig.mutant = mutant
        for worker in rig.workers:
            worker.kill(signal.SIGKILL)
        plan = await begin(rig, f"lost-{mutant[:6]}", BATCHES)
        rig.history.note("rig", "fault", name="retention", phase="begun")
        rig.history.note(plan.who, "acknowledged", key=plan.key, batches=BATCHES)
        await put(rig, plan, tuple(range(BATCHES)), seals=True)
        partition = partition_of(plan.who, PARTITIONS)
        place = TopicPartition(TOPIC, partition, rig.ends()[partition] - BATCHES // 2)
        rig.admin.delete_records([place])[place].result(10)
    rig.ended.clear()
    async with trial.attended(rig, [plan]):
        await asyncio.to_thread(wait_for, lambda: bool(rig.stopped()), STOPS_WITHIN_S / 2)
        await trial.catch_up(rig, 3.0)
    seen = evidence.collect(rig.postgres, rig.history)
    found = checker.check(seen)
    print("\n".join(map(str, found[:5])), checker.summarize(seen))
    return {violation.promise.name for violation in found}


async def test_a_silent_reset_breaks_p9(torn: Rig) -> None:
    assert "P9" in await lose_a_span(torn, "silent_reset")


async def test_the_partition_stops_and_the_worker_does_not(torn: Rig) -> None:
    assert not await lose_a_span(torn, "none")
    assert "messages_deleted" in torn.stopped().values()
    assert not any(code == 1 for _, code in torn.ended)
