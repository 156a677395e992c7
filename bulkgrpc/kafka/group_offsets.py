"""What the consumer group committed: offsets, with the heartbeats of the ledger. Implements `GroupOffsets`."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from confluent_kafka import ConsumerGroupTopicPartitions, KafkaError, KafkaException, TopicPartition

from bulkgrpc.consume.heartbeat import Committed, Heartbeat
from bulkgrpc.consume.ports import RecordLogError
from bulkgrpc.kafka.connection import Administrator
from bulkgrpc.settings import WorkerSettings

TIMEOUT_S = 2.0
"""The poll loop waits for it when it acquires partitions."""


class KafkaGroupOffsets:
    """Asks Kafka. Any thread may use it."""

    def __init__(self, settings: WorkerSettings) -> None:
        self._group, self._topic = settings.group, settings.topic
        self._admin = Administrator(settings).client

    def committed(self, partitions: Collection[int]) -> Mapping[int, Committed]:
        """Return what was committed of partitions; left out: nothing was. Raises RecordLogError."""
        asked = ConsumerGroupTopicPartitions(
            self._group, [TopicPartition(self._topic, number) for number in sorted(partitions)]
        )
        try:
            answer = self._admin.list_consumer_group_offsets([asked], request_timeout=TIMEOUT_S)[self._group]
            found = answer.result(TIMEOUT_S + 1).topic_partitions or ()
        except KafkaException as error:
            if error.args[0].code() == KafkaError.GROUP_ID_NOT_FOUND:
                return {}
            raise RecordLogError(f"Kafka does not report the group's offsets: {error.args[0].str()}") from error
        except TimeoutError as error:
            raise RecordLogError("Kafka does not report the group's offsets in time") from error
        return {
            place.partition: Committed(place.offset, Heartbeat.from_note(place.metadata))
            for place in found
            if place.error is None and place.offset >= 0
        }
