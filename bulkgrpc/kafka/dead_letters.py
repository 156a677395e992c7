"""The dead-letter topic: messages that nobody can place, with the reason and where they came from.

It is a log: a letter is settled by a later note on the same topic that names its offset and how. Whatever is not
settled is still to be looked at.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from confluent_kafka import Consumer, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import KafkaError, NewTopic

from bulkgrpc import limits
from bulkgrpc.kafka.consumer import Fetched
from bulkgrpc.kafka.topics import REQUEST_TIMEOUT_S, KafkaUnavailable
from bulkgrpc.settings import StackSettings

Settlement = Literal["redriven", "discarded"]
_PREFIX = "dead-letter-"
_PARTITION = 0
_READ_S = 10.0


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A message that nobody could place.

    offset: its place on the dead-letter topic. source: where it was read. digest: SHA-256 of the payload, hexadecimal.
    """

    offset: int
    reason: str
    source_topic: str
    source_partition: int
    source_offset: int
    digest: str
    headers: tuple[tuple[str, bytes], ...]
    key: bytes
    payload: bytes


class DeadLetters:
    """Writes to and reads from the dead-letter topic, made if it is missing. Use from one thread.

    Every method raises KafkaUnavailable if Kafka does not answer in time.
    """

    def __init__(self, settings: StackSettings) -> None:
        self._settings = settings
        self._topic = settings.dead_letter_topic
        self._producer = Producer(
            {
                "bootstrap.servers": settings.kafka,
                "enable.idempotence": True,
                "message.max.bytes": 2 * limits.KAFKA_MESSAGE_BYTES_MAX,
                "delivery.timeout.ms": int(limits.DELIVERY_TIMEOUT_S * 1000),
                "log_level": 0,
            }
        )
        self._ensure_topic()

    def add(self, message: Fetched, reason: str) -> None:
        """Put a message on the topic; returns once every replica has it."""
        headers: list[tuple[str, str | bytes | None]] = [
            (f"{_PREFIX}reason", reason.encode()),
            (f"{_PREFIX}source-topic", self._settings.topic.encode()),
            (f"{_PREFIX}source-partition", b"%d" % message.partition),
            (f"{_PREFIX}source-offset", b"%d" % message.offset),
            (f"{_PREFIX}digest", hashlib.sha256(message.payload).hexdigest().encode()),
            *message.headers,
        ]
        self._send(self._topic, _PARTITION, headers, message.key, message.payload)

    def unsettled(self) -> Sequence[DeadLetter]:
        """Return the letters that are neither redriven nor discarded, oldest first."""
        letters: dict[int, DeadLetter] = {}
        for message in self._read():
            headers = dict(message.headers() or ())
            settled = headers.get(f"{_PREFIX}settles")
            if settled is None:
                letters[message.offset()] = _letter(message)
            else:
                letters.pop(int(settled), None)
        return list(letters.values())

    def redrive(self, letter: DeadLetter) -> None:
        """Send a letter back to the topic and partition that it came from, as it was."""
        self._send(letter.source_topic, letter.source_partition, list(letter.headers), letter.key, letter.payload)
        self._settle(letter, "redriven")

    def discard(self, letter: DeadLetter) -> None:
        """Settle a letter without doing anything about it."""
        self._settle(letter, "discarded")

    def _settle(self, letter: DeadLetter, how: Settlement) -> None:
        headers: list[tuple[str, str | bytes | None]] = [
            (f"{_PREFIX}settles", b"%d" % letter.offset),
            (f"{_PREFIX}how", how.encode()),
        ]
        self._send(self._topic, _PARTITION, headers, b"", b"")

    def _send(
        self, topic: str, partition: int, headers: list[tuple[str, str | bytes | None]], key: bytes, payload: bytes
    ) -> None:
        failed: list[KafkaError | None] = []
        self._producer.produce(
            topic,
            value=payload,
            key=key,
            headers=headers,
            partition=partition,
            on_delivery=lambda error, _: failed.append(error),
        )
        self._producer.flush(limits.DELIVERY_TIMEOUT_S)
        if failed != [None]:
            raise KafkaUnavailable(f"Kafka did not store a message on {topic}: {failed[0] if failed else 'timed out'}")

    def _read(self) -> list[Any]:
        """Return every message of the topic up to its present end."""
        consumer = Consumer(
            {
                "bootstrap.servers": self._settings.kafka,
                "group.id": "bulkgrpc-dead-letters",
                "enable.auto.commit": False,
            }
        )
        place = TopicPartition(self._topic, _PARTITION)
        try:
            start, end = consumer.get_watermark_offsets(place, timeout=REQUEST_TIMEOUT_S)
            consumer.assign([TopicPartition(self._topic, _PARTITION, start)])
            found: list[Any] = []
            give_up_s = time.monotonic() + _READ_S
            while start < end and time.monotonic() < give_up_s:
                came: list[Any] = [message for message in consumer.consume(500, 0.2) if message.error() is None]
                found += came
                start = came[-1].offset() + 1 if came else start
            if start < end:
                raise KafkaUnavailable(f"Kafka did not give topic {self._topic} in {_READ_S:g} s")
            return found
        except KafkaException as error:
            raise KafkaUnavailable(f"Kafka at {self._settings.kafka}: {error.args[0].str()}") from error
        finally:
            consumer.close()

    def _ensure_topic(self) -> None:
        # One partition, kept for good: few messages, and settling one must not outlive it.
        config = {"max.message.bytes": str(2 * limits.KAFKA_MESSAGE_BYTES_MAX), "retention.ms": "-1"}
        topic = NewTopic(self._topic, 1, self._settings.replication, config=config)
        admin = AdminClient({"bootstrap.servers": self._settings.kafka, "log_level": 0})
        try:
            admin.create_topics([topic], request_timeout=REQUEST_TIMEOUT_S)[self._topic].result(REQUEST_TIMEOUT_S)
        except KafkaException as error:
            if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
                raise KafkaUnavailable(f"Kafka at {self._settings.kafka}: {error.args[0].str()}") from error
        except TimeoutError as error:
            raise KafkaUnavailable(f"Kafka at {self._settings.kafka} does not answer") from error


def _letter(message: Any) -> DeadLetter:
    headers = dict(message.headers() or ())

    def told(name: str) -> str:
        value = headers.get(f"{_PREFIX}{name}") or b""
        return value.decode(errors="replace")

    return DeadLetter(
        offset=message.offset(),
        reason=told("reason"),
        source_topic=told("source-topic"),
        source_partition=int(told("source-partition") or 0),
        source_offset=int(told("source-offset") or 0),
        digest=told("digest"),
        headers=tuple((name, value) for name, value in message.headers() or () if not name.startswith(_PREFIX)),
        key=message.key() or b"",
        payload=message.value() or b"",
    )
