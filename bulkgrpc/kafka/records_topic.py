"""The records topic as an operator's command uses it: reads the messages of one job, and sends some again."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import datetime
from types import TracebackType
from typing import Any

from confluent_kafka import KafkaError, KafkaException, TopicPartition

from bulkgrpc import limits
from bulkgrpc.consume.assembly import Fetched
from bulkgrpc.kafka.connection import KafkaUnavailable, consumer, producer
from bulkgrpc.kafka.consumer import fetched_of
from bulkgrpc.kafka.topics import REQUEST_TIMEOUT_S
from bulkgrpc.model import JobKey
from bulkgrpc.settings import StackSettings

SILENT_S = 10.0
"""How long Kafka may return nothing before a read is given up."""


class RecordsTopic:
    """A context manager. Every method raises KafkaUnavailable if Kafka does not answer in time."""

    def __init__(self, settings: StackSettings) -> None:
        self._topic = settings.topic
        self._consumer = consumer(
            settings,
            {
                "group.id": "bulkgrpc-dead-letters",
                "enable.auto.commit": False,
                "enable.partition.eof": True,
                "isolation.level": "read_committed",
                "auto.offset.reset": "error",
            },
        )
        self._producer = producer(
            settings,
            {
                "allow.auto.create.topics": False,
                "acks": "all",
                "enable.idempotence": True,
                "message.max.bytes": limits.KAFKA_MESSAGE_BYTES_MAX,
                "delivery.timeout.ms": int(limits.DELIVERY_TIMEOUT_S * 1000),
            },
        )
        self._failures: list[KafkaError] = []

    def __enter__(self) -> RecordsTopic:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._consumer.close()

    def first_from(self, partition: int, time: datetime) -> int:
        """Return the offset of a partition's first message that is not older than `time`, or of its end."""
        place = TopicPartition(self._topic, partition, int(time.timestamp() * 1000))
        try:
            found = self._consumer.offsets_for_times([place], REQUEST_TIMEOUT_S)[0].offset
        except KafkaException as error:
            raise self._unavailable(error) from error
        return found if found >= 0 else self._range(partition)[1]

    def read(self, partition: int, from_offset: int, job: JobKey) -> Iterator[Fetched]:
        """Yield the messages of a job from an offset up to the end that the partition has now, in order."""
        start, end = self._range(partition)
        offset, mark = max(from_offset, start), str(job.job_id).encode()
        self._consumer.assign([TopicPartition(self._topic, partition, offset)])
        deadline_s = time.monotonic() + SILENT_S
        while offset < end:
            messages: list[Any] = list(self._consumer.consume(500, 0.2))
            for message in messages:
                deadline_s = time.monotonic() + SILENT_S
                error = message.error()
                if error is not None and error.code() == KafkaError._PARTITION_EOF:
                    # What is left are control records.
                    offset = max(offset, message.offset())
                elif error is not None:
                    raise KafkaUnavailable(f"Kafka does not return partition {partition}: {error.str()}")
                else:
                    offset = message.offset() + 1
                    if offset <= end and dict(message.headers() or ()).get("job") == mark:
                        yield fetched_of(message)
            if time.monotonic() > deadline_s:
                raise KafkaUnavailable(f"Kafka returned nothing of partition {partition} for {SILENT_S:g} s")

    def send(self, partition: int, message: Fetched) -> None:
        """Send a message again, unchanged, behind those that were sent before."""
        headers: list[tuple[str, str | bytes | None]] = list(message.headers)
        while True:
            try:
                self._producer.produce(
                    self._topic, message.payload, message.key, partition, headers=headers, on_delivery=self._delivered
                )
            except BufferError:
                self._producer.poll(0.1)
            else:
                break
        self._producer.poll(0)

    def flush(self) -> None:
        """Return once Kafka has stored what was sent."""
        left = self._producer.flush(limits.DELIVERY_TIMEOUT_S)
        if left or self._failures:
            why = self._failures[0].str() if self._failures else "timed out"
            raise KafkaUnavailable(f"Kafka did not store every message on {self._topic}: {why}: run the command again")

    def _delivered(self, error: KafkaError | None, _: object) -> None:
        if error is not None:
            self._failures.append(error)

    def _range(self, partition: int) -> tuple[int, int]:
        try:
            start, end = self._consumer.get_watermark_offsets(TopicPartition(self._topic, partition), REQUEST_TIMEOUT_S)
        except KafkaException as error:
            raise self._unavailable(error) from error
        return start, end

    def _unavailable(self, error: KafkaException) -> KafkaUnavailable:
        return KafkaUnavailable(f"Kafka does not answer about topic {self._topic}: {error.args[0].str()}")
