"""Faults of Kafka: killed, frozen, restarted; the offsets of the group deleted; messages read again."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from tests.chaos.fault import Fault, Hurt
from tests.chaos.rig import GROUP, Rig

REPLAYED_MAX = 2000
DELETED_WITHIN_S = 60.0
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


KAFKA_FAULTS = (
    Fault("kafka: SIGKILL", "kafka", _down(signal.SIGKILL)),
    Fault("kafka: SIGSTOP", "kafka", _frozen, 5.0),
    Fault("kafka: clean restart", "kafka", _down(signal.SIGTERM)),
    Fault("kafka: group offsets deleted", "group", _offsets_deleted),
    Fault("kafka: partitions replayed from 0", "group", _replayed),
)
