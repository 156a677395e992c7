"""The record log of the ingest session, on Kafka. Adapter of the port `bulkgrpc.ingest.ports.RecordLog`."""

from __future__ import annotations

import asyncio
import uuid

from confluent_kafka import KafkaError, KafkaException

from bulkgrpc.consume.ports import RecordLogError
from bulkgrpc.ingest.ports import Delivered, RecordLogFull, RecordLogUnavailable
from bulkgrpc.kafka.partition import partitions_of
from bulkgrpc.kafka.producer import RecordsProducer
from bulkgrpc.kafka.topic_log import KafkaTopicLog
from bulkgrpc.model import Message


class KafkaRecordLog:
    """Appends messages with a producer that the process owns. partitions: of the records topic."""

    def __init__(self, producer: RecordsProducer, partitions: int) -> None:
        self._producer = producer
        self._partitions = partitions

    def partitions_of(self, tenant: str, lanes: int) -> tuple[int, ...]:
        """Return the tenant's partition and those after it, one per lane; at most all partitions."""
        return partitions_of(tenant, self._partitions, lanes)

    def append(self, partition: int, message: Message, payload: bytes, delivered: Delivered) -> None:
        """Hand a message to librdkafka. See `RecordLog.append`."""

        def report(error: KafkaError | None) -> None:
            delivered(None if error is None else RecordLogUnavailable(error.str()))

        try:
            self._producer.send(partition, message, payload, report)
        except BufferError as error:
            raise RecordLogFull("the queue of librdkafka is full") from error
        except KafkaException as error:
            raise RecordLogUnavailable(str(error.args[0])) from error


class KafkaTopicIdentity:
    """Asks Kafka for the ID of the topic, in a thread. Implements `bulkgrpc.ingest.ports.TopicIdentity`."""

    def __init__(self, log: KafkaTopicLog) -> None:
        self._log = log

    async def topic_id(self) -> uuid.UUID | None:
        """Return the topic's ID, None if there is no such topic. Raises RecordLogUnavailable."""
        try:
            return await asyncio.to_thread(self._log.topic_id)
        except RecordLogError as error:
            raise RecordLogUnavailable(str(error)) from error
