"""The worker's consumer on real Kafka: what it prefetches, and messages that are larger than a fetch."""

from __future__ import annotations

import time
import uuid

import pytest
from confluent_kafka import Producer

from bulkgrpc import limits
from bulkgrpc.consume.assembly import Fetched
from bulkgrpc.kafka.administration import KafkaAdministration
from bulkgrpc.kafka.consumer import FETCH_BYTES_MAX, RecordsConsumer
from bulkgrpc.kafka.message import to_headers
from bulkgrpc.kafka.topics import ensure_topic
from bulkgrpc.settings import WorkerSettings, load
from bulkgrpc.stack import Addresses
from tests.support.worker_ports import seal

PARTITIONS = 3
LARGEST_BYTES = limits.KAFKA_MESSAGE_BYTES_MAX - limits.MESSAGE_OVERHEAD_BYTES
TIMEOUT_S = 60.0


@pytest.mark.parametrize("protocol", ["consumer", "classic"])
def test_messages_larger_than_a_fetch_are_fetched_in_every_partition_in_order(
    addresses: Addresses, protocol: str
) -> None:
    name = f"records-{uuid.uuid4().hex[:8]}"
    settings = load(
        WorkerSettings,
        kafka=addresses.kafka,
        topic=name,
        group=name,
        group_protocol=protocol,
        partitions=PARTITIONS,
    )
    ensure_topic(settings)
    sizes = [100, LARGEST_BYTES, 50_000, *[FETCH_BYTES_MAX // 3] * 5, LARGEST_BYTES, LARGEST_BYTES, 0]
    assert max(sizes) > 2 * FETCH_BYTES_MAX
    _produce(settings, sizes)
    consumer = RecordsConsumer(settings)
    consumer.join(lambda partitions: dict.fromkeys(partitions, 0), lambda _: None)
    found: dict[int, list[Fetched]] = {partition: [] for partition in range(PARTITIONS)}
    deadline_s = time.monotonic() + TIMEOUT_S
    try:
        while sum(map(len, found.values())) < PARTITIONS * len(sizes) and time.monotonic() < deadline_s:
            for message in consumer.fetch(50, 0.1):
                found[message.partition].append(message)
    finally:
        consumer.close(TIMEOUT_S)
        KafkaAdministration(addresses.kafka).delete_topics([name])
    for messages in found.values():
        assert [message.offset for message in messages] == list(range(len(sizes)))
        assert [len(message.payload) for message in messages] == sizes


def _produce(settings: WorkerSettings, sizes: list[int]) -> None:
    """Append messages with payloads of these sizes to each partition, each a batch of its own, not compressed."""
    producer = Producer(
        {"bootstrap.servers": settings.kafka, "message.max.bytes": limits.KAFKA_MESSAGE_BYTES_MAX, "linger.ms": 0}
    )
    message = seal(0, 0).message
    assert message is not None
    for size in sizes:
        for partition in range(settings.partitions):
            headers = to_headers(message)
            producer.produce(settings.topic, b"\xff" * size, b"acme", partition, headers=headers)
        assert producer.flush(TIMEOUT_S) == 0
