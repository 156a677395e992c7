"""The records topic: created if it is missing and may be, its partitions counted, its end offsets read."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

from confluent_kafka import KafkaError, KafkaException, TopicPartition
from confluent_kafka import admin as kafka_admin
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from bulkgrpc import limits
from bulkgrpc.consume.ports import RecordLogError
from bulkgrpc.settings import StackSettings

REQUEST_TIMEOUT_S = 10.0
LEADER_POLL_S = 0.05
_LATEST: Any = vars(kafka_admin)["OffsetSpec"].latest()  # the stubs do not export it


class KafkaUnavailable(RecordLogError):
    """Kafka does not answer, or not in time."""


class TopicMissing(KafkaUnavailable):
    """Kafka does not have the topic, and it must not be created: the ledger knows of one with this name."""


def administrator(settings: StackSettings) -> AdminClient:
    """Return a client that never creates a topic by asking for it, as one of librdkafka does by default."""
    return AdminClient({"bootstrap.servers": settings.kafka, "allow.auto.create.topics": False, "log_level": 0})


def ensure_topic(settings: StackSettings, may_create: Callable[[], bool] = lambda: True) -> int:
    """Create the records topic if it is missing and may be created; return its number of partitions.

    may_create: called if the topic is missing. Raises TopicMissing if it may not be created, KafkaUnavailable if Kafka
    does not answer within REQUEST_TIMEOUT_S, and what `may_create` raises.
    """
    admin = administrator(settings)
    try:
        found = admin.list_topics(settings.topic, timeout=REQUEST_TIMEOUT_S).topics[settings.topic]
    except KafkaException as error:
        raise KafkaUnavailable(f"Kafka at {settings.kafka} does not answer: {error.args[0].str()}") from error
    if found.error is not None and found.error.code() == KafkaError.UNKNOWN_TOPIC_OR_PART:
        if not may_create():
            raise TopicMissing(
                f"Kafka at {settings.kafka} has no topic {settings.topic}, although the ledger has positions of it: "
                "acknowledged records may be lost; restore the topic, or create it with as many partitions, and run "
                "`bulkgrpc ledger adopt-topic`"
            )
        _create(admin, settings)
    return count_partitions(admin, settings)


def _create(admin: AdminClient, settings: StackSettings) -> None:
    topic = NewTopic(
        settings.topic,
        num_partitions=settings.partitions,
        replication_factor=settings.replication,
        config={"max.message.bytes": str(limits.KAFKA_MESSAGE_BYTES_MAX)},
    )
    try:
        admin.create_topics([topic], request_timeout=REQUEST_TIMEOUT_S)[settings.topic].result(REQUEST_TIMEOUT_S)
    except KafkaException as error:
        if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
            raise KafkaUnavailable(f"Kafka at {settings.kafka} does not answer: {error.args[0].str()}") from error
    except TimeoutError as error:
        raise KafkaUnavailable(f"Kafka at {settings.kafka} does not answer") from error


def count_partitions(admin: AdminClient, settings: StackSettings) -> int:
    """Return the number of partitions of the records topic, once each has a leader.

    Raises KafkaUnavailable if Kafka does not answer within REQUEST_TIMEOUT_S, or a partition has no leader by then.
    """
    pause = threading.Event()
    deadline_s = time.monotonic() + REQUEST_TIMEOUT_S
    while True:
        try:
            found = admin.list_topics(settings.topic, timeout=REQUEST_TIMEOUT_S).topics[settings.topic]
        except KafkaException as error:
            raise KafkaUnavailable(f"Kafka at {settings.kafka} does not answer: {error.args[0].str()}") from error
        leaders = [partition.leader for partition in found.partitions.values()]
        if found.error is None and leaders and min(leaders) >= 0:
            return len(leaders)
        if time.monotonic() > deadline_s:
            raise KafkaUnavailable(f"topic {settings.topic} has partitions without a leader: {found.error}")
        # A new topic reaches the brokers' metadata shortly after its creation is answered; Kafka reports no event.
        pause.wait(LEADER_POLL_S)


def end_offsets(settings: StackSettings) -> dict[int, int]:
    """Return the end of each partition of the records topic: the offset that its next message will have.

    Raises KafkaUnavailable if Kafka does not answer within REQUEST_TIMEOUT_S.
    """
    admin = administrator(settings)
    partitions = count_partitions(admin, settings)
    queries = {TopicPartition(settings.topic, number): _LATEST for number in range(partitions)}
    try:
        found = admin.list_offsets(queries, request_timeout=REQUEST_TIMEOUT_S)
        return {asked.partition: answer.result(REQUEST_TIMEOUT_S).offset for asked, answer in found.items()}
    except (KafkaException, TimeoutError) as error:
        raise KafkaUnavailable(
            f"Kafka at {settings.kafka} does not report the end offsets of {settings.topic}: {error}"
        ) from error
