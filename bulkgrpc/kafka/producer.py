"""The producer of a server process: idempotent, acks=all. It reports deliveries to the event loop, in order."""

from __future__ import annotations

import asyncio
import collections
import os
import threading
from collections.abc import Callable

from confluent_kafka import KafkaError

from bulkgrpc import limits
from bulkgrpc.kafka.connection import producer
from bulkgrpc.kafka.message import to_headers
from bulkgrpc.model import Message
from bulkgrpc.settings import StackSettings

Delivered = Callable[[KafkaError | None], None]
POLL_S = 0.1
BATCH_BYTES = 1_000_000
"""librdkafka sends messages of a partition together up to this size; a larger one alone."""
METADATA_TIMEOUT_S = 5.0


class RecordsProducer:
    """Sends messages to the records topic. An async context manager that owns librdkafka's handle and polling thread.

    `fatal` is set after a fatal error of the idempotent producer, such as lost producer state at the broker. The
    producer cannot recover: the process must exit and be started again.
    """

    def __init__(self, settings: StackSettings, queue_bytes_max: int) -> None:
        self._topic = settings.topic
        self._producer = producer(
            settings,
            {
                # A topic that was deleted is not created again by sending to it.
                "allow.auto.create.topics": False,
                "enable.idempotence": True,
                "acks": "all",
                "message.max.bytes": limits.KAFKA_MESSAGE_BYTES_MAX,
                "delivery.timeout.ms": int(limits.DELIVERY_TIMEOUT_S * 1000),
                # More than the server's byte budget: the server stops reading from clients before this queue is full.
                "queue.buffering.max.kbytes": queue_bytes_max * 2 // 1024,
                "queue.buffering.max.messages": 100_000,
                "error_cb": self._on_error,
            },
            {
                "client.id": f"bulkgrpc-server-{os.getpid()}",
                # A message waits for no other: under load librdkafka batches those that queue behind a request.
                "linger.ms": 0,
                "batch.size": BATCH_BYTES,
                "compression.type": "lz4",
            },
        )
        self._completed: collections.deque[tuple[Delivered, KafkaError | None]] = collections.deque()
        self._drain_scheduled = False
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._poll, name="kafka-producer", daemon=True)
        self._loop: asyncio.AbstractEventLoop | None = None
        self.fatal: asyncio.Event = asyncio.Event()

    async def __aenter__(self) -> RecordsProducer:
        self._loop = asyncio.get_running_loop()
        self._thread.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        self._closing.set()
        await asyncio.to_thread(self._thread.join)
        await asyncio.to_thread(self._producer.flush, limits.DELIVERY_TIMEOUT_S)

    def send(self, partition: int, message: Message, payload: bytes, delivered: Delivered) -> None:
        """Queue a message; `delivered` is called on the event loop with None once every replica has it.

        It is called with an error if that does not happen within DELIVERY_TIMEOUT_S; the message may be stored
        anyway. Raises BufferError if librdkafka's queue is full, KafkaException after a fatal error.
        """
        self._producer.produce(
            self._topic,
            value=payload,
            key=message.spec.key.tenant.encode(),
            headers=to_headers(message),
            partition=partition,
            on_delivery=lambda error, _: self._complete(delivered, error),
        )

    def count_partitions(self) -> int:
        """Return how many partitions the topic has; the producer knows them then. Raises KafkaException."""
        return len(self._producer.list_topics(self._topic, timeout=METADATA_TIMEOUT_S).topics[self._topic].partitions)

    def _poll(self) -> None:
        while not self._closing.is_set():
            self._producer.poll(POLL_S)

    def _complete(self, delivered: Delivered, error: KafkaError | None) -> None:
        """Report a delivery. Called on the polling or flushing thread, in order."""
        self._completed.append((delivered, error))
        if not self._drain_scheduled and self._loop is not None and not self._loop.is_closed():
            self._drain_scheduled = True
            self._loop.call_soon_threadsafe(self._drain)

    def _drain(self) -> None:
        self._drain_scheduled = False
        while self._completed:
            delivered, error = self._completed.popleft()
            delivered(error)

    def _on_error(self, error: KafkaError) -> None:
        if error.fatal() and self._loop is not None:
            self._loop.call_soon_threadsafe(self.fatal.set)
