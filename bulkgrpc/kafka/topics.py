"""The records topic: created if it is missing and may be, its partitions counted, its end offsets read."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

from confluent_kafka import KafkaError, KafkaException, TopicPartition
from confluent_kafka import admin as kafka_admin
from confluent_kafka.cimpl import NewTopic

from bulkgrpc import limits
from bulkgrpc.kafka.connection import Administrator, KafkaUnavailable
from bulkgrpc.settings import StackSettings

REQUEST_TIMEOUT_S = 10.0
ATTEMPT_S = 2.0
"""How long to wait for metadata until the connections are asked for what is wrong."""
LEADER_POLL_S = 0.05
_ADMIN: Any = kafka_admin  # the stubs do not export OffsetSpec
_LATEST = _ADMIN.OffsetSpec.latest()
_LEADER_MOVED = (
    KafkaError.NOT_LEADER_FOR_PARTITION,
    KafkaError.LEADER_NOT_AVAILABLE,
    KafkaError.FENCED_LEADER_EPOCH,
    KafkaError.UNKNOWN_LEADER_EPOCH,
    KafkaError.UNKNOWN_TOPIC_OR_PART,
)
_NO_RIGHT = (KafkaError.TOPIC_AUTHORIZATION_FAILED, KafkaError.CLUSTER_AUTHORIZATION_FAILED)


class TopicMissing(KafkaUnavailable):
    """Kafka does not have the topic, and it must not be created: the ledger knows of one with this name."""


class NoRight(KafkaUnavailable):
    """The user has no right that is needed. str() names the right and the topic."""


def ensure_topic(settings: StackSettings, may_create: Callable[[], bool] = lambda: True) -> int:
    """Create the records topic if it is missing and may be created; return its number of partitions.

    may_create: called if the topic is missing. Raises TopicMissing if it may not be created, NoRight, KafkaUnavailable
    if Kafka does not answer within REQUEST_TIMEOUT_S, and what `may_create` raises.
    """
    admin = Administrator(settings)
    topic = NewTopic(
        settings.topic,
        num_partitions=settings.partitions,
        replication_factor=settings.replication,
        config={"max.message.bytes": str(limits.KAFKA_MESSAGE_BYTES_MAX)},
    )
    if not exists(admin, topic):
        if not may_create():
            raise TopicMissing(
                f"Kafka at {settings.kafka} has no topic {settings.topic}, although the ledger has positions of it: "
                "acknowledged records may be lost; restore the topic, or create it with as many partitions, and run "
                "`bulkgrpc ledger adopt-topic`"
            )
        create(admin, topic)
    return count_partitions(admin, settings)


def exists(admin: Administrator, topic: NewTopic) -> bool:
    """Return whether Kafka has a topic of this name. Raises NoRight, KafkaUnavailable."""
    error = _metadata(admin, topic.topic).error
    if error is not None and error.code() in _NO_RIGHT:
        raise NoRight(
            f"Kafka does not show topic {topic.topic} to this user: if it exists, grant DESCRIBE on it, and READ for "
            f"workers, WRITE for servers; else create it: {_how_to_create(topic)}"
        )
    return error is None or error.code() != KafkaError.UNKNOWN_TOPIC_OR_PART


def create(admin: Administrator, topic: NewTopic) -> None:
    """Create a topic, unless it is there by now. Raises NoRight, KafkaUnavailable."""
    try:
        admin.client.create_topics([topic], request_timeout=REQUEST_TIMEOUT_S)[topic.topic].result(REQUEST_TIMEOUT_S)
    except KafkaException as error:
        code = error.args[0].code()
        if code in _NO_RIGHT:
            raise NoRight(
                f"Kafka has no topic {topic.topic}, and this user may not create it: "
                f"{_how_to_create(topic)}, or grant CREATE on it"
            ) from error
        if code != KafkaError.TOPIC_ALREADY_EXISTS:
            raise admin.unavailable(error) from error
    except TimeoutError as error:
        raise admin.unavailable(error) from error


def _how_to_create(topic: NewTopic) -> str:
    settings = "".join(f" --config {name}={value}" for name, value in (topic.config or {}).items())
    return f"`kafka-topics.sh --create --topic {topic.topic} --partitions {topic.num_partitions}{settings}`"


def count_partitions(admin: Administrator, settings: StackSettings) -> int:
    """Return the number of partitions of the records topic, once each has a leader.

    Raises KafkaUnavailable if Kafka does not answer within REQUEST_TIMEOUT_S, or a partition has no leader by then.
    """
    pause = threading.Event()
    deadline_s = time.monotonic() + REQUEST_TIMEOUT_S
    while True:
        found = _metadata(admin, settings.topic)
        leaders = [partition.leader for partition in found.partitions.values()]
        if found.error is None and leaders and min(leaders) >= 0:
            return len(leaders)
        if time.monotonic() > deadline_s:
            raise KafkaUnavailable(f"topic {settings.topic} has partitions without a leader: {found.error}")
        # A new topic reaches the brokers' metadata shortly after its creation is answered; Kafka reports no event.
        pause.wait(LEADER_POLL_S)


def _metadata(admin: Administrator, topic: str) -> Any:
    """Return what Kafka says of a topic, as soon as it does. Raises KafkaUnavailable, soon if connections fail."""
    give_up_s = time.monotonic() + REQUEST_TIMEOUT_S
    while True:
        try:
            return admin.client.list_topics(topic, timeout=ATTEMPT_S).topics[topic]
        except KafkaException as error:
            if time.monotonic() > give_up_s or admin.connections_failed():
                raise admin.unavailable(error) from error


def end_offsets(settings: StackSettings) -> dict[int, int]:
    """Return the end of each partition of the records topic: the offset that its next message will have.

    Raises KafkaUnavailable if Kafka does not answer within REQUEST_TIMEOUT_S.
    """
    pause = threading.Event()
    give_up_s = time.monotonic() + REQUEST_TIMEOUT_S
    while True:
        # A new one each time: it may remember an earlier leader.
        admin = Administrator(settings)
        partitions = count_partitions(admin, settings)
        queries = {TopicPartition(settings.topic, number): _LATEST for number in range(partitions)}
        try:
            found = admin.client.list_offsets(queries, request_timeout=REQUEST_TIMEOUT_S)
            return {asked.partition: answer.result(REQUEST_TIMEOUT_S).offset for asked, answer in found.items()}
        except (KafkaException, TimeoutError) as error:
            moved = isinstance(error, KafkaException) and error.args[0].code() in _LEADER_MOVED
            if not moved or time.monotonic() > give_up_s:
                raise KafkaUnavailable(
                    f"Kafka at {settings.kafka} does not report the end offsets of {settings.topic}: {error}"
                ) from error
        pause.wait(LEADER_POLL_S)
