"""Probes of a Kafka broker: whether it answers."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from types import MappingProxyType

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient


def why_not_ready(
    host: str, port: int, timeout_s: float, properties: Mapping[str, str] = MappingProxyType({})
) -> str | None:
    """Fetch the cluster's metadata from a broker. Return None if a broker is registered, or else the reason.

    timeout_s: time limit for connecting, and again for the request. properties: of librdkafka, such as its security.
    """
    try:
        # librdkafka retries a refused connection until its own timeout: a plain socket reports it at once.
        socket.create_connection((host, port), timeout_s).close()
        client = AdminClient({"bootstrap.servers": f"{host}:{port}", "log_level": 0, **properties})
        brokers = client.list_topics(timeout=timeout_s)
    except (OSError, KafkaException) as error:
        return str(error)
    return None if brokers.brokers else "the broker is not registered"
