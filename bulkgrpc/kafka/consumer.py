"""The consumer: one a worker, owned by one thread. It reads where the ledger says, never where Kafka remembers."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from confluent_kafka import OFFSET_END, Consumer, KafkaError, KafkaException, TopicPartition

from bulkgrpc import limits
from bulkgrpc.settings import WorkerSettings

Partitions = Sequence[int]
Assigned = Callable[[Partitions], Mapping[int, int]]
Revoked = Callable[[Partitions], None]
END_WITHIN_S = 1.0
_QUEUE_KBYTES_MAX = 32 * 1024


class OffsetLost(Exception):
    """Kafka has not the offset that the ledger needs next: its retention passed it, or the topic was made anew."""


class GroupNotLeft(Exception):
    """The group was not left in time: its partitions go to others when the session runs out.

    The process must end without cleaning up: librdkafka waits for Kafka without a bound, in its destructor, too.
    """


@dataclass(frozen=True, slots=True)
class Fetched:
    """A message as Kafka has it."""

    partition: int
    offset: int
    headers: Sequence[tuple[str, bytes]]
    payload: bytes
    key: bytes = b""


class RecordsConsumer:
    """Reads the records topic as a member of the consumer group.

    assigned: called when partitions come; returns where each starts, a partition that it leaves out stays paused until
    `seek`. revoked: called before partitions go, or after they were lost. Both are called inside `fetch`.
    """

    def __init__(self, settings: WorkerSettings, assigned: Assigned, revoked: Revoked) -> None:
        self._settings = settings
        self._topic = settings.topic
        self._assigned, self._revoked = assigned, revoked
        self._consumer = self._join()

    def fetch(self, messages_max: int, timeout_s: float) -> list[Fetched]:
        """Return messages: waits up to `timeout_s` for the first, then takes those that are here.

        Raises OffsetLost where Kafka has no longer what the ledger needs, KafkaException on an error that lasts.
        """
        first = self._consumer.poll(timeout_s)
        if first is None:
            return []
        found = []
        for message in (first, *self._consumer.consume(messages_max - 1, 0)):
            error = message.error()
            if error is not None:
                self._raise_if_lasting(error)
                continue
            found.append(_fetched(message))
        return found

    def seek(self, offsets: Mapping[int, int]) -> None:
        """Go on reading partitions at these offsets, paused ones too.

        Raises KafkaException if one of them is not assigned (any longer), or not ready yet.
        """
        for partition, offset in offsets.items():
            self._consumer.seek(TopicPartition(self._topic, partition, offset))
        self._consumer.resume(self._partitions(offsets))

    def pause(self, partitions: Iterable[int]) -> None:
        """Fetch no more of these partitions; `fetch` must still be called, to stay in the group."""
        self._consumer.pause(self._partitions(partitions))

    def resume(self, partitions: Iterable[int]) -> None:
        """Fetch these partitions again."""
        self._consumer.resume(self._partitions(partitions))

    def commit(self, offsets: Mapping[int, int]) -> None:
        """Tell Kafka where partitions stand: for lag and for tools; the ledger is the truth. Does not wait."""
        if offsets:
            positions = [TopicPartition(self._topic, partition, offset) for partition, offset in offsets.items()]
            self._consumer.commit(offsets=positions, asynchronous=True)

    def end(self, partition: int) -> int | None:
        """Return the offset after the last message that Kafka has of a partition, None if it does not tell in time."""
        try:
            _, end = self._consumer.get_watermark_offsets(TopicPartition(self._topic, partition), END_WITHIN_S)
        except KafkaException:
            return None
        return int(end)

    def rejoin(self, timeout_s: float) -> None:
        """Leave the group, or, if Kafka does not let go within `timeout_s`, forget it, and join it as a new member.

        `revoked` may be called for the partitions held, or not.
        """
        with contextlib.suppress(GroupNotLeft):
            self.close(timeout_s)
        self._consumer = self._join()

    def close(self, timeout_s: float) -> None:
        """Leave the group, so that the partitions go to others without waiting for a time-out.

        Raises GroupNotLeft if Kafka does not let go within `timeout_s`.
        """
        closing = threading.Thread(target=self._consumer.close, name="consumer-close", daemon=True)
        closing.start()
        closing.join(timeout_s)
        if closing.is_alive():
            raise GroupNotLeft(f"Kafka did not answer within {timeout_s:.0f} s: the partitions move later")

    def _join(self) -> Consumer:
        consumer = Consumer(_configuration(self._settings))
        consumer.subscribe([self._topic], on_assign=self._on_assign, on_revoke=self._on_revoke, on_lost=self._on_revoke)
        return consumer

    def _partitions(self, partitions: Iterable[int]) -> list[TopicPartition]:
        return [TopicPartition(self._topic, partition) for partition in partitions]

    def _on_assign(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        numbers = [partition.partition for partition in partitions]
        starts = self._assigned(numbers)
        consumer.incremental_assign(
            [TopicPartition(self._topic, number, starts.get(number, OFFSET_END)) for number in numbers]
        )
        waiting = [number for number in numbers if number not in starts]
        self.pause(waiting)
        # A pause outlives a revocation.
        self.resume(starts)

    def _on_revoke(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        # One that did not let go in time may say so late, beside the new one.
        if consumer is self._consumer:
            self._revoked([partition.partition for partition in partitions])
        consumer.incremental_unassign(partitions)

    def _raise_if_lasting(self, error: KafkaError) -> None:
        if error.code() in (KafkaError._AUTO_OFFSET_RESET, KafkaError.OFFSET_OUT_OF_RANGE, KafkaError._BAD_MSG):
            raise OffsetLost(error.str())
        if error.fatal() or error.code() in (KafkaError.TOPIC_AUTHORIZATION_FAILED, KafkaError._MAX_POLL_EXCEEDED):
            raise KafkaException(error)


def _fetched(message: Any) -> Fetched:
    # The stubs allow None for what a message without an error always has.
    return Fetched(
        message.partition(), message.offset(), message.headers() or (), message.value() or b"", message.key() or b""
    )


def _configuration(settings: WorkerSettings) -> dict[str, str | int | bool]:
    configuration: dict[str, str | int | bool] = {
        "bootstrap.servers": settings.kafka,
        "group.id": settings.group,
        "group.protocol": settings.group_protocol,
        "client.id": f"bulkgrpc-worker-{os.getpid()}",
        "enable.auto.commit": False,
        "enable.auto.offset.store": False,
        # Where the ledger's offset is gone, stop: an operator decides what becomes of the lost span.
        "auto.offset.reset": "error",
        "check.crcs": True,
        "max.poll.interval.ms": int(limits.MAX_POLL_INTERVAL_S * 1000),
        "queued.max.messages.kbytes": _QUEUE_KBYTES_MAX,
        "fetch.message.max.bytes": limits.KAFKA_MESSAGE_BYTES_MAX,
        "fetch.max.bytes": 4 * limits.KAFKA_MESSAGE_BYTES_MAX,
        "fetch.wait.max.ms": 100,
        # The default of 1000 leaves the workers without messages for a second whenever the queue was full.
        "fetch.queue.backoff.ms": 5,
        "log_level": 0,
    }
    if settings.group_protocol == "classic":
        configuration["partition.assignment.strategy"] = "cooperative-sticky"
    return configuration
