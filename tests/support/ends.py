"""The ends of the partitions of a topic."""

from __future__ import annotations

from confluent_kafka import KafkaError, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient
from confluent_kafka.admin._listoffsets import OffsetSpec

from tests.support.waiting import wait_for

ENDS_WITHIN_S = 20.0


def end_offsets(bootstrap: str, topic: str, partitions: int) -> dict[int, int]:
    """Return the end of each partition: the offset of its next message.

    A broker that was stalled becomes leader under a new epoch. Until its metadata is current, it refuses requests that
    name the old epoch, or the new one: those are tried again.
    """
    found: dict[int, int] = {}

    def asked() -> bool:
        try:
            found.update(_ends(bootstrap, topic, partitions))
        except KafkaException as error:
            if error.args[0].code() in (KafkaError.FENCED_LEADER_EPOCH, KafkaError.UNKNOWN_LEADER_EPOCH):
                return False
            raise
        return True

    assert wait_for(asked, ENDS_WITHIN_S), f"Kafka does not report the ends of {topic}"
    return found


def _ends(bootstrap: str, topic: str, partitions: int) -> dict[int, int]:
    latest = OffsetSpec.latest()  # type: ignore[no-untyped-call]
    asked = {TopicPartition(topic, partition): latest for partition in range(partitions)}
    # A new client each time: an old one remembers the epoch of an earlier leader.
    admin = AdminClient({"bootstrap.servers": bootstrap, "log_level": 0})
    found = admin.list_offsets(asked, request_timeout=5)
    return {place.partition: future.result(5).offset for place, future in found.items()}
