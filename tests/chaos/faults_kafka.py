"""Faults of Kafka: killed, frozen, restarted; the group's offsets deleted; messages read again; transactions."""

from __future__ import annotations

import asyncio
import random
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime

from confluent_kafka import Producer

from bulkgrpc.kafka.message import to_headers
from bulkgrpc.model import JobKey, JobSpec, Kind, Message
from bulkgrpc.stack.part import Part
from tests.chaos.fault import Fault, Hurt, repeating
from tests.chaos.hole import cut, provable, read_unapplied
from tests.chaos.load import PARTITIONS, Gate, Load, Plan
from tests.chaos.rig import GROUP, TOPIC, Rig
from tests.support import examples
from tests.support.waiting import wait_for

REPLAYED_MAX = 2000
DELETED_WITHIN_S = 60.0
LOST_WITHIN_S = 30.0
STEADY_BATCHES = 10
STEADY_PAUSE_S = 0.2
STEADY_S = 60.0
TRANSACTION_S = 10.0
TRANSACTION_EVERY_S = 0.1
_DELETE_GROUP = """
import sys
from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import AdminClient
_, servers, group = sys.argv
admin = AdminClient({"bootstrap.servers": servers, "log_level": 0})
try:
    admin.delete_consumer_groups([group], request_timeout=10)[group].result(15)
except KafkaException as error:
    if error.args[0].code() != KafkaError.GROUP_ID_NOT_FOUND:  # an earlier call did it, whose answer was lost
        raise
"""


def _down(number: signal.Signals) -> Hurt:
    @contextmanager
    def hurt(rig: Rig, _: random.Random) -> Iterator[None]:
        part = rig.stack.part("kafka")
        if number is signal.SIGKILL:
            part.kill()
        else:
            part.stop()
        yield
        part.start()

    return hurt


@contextmanager
def _frozen(rig: Rig, _: random.Random) -> Iterator[None]:
    part = rig.stack.part("kafka")
    part.kill(signal.SIGSTOP)
    try:
        yield
    finally:
        part.kill(signal.SIGCONT)


@contextmanager
def _offsets_deleted(rig: Rig, _: random.Random) -> Iterator[None]:
    """The group must be empty for this: all workers end, and are restarted."""
    with rig.untended(*rig.workers):
        for worker in rig.workers:
            worker.kill(signal.SIGTERM)
        _delete_group(rig.stack.addresses.kafka)
    rig.tend()
    yield


def _delete_group(bootstrap_servers: str) -> None:
    """Delete the group's offsets, as often as it takes.

    In a process of its own: librdkafka aborts the process if the coordinator's connection breaks meanwhile
    (confluentinc/librdkafka, pull request 5397).
    """
    ends_at_s = time.monotonic() + DELETED_WITHIN_S
    call = [sys.executable, "-c", _DELETE_GROUP, bootstrap_servers, GROUP]
    while subprocess.run(call, timeout=DELETED_WITHIN_S, check=False).returncode:
        if time.monotonic() > ends_at_s:
            raise TimeoutError("the group's offsets were not deleted")


def replay(rig: Rig, from_offset: int) -> None:
    """Set the offsets of the ledger back, as if an older copy of that one table had been restored."""
    rig.history.note("rig", "fault", name="replay", phase="ledger set back")
    with rig.database() as connection, connection.transaction():
        connection.execute("SET LOCAL session_replication_role = replica")  # no trigger: this is no move of a worker
        connection.execute(
            "WITH back AS (UPDATE bulk.offsets SET next_offset = greatest(least(next_offset, %(from)s), "
            "next_offset - %(most)s) RETURNING partition, next_offset) "
            "INSERT INTO chaos.moves (partition, from_offset, to_offset, owner_epoch) "
            "SELECT partition, next_offset, next_offset, -1 FROM back",
            {"from": from_offset, "most": REPLAYED_MAX},
        )


@contextmanager
def _replayed(rig: Rig, _: random.Random) -> Iterator[None]:
    replay(rig, 0)
    yield
    rig.history.note("rig", "fault", name="replay", phase="over")


@contextmanager
def _transactions(rig: Rig, chance: random.Random) -> Iterator[None]:
    """Another program writes transactions to every partition, and commits or aborts each."""
    producer = Producer(
        {"bootstrap.servers": rig.stack.addresses.kafka, "transactional.id": uuid.uuid4().hex, "log_level": 0}
    )
    producer.init_transactions(TRANSACTION_S)
    before = sum(rig.ends().values())

    def transaction() -> None:
        commits = chance.random() < 0.5
        # After a gap: such a batch was never acknowledged, and is not applied. An aborted one would be.
        job = JobSpec(JobKey.derive("foreign", "k"), "k", "sensor_readings", 1)
        message = Message(Kind.BATCH, job, 0, int(commits), 10, 0, datetime.now(UTC))
        producer.begin_transaction()
        for partition in range(PARTITIONS):
            producer.produce(TOPIC, examples.reading_batch(0, 10), b"foreign", partition, headers=to_headers(message))
        producer.flush(TRANSACTION_S)
        end = producer.commit_transaction if commits else producer.abort_transaction
        end(TRANSACTION_S)

    with repeating(transaction, TRANSACTION_EVERY_S):
        yield
    assert sum(rig.ends().values()) > before + 2 * PARTITIONS, "no transaction was written"
    stopped = [worker.log.stem for worker in rig.workers if "partition_stopped" in worker.log.read_text()]
    assert not stopped, f"{stopped} took control records for lost messages"


def losing_a_batch(*, seen: bool = True) -> Hurt:
    """Have the log lose a batch that no worker has applied, and that later messages say was stored.

    seen: whether the loss must be seen: a job fails for it.
    """

    @contextmanager
    def hurt(rig: Rig, chance: random.Random) -> Iterator[None]:
        part, before = rig.stack.part("kafka"), _losses(rig)
        with ExitStack() as stack:
            with rig.untended(*rig.workers):
                for worker in rig.workers:
                    worker.kill(signal.SIGKILL)
                stack.enter_context(_steady(rig, chance))
                lost = _lose(rig, part, chance)
            assert lost, "no record batch was cut out"
            rig.history.note("rig", "fault", name="batch lost", phase="begun", places=lost)
            rig.tend()
            yield
            if seen:
                assert wait_for(lambda: _losses(rig) > before, LOST_WITHIN_S), f"no job failed for the loss of {lost}"

    return hurt


@contextmanager
def _steady(rig: Rig, chance: random.Random) -> Iterator[None]:
    """A client sends batches one by one, so that each message says that those before it were stored."""
    who = f"steady-{chance.randrange(10**9)}"
    gate = Gate(pause_s=STEADY_PAUSE_S)
    gate.healed.set()
    plan = Plan(who, who, chance.randrange(10**6) * 10**6, STEADY_BATCHES)
    running = threading.Thread(target=asyncio.run, args=(Load(rig.address, rig.history, gate).one(plan, STEADY_S),))
    running.start()
    try:
        yield
    finally:
        running.join()


def _lose(rig: Rig, part: Part, chance: random.Random) -> dict[int, tuple[int, int]]:
    """Cut a record batch out of the log of each partition that has one; return their first and last offsets."""

    def unapplied() -> dict[int, set[int]]:
        return {place: found for place, messages in read_unapplied(rig).items() if (found := provable(messages))}

    assert wait_for(lambda: bool(unapplied()), LOST_WITHIN_S), "no message says that one before it was stored"
    offsets = unapplied()
    part.stop()
    cuts = {place: cut(part.directory / "data" / f"{TOPIC}-{place}", found, chance) for place, found in offsets.items()}
    part.start()
    return {place: found for place, found in cuts.items() if found is not None}


def _losses(rig: Rig) -> int:
    """Return how often a job has failed for a loss."""
    with rig.database() as connection:
        row = connection.execute("SELECT coalesce(sum(attempt + lost::integer), 0) FROM bulk.jobs").fetchone()
    return int(row[0]) if row else 0


KAFKA_FAULTS = (
    Fault("kafka: SIGKILL", "kafka", _down(signal.SIGKILL)),
    Fault("kafka: SIGSTOP", "kafka", _frozen, 5.0),
    Fault("kafka: clean restart", "kafka", _down(signal.SIGTERM)),
    Fault("kafka: group offsets deleted", "group", _offsets_deleted),
    Fault("kafka: partitions replayed from 0", "group", _replayed),
    Fault("kafka: transactions in the topic", "kafka", _transactions, 3.0),
    Fault("kafka: a stored batch vanishes", "kafka", losing_a_batch()),
)
