"""The dead-letter topic: messages that belong to no job, each with the reason and its position in the records topic.

The topic is a log. A dead letter is settled by a later message that names its offset and how: redriven or discarded.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from confluent_kafka import KafkaException, Producer, TopicPartition
from confluent_kafka.cimpl import KafkaError, NewTopic

from bulkgrpc import limits
from bulkgrpc.consume.assembly import Fetched
from bulkgrpc.consume.ports import NewerFormat
from bulkgrpc.kafka.connection import Administrator, KafkaUnavailable, consumer, producer
from bulkgrpc.kafka.message import MalformedMessage, from_headers, message_of
from bulkgrpc.kafka.topics import REQUEST_TIMEOUT_S, create, exists
from bulkgrpc.model import Message
from bulkgrpc.settings import StackSettings

Settlement = Literal["redriven", "discarded"]
_PREFIX = "dead-letter-"
_PARTITION = 0
_READ_S = 10.0


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A message that belongs to no job.

    offset: its offset on the dead-letter topic. source: the topic, partition and offset where a worker read it.
    digest: SHA-256 of the payload, hexadecimal.
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

    @property
    def message(self) -> Message | None:
        """The message, if its headers name a job: an earlier release stored such messages, too. Else None."""
        try:
            return message_of(self.headers, self.payload)
        except (MalformedMessage, NewerFormat):
            return None

    def fetched(self) -> Fetched:
        """Return the message as a worker read it."""
        return Fetched(self.source_partition, self.source_offset, self.headers, self.key, self.payload, self.message)


class DeadLetters:
    """Writes and reads the dead-letter topic. Implements `DeadLetterQueue`. Use it from one thread.

    The first call connects to Kafka and creates the topic if it is missing. Every method raises KafkaUnavailable if
    Kafka does not answer in time.
    """

    def __init__(self, settings: StackSettings) -> None:
        self._settings = settings
        self._topic = settings.dead_letter_topic

    @functools.cached_property
    def _producer(self) -> Producer:
        self._ensure_topic()
        return producer(
            self._settings,
            {
                "enable.idempotence": True,
                "message.max.bytes": limits.DEAD_LETTER_BYTES_MAX,
                "delivery.timeout.ms": int(limits.DELIVERY_TIMEOUT_S * 1000),
            },
        )

    def add(self, message: Fetched, reason: str) -> None:
        """Store a message with the reason; return once every replica has it."""
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
        """Return the dead letters that are neither redriven nor discarded, oldest first."""
        return [letter for letter, settled in self.all() if not settled]

    def all(self) -> Sequence[tuple[DeadLetter, bool]]:
        """Return every dead letter, oldest first, and whether it is settled."""
        letters: dict[int, DeadLetter] = {}
        settled = set[int]()
        for message in self._read():
            settles = dict(message.headers() or ()).get(f"{_PREFIX}settles")
            if settles is None:
                letters[message.offset()] = _letter(message)
            else:
                settled.add(int(settles))
        return [(letter, offset in settled) for offset, letter in letters.items()]

    def redrive(self, letter: DeadLetter) -> None:
        """Send a dead letter unchanged to the topic and partition where it was read, then settle it.

        Raises NewerFormat, and sends nothing, if it is of a newer format: its partition would wait at it.
        """
        with contextlib.suppress(MalformedMessage):
            from_headers(letter.headers)
        self._send(letter.source_topic, letter.source_partition, list(letter.headers), letter.key, letter.payload)
        self.settle_redriven(letter)

    def settle_redriven(self, letter: DeadLetter) -> None:
        """Settle a dead letter that was sent again with its job."""
        self._settle(letter, "redriven")

    def discard(self, letter: DeadLetter) -> None:
        """Settle a dead letter without sending it."""
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
        """Return every message of the topic, up to its end at the time of the call."""
        self._ensure_topic()
        reader = consumer(self._settings, {"group.id": "bulkgrpc-dead-letters", "enable.auto.commit": False})
        position = TopicPartition(self._topic, _PARTITION)
        try:
            start, end = reader.get_watermark_offsets(position, timeout=REQUEST_TIMEOUT_S)
            reader.assign([TopicPartition(self._topic, _PARTITION, start)])
            messages: list[Any] = []
            deadline_s = time.monotonic() + _READ_S
            while start < end and time.monotonic() < deadline_s:
                polled: list[Any] = [message for message in reader.consume(500, 0.2) if message.error() is None]
                messages += polled
                start = polled[-1].offset() + 1 if polled else start
            if start < end:
                raise KafkaUnavailable(f"Kafka did not return topic {self._topic} within {_READ_S:g} s")
            return messages
        except KafkaException as error:
            raise KafkaUnavailable(f"Kafka at {self._settings.kafka}: {error.args[0].str()}") from error
        finally:
            reader.close()

    def _ensure_topic(self) -> None:
        # One partition without retention: there are few messages, and a dead letter must not outlive its settlement.
        config = {"max.message.bytes": str(limits.DEAD_LETTER_BYTES_MAX), "retention.ms": "-1"}
        topic = NewTopic(self._topic, 1, self._settings.replication, config=config)
        admin = Administrator(self._settings)
        if not exists(admin, topic):
            create(admin, topic)


def _letter(message: Any) -> DeadLetter:
    headers = dict(message.headers() or ())

    def header(name: str) -> str:
        value = headers.get(f"{_PREFIX}{name}") or b""
        return value.decode(errors="replace")

    return DeadLetter(
        offset=message.offset(),
        reason=header("reason"),
        source_topic=header("source-topic"),
        source_partition=int(header("source-partition") or 0),
        source_offset=int(header("source-offset") or 0),
        digest=header("digest"),
        headers=tuple((name, value) for name, value in message.headers() or () if not name.startswith(_PREFIX)),
        key=message.key() or b"",
        payload=message.value() or b"",
    )
