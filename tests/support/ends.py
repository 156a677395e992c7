"""Where the records topic ends."""

from __future__ import annotations

from confluent_kafka import TopicPartition
from confluent_kafka.admin import AdminClient
from confluent_kafka.admin._listoffsets import OffsetSpec


def end_offsets(bootstrap: str, topic: str, partitions: int) -> dict[int, int]:
    """Return the offset after the last message of each partition."""
    latest = OffsetSpec.latest()  # type: ignore[no-untyped-call]
    asked = {TopicPartition(topic, partition): latest for partition in range(partitions)}
    # A client of its own: one that knows an older leader's epoch is refused for a while, not told the newer one.
    admin = AdminClient({"bootstrap.servers": bootstrap, "log_level": 0})
    found = admin.list_offsets(asked, request_timeout=5)
    return {place.partition: future.result(5).offset for place, future in found.items()}
