"""Administrative requests that a measurement needs: delete topics and records, inspect a consumer group."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from confluent_kafka import ConsumerGroupState, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient

from bulkgrpc.kafka.connection import KafkaUnavailable
from bulkgrpc.kafka.topics import REQUEST_TIMEOUT_S


class KafkaAdministration:
    """Administrative requests to one cluster. Every method raises KafkaUnavailable if a request fails.

    bootstrap_servers: `host:port`, separated by commas.
    """

    def __init__(self, bootstrap_servers: str) -> None:
        self._servers = bootstrap_servers
        self._admin = AdminClient({"bootstrap.servers": bootstrap_servers, "log_level": 0})

    def delete_topics(self, names: Collection[str]) -> None:
        """Delete those of the topics that exist."""
        try:
            existing = set(names) & self._admin.list_topics(timeout=REQUEST_TIMEOUT_S).topics.keys()
            if existing:
                for deleted in self._admin.delete_topics(list(existing)).values():
                    deleted.result(REQUEST_TIMEOUT_S)
        except (KafkaException, TimeoutError) as error:
            raise self._unavailable(error) from error

    def delete_records(self, topic: str, next_offsets: Mapping[int, int]) -> None:
        """Delete a topic's records before these offsets. next_offsets: by partition; 0 deletes nothing."""
        before = [TopicPartition(topic, partition, offset) for partition, offset in next_offsets.items() if offset]
        if not before:
            return
        try:
            for deleted in self._admin.delete_records(before).values():
                deleted.result(REQUEST_TIMEOUT_S)
        except (KafkaException, TimeoutError) as error:
            raise self._unavailable(error) from error

    def stable_assignment(self, group: str) -> list[list[int]] | None:
        """Return the partitions of each member of a consumer group, sorted; None while the group rebalances."""
        try:
            found = self._admin.describe_consumer_groups([group])[group].result(REQUEST_TIMEOUT_S)
        except (KafkaException, TimeoutError) as error:
            raise self._unavailable(error) from error
        if found.state != ConsumerGroupState.STABLE:
            return None
        return sorted(sorted(place.partition for place in one.assignment.topic_partitions) for one in found.members)

    def _unavailable(self, error: Exception) -> KafkaUnavailable:
        return KafkaUnavailable(f"Kafka at {self._servers} did not answer a request: {error}")
