"""Whether the records topic is configured as the service needs it: who creates topics is often somebody else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from confluent_kafka import KafkaError, KafkaException
from confluent_kafka import admin as kafka_admin
from confluent_kafka.cimpl import RESOURCE_TOPIC

from bulkgrpc.kafka.connection import Administrator, KafkaUnavailable
from bulkgrpc.kafka.topics import REQUEST_TIMEOUT_S
from bulkgrpc.limits import DAY_S, MESSAGE_OVERHEAD_BYTES
from bulkgrpc.settings import StackSettings

_ADMIN: Any = kafka_admin  # the stubs do not export ConfigResource
_ConfigResource = _ADMIN.ConfigResource


@dataclass(frozen=True, slots=True)
class Problem:
    """A property of the topic that harms. reason: what happens, and the way out. refused: whether no server may run."""

    name: str
    value: str
    reason: str
    refused: bool


def problems_of(topic: str, config: Mapping[str, str], replicas: int, batch_bytes_max: int) -> list[Problem]:
    """Return what is wrong with a topic's configuration. batch_bytes_max: of a batch that a server accepts."""

    def alter(setting: str) -> str:
        return f"`kafka-configs.sh --alter --entity-type topics --entity-name {topic} --add-config {setting}`"

    found = []

    def add(name: str, reason: str, *, refused: bool = False) -> None:
        found.append(Problem(name, config[name], f"{name}={config[name]} of topic {topic}: {reason}", refused))

    if "compact" in config.get("cleanup.policy", ""):
        lost = "Kafka would delete acknowledged batches, all but a tenant's last one"
        add("cleanup.policy", f"{lost}: {alter('cleanup.policy=delete')}", refused=True)
    bytes_needed = batch_bytes_max + MESSAGE_OVERHEAD_BYTES
    bytes_max = int(config.get("max.message.bytes", bytes_needed))
    if bytes_max < bytes_needed:
        way = alter(f"max.message.bytes={bytes_needed}")
        if (smaller := bytes_max - MESSAGE_OVERHEAD_BYTES) > 0:
            way += f", or set BULKGRPC_BATCH_BYTES_MAX to {smaller} or less"
        add(
            "max.message.bytes",
            f"Kafka would refuse a batch of BULKGRPC_BATCH_BYTES_MAX ({batch_bytes_max}) and its headers: {way}",
            refused=True,
        )
    in_sync = int(config.get("min.insync.replicas", "1"))
    if in_sync > replicas:
        add("min.insync.replicas", f"it has {replicas} replicas, so Kafka refuses every batch: lower it", refused=True)
    elif in_sync == 1 and replicas > 1:
        add("min.insync.replicas", f"the loss of one broker can lose batches: {alter('min.insync.replicas=2')}")
    if config.get("unclean.leader.election.enable") == "true":
        way = alter("unclean.leader.election.enable=false")
        add("unclean.leader.election.enable", f"a broker that lags can lead, and lose batches: {way}")
    if 0 <= int(config.get("retention.ms", "-1")) < DAY_S * 1000:
        way = alter("retention.ms=259200000")
        add("retention.ms", f"Kafka deletes batches that workers could not write for so long: {way}")
    if int(config.get("retention.bytes", "-1")) >= 0:
        way = alter("retention.bytes=-1")
        add("retention.bytes", f"Kafka deletes batches that are not written yet, if there are more: {way}")
    return found


def read(admin: Administrator, topic: str) -> tuple[Mapping[str, str], int] | None:
    """Return a topic's configuration and its number of replicas; None without the right DESCRIBE_CONFIGS on it.

    Raises KafkaUnavailable.
    """
    try:
        asked = admin.client.describe_configs(
            [_ConfigResource(RESOURCE_TOPIC, topic)], request_timeout=REQUEST_TIMEOUT_S
        )
        (answer,) = asked.values()
        config = {name: entry.value for name, entry in answer.result(REQUEST_TIMEOUT_S).items()}
        partitions = admin.client.list_topics(topic, timeout=REQUEST_TIMEOUT_S).topics[topic].partitions
    except KafkaException as error:
        if error.args[0].code() == KafkaError.TOPIC_AUTHORIZATION_FAILED:
            return None
        raise admin.unavailable(error) from error
    except TimeoutError as error:
        raise KafkaUnavailable(f"Kafka does not return the configuration of topic {topic} in time") from error
    return config, min((len(one.replicas) for one in partitions.values()), default=1)


def message_bytes_max(settings: StackSettings) -> int | None:
    """Return max.message.bytes of the records topic; None if it is not known now."""
    try:
        found = read(Administrator(settings), settings.topic)
    except KafkaUnavailable:
        return None
    return None if found is None else int(found[0]["max.message.bytes"])


def problems(settings: StackSettings, batch_bytes_max: int) -> list[Problem] | None:
    """Return what is wrong with the records topic; None without the right to know. Raises KafkaUnavailable."""
    found = read(Administrator(settings), settings.topic)
    return None if found is None else problems_of(settings.topic, *found, batch_bytes_max)
