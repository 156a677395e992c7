"""The topic is deleted and created again under load; partitions stop for it, and an operator adopts the new one."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

from confluent_kafka import KafkaException
from confluent_kafka.cimpl import NewTopic
from typer.testing import CliRunner

from bulkgrpc import limits
from bulkgrpc.cli.app import app
from tests.chaos.fault import Fault
from tests.chaos.load import PARTITIONS
from tests.chaos.rig import TOPIC, Rig
from tests.support.waiting import wait_for

STOPS_WITHIN_S = 30.0


def recreate(rig: Rig) -> None:
    """Delete the topic and create it again."""
    rig.admin.delete_topics([TOPIC])[TOPIC].result(10)
    wanted = NewTopic(TOPIC, PARTITIONS, 1, config={"max.message.bytes": str(limits.KAFKA_MESSAGE_BYTES_MAX)})

    def created() -> bool:
        try:
            rig.admin.create_topics([wanted])[TOPIC].result(10)
        except KafkaException:
            return False  # the name is not free yet
        return True

    assert wait_for(created, 30)


def adopt(rig: Rig) -> None:
    """Adopt the topic as an operator does. The ledger goes back by it, which is no move of a worker."""
    environment = {"BULKGRPC_KAFKA": rig.bootstrap, "BULKGRPC_POSTGRES": rig.postgres}
    result = CliRunner().invoke(app, ["ledger", "adopt-topic", "--yes"], env=environment)
    assert result.exit_code == 0, result.output
    print(result.output)
    with rig.database() as connection, connection.transaction():
        connection.execute("DELETE FROM chaos.moves WHERE to_offset < from_offset")
        connection.execute("UPDATE chaos.moves SET owner_epoch = -1")
    rig.history.note("rig", "fault", name="restored", phase="begun")


def replaced(*, stops: bool) -> Fault:
    """A topic that is created again. stops: whether partitions stop for it, so that an operator adopts it."""

    @contextmanager
    def hurt(rig: Rig, _: random.Random) -> Iterator[None]:
        rig.history.note("rig", "fault", name="topic replaced", phase="begun")
        recreate(rig)
        yield
        if stops:
            assert wait_for(lambda: set(rig.stopped().values()) == {"topic_replaced"}, STOPS_WITHIN_S)
            adopt(rig)

    return Fault("kafka: topic re-created", "kafka", hurt, 2.0)


TOPIC_REPLACED = replaced(stops=True)
