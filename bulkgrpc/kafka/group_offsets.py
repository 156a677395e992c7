"""What the consumer group committed: offsets, with the heartbeats of the ledger. Implements `GroupOffsets`."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from confluent_kafka import KafkaException, TopicPartition

from bulkgrpc.consume.heartbeat import Committed, Heartbeat
from bulkgrpc.consume.ports import RecordLogError
from bulkgrpc.kafka.connection import consumer
from bulkgrpc.kafka.consumer import closed_within
from bulkgrpc.settings import WorkerSettings

TIMEOUT_S = 2.0
"""The poll loop waits for it when it acquires partitions."""


class KafkaGroupOffsets:
    """Asks Kafka. Any thread may use it."""

    def __init__(self, settings: WorkerSettings) -> None:
        self._settings = settings

    def committed(self, partitions: Collection[int]) -> Mapping[int, Committed]:
        """Return what was committed of partitions; left out: nothing was. Raises RecordLogError."""
        # A consumer that never joins. A request of librdkafka's AdminClient to the group's coordinator can abort the
        # process if the connection breaks meanwhile, and after that be answered never again. A new one each time:
        # partitions are acquired when something happened to Kafka or to the group.
        reader = consumer(self._settings, {"group.id": self._settings.group, "enable.auto.commit": False})
        places = [TopicPartition(self._settings.topic, number) for number in sorted(partitions)]
        try:
            found = reader.committed(places, TIMEOUT_S)
        except KafkaException as error:
            raise RecordLogError(f"Kafka does not report the group's offsets: {error.args[0].str()}") from error
        finally:
            closed_within(reader, TIMEOUT_S)
        return {
            place.partition: Committed(place.offset, Heartbeat.from_note(place.metadata))
            for place in found
            if place.error is None and place.offset >= 0
        }
