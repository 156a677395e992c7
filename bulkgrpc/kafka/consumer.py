"""The worker's `RecordLog` on Kafka: one consumer, used by one thread. It starts where the ledger says."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from confluent_kafka import OFFSET_END, Consumer, KafkaError, KafkaException, TopicPartition

from bulkgrpc import limits
from bulkgrpc.consume.assembly import EndReached, Fetched
from bulkgrpc.consume.ports import Assigned, GroupNotLeft, NewerFormat, RecordLogError, Revoked
from bulkgrpc.kafka.connection import consumer
from bulkgrpc.kafka.message import MalformedMessage, message_of
from bulkgrpc.settings import WorkerSettings

END_TIMEOUT_S = 1.0
OF_PARTITION = (
    KafkaError._NOT_IMPLEMENTED,
    KafkaError._AUTO_OFFSET_RESET,
    KafkaError.OFFSET_OUT_OF_RANGE,
    KafkaError._BAD_MSG,
    KafkaError.UNKNOWN_TOPIC_OR_PART,
    KafkaError._UNKNOWN_PARTITION,
    KafkaError.UNKNOWN_TOPIC_ID,
    KafkaError.INCONSISTENT_TOPIC_ID,
    KafkaError._LOG_TRUNCATION,
)
"""Errors of one partition: its log may be another one, or lack what the ledger needs. The others are not affected."""
QUEUE_BYTES_MAX = 1024 * 1024
"""Prefetched payloads at which fetching stops, of all partitions together: they are one queue, in order of arrival, in
which a message waits behind those of other partitions. Enough for the time of a fetch."""
FETCH_BYTES_MAX = 256 * 1024
"""Of one partition in one answer of Kafka, compressed. A message that is larger comes alone."""


class RecordsConsumer:
    """Reads the records topic as a member of the consumer group. Implements `RecordLog`."""

    def __init__(self, settings: WorkerSettings) -> None:
        self._settings = settings
        self._topic = settings.topic
        self._assigned: Assigned = lambda _: {}
        self._revoked: Revoked = lambda _: None
        self._ends: list[EndReached] = []
        self._failed: dict[int, str] = {}
        self._consumer = open_consumer(settings)

    def join(self, assigned: Assigned, revoked: Revoked) -> None:
        """Join the consumer group. Both callbacks run inside `fetch`.

        A partition that `assigned` leaves out stays paused until `seek`.
        """
        self._assigned, self._revoked = assigned, revoked
        self._subscribe()

    def fetch(self, messages_max: int, timeout_s: float) -> Sequence[Fetched]:
        """Return up to `messages_max` messages; wait up to `timeout_s` for the first.

        Raises RecordLogError on an error that librdkafka does not recover from. One of a single partition is for
        `take_failed`.
        """
        self._ends = []
        give_up_s = time.monotonic() + timeout_s
        while True:
            with translated():
                first = self._consumer.poll(max(0.0, give_up_s - time.monotonic()))
                if first is None:
                    return ()
                messages = (first, *self._consumer.consume(messages_max - 1, 0))
            fetched = [fetched_of(message) for message in messages if self._is_message(message)]
            # While a partition is read as fast as it grows, nearly each message is followed by an end: that alone is
            # nothing to return for.
            if fetched or self._failed or time.monotonic() >= give_up_s:
                return fetched

    def _is_message(self, message: Any) -> bool:
        """Return whether this is a message; note the event if it is one."""
        error = message.error()
        if error is None:
            return True
        if error.code() == KafkaError._PARTITION_EOF:
            self._ends.append(EndReached(message.partition(), message.offset()))
        else:
            raise_if_permanent(error)
            if error.code() in OF_PARTITION:
                self._failed[message.partition()] = f"{error.name()}: {error.str()}"
        return False

    def ends_reached(self) -> Sequence[EndReached]:
        """Return the ends of partitions that the last `fetch` reached.

        librdkafka queues the event behind the messages below it, and discards it with them after a seek.
        """
        return self._ends

    def take_failed(self) -> Mapping[int, str]:
        """Return the partitions that `fetch` could not read since the last call, with Kafka's reason.

        A partition of -1 is the topic as a whole.
        """
        failed, self._failed = self._failed, {}
        return failed

    def seek(self, offsets: Mapping[int, int]) -> None:
        """Continue partitions at these offsets; paused ones resume.

        Raises RecordLogError if a partition is not assigned or not ready.
        """
        with translated():
            for partition, offset in offsets.items():
                self._consumer.seek(TopicPartition(self._topic, partition, offset))
        self.resume(offsets)

    def pause(self, partitions: Iterable[int]) -> None:
        """Stop fetching partitions. `fetch` must still be called, to stay in the group."""
        with translated():
            self._consumer.pause(self._partitions(partitions))

    def resume(self, partitions: Iterable[int]) -> None:
        """Fetch partitions again."""
        with translated():
            self._consumer.resume(self._partitions(partitions))

    def commit(self, offsets: Mapping[int, int], note: str = "") -> None:
        """Report the next offset of partitions, for lag metrics and tools; the ledger decides. Does not wait.

        note: stored with each, and returned by `KafkaGroupOffsets`.
        """
        if offsets:
            positions = [TopicPartition(self._topic, partition, offset, note) for partition, offset in offsets.items()]
            with translated():
                self._consumer.commit(offsets=positions, asynchronous=True)

    def end(self, partition: int) -> int | None:
        """Return the offset after a partition's last message, None if Kafka does not answer within 2 END_TIMEOUT_S."""
        place = TopicPartition(self._topic, partition)
        end = _end(self._consumer, place)
        if end is None:
            # The consumer may have stalled, and not answer although Kafka does: then a new one answers.
            fresh = open_consumer(self._settings)
            end = _end(fresh, place)
            fresh.close()
        return end

    def start(self, partition: int) -> int | None:
        """Return the first offset that Kafka had of a partition when it answered the last fetch; None if it has not.

        A request of its own would wait behind the fetch that is under way.
        """
        try:
            start, _ = self._consumer.get_watermark_offsets(TopicPartition(self._topic, partition), cached=True)
        except KafkaException:
            return None
        return start if start >= 0 else None

    def rejoin(self, timeout_s: float) -> None:
        """Leave the group and join it as a new member. After `timeout_s` the old member is abandoned.

        `revoked` is called for the assigned partitions only if the old member leaves in time.
        """
        with contextlib.suppress(GroupNotLeft):
            self.close(timeout_s)
        self._consumer = open_consumer(self._settings)
        self._subscribe()

    def close(self, timeout_s: float) -> None:
        """Leave the group, so that the partitions move to other workers at once.

        Raises GroupNotLeft if Kafka does not answer within `timeout_s`.
        """
        if not closed_within(self._consumer, timeout_s):
            raise GroupNotLeft(f"Kafka did not answer within {timeout_s:.0f} s: the partitions move later")

    def _subscribe(self) -> None:
        with translated():
            self._consumer.subscribe(
                [self._topic], on_assign=self._on_assign, on_revoke=self._on_revoke, on_lost=self._on_revoke
            )

    def _partitions(self, partitions: Iterable[int]) -> list[TopicPartition]:
        return [TopicPartition(self._topic, partition) for partition in partitions]

    def _on_assign(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        numbers = [partition.partition for partition in partitions]
        starts = self._assigned(numbers)
        consumer.incremental_assign(
            [TopicPartition(self._topic, number, starts.get(number, OFFSET_END)) for number in numbers]
        )
        self.pause(number for number in numbers if number not in starts)
        # A pause outlives a revocation.
        self.resume(starts)

    def _on_revoke(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        # A consumer that was abandoned by `rejoin` may call this late, when a new one is in its place.
        if consumer is self._consumer:
            self._revoked([partition.partition for partition in partitions])
        consumer.incremental_unassign(partitions)


def closed_within(consumer: Consumer, timeout_s: float) -> bool:
    """Close a consumer; return whether that took no longer than `timeout_s`. Else it is closed in the background."""
    closing = threading.Thread(target=consumer.close, name="consumer-close", daemon=True)
    closing.start()
    closing.join(timeout_s)
    return not closing.is_alive()


def _end(consumer: Consumer, place: TopicPartition) -> int | None:
    try:
        return int(consumer.get_watermark_offsets(place, END_TIMEOUT_S)[1])
    except KafkaException:
        return None


@contextlib.contextmanager
def translated() -> Iterator[None]:
    """Raise RecordLogError for an exception of librdkafka."""
    try:
        yield
    except KafkaException as error:
        raise RecordLogError(str(error)) from error


def raise_if_permanent(error: KafkaError) -> None:
    """Raise RecordLogError for an error that librdkafka does not recover from."""
    if error.fatal() or error.code() in (KafkaError.TOPIC_AUTHORIZATION_FAILED, KafkaError._MAX_POLL_EXCEEDED):
        raise RecordLogError(str(error))


def fetched_of(message: Any) -> Fetched:
    """Return a message of librdkafka with its headers parsed."""
    # The stubs allow None for what a message without an error always has.
    headers, key, payload = message.headers() or (), message.key() or b"", message.value() or b""
    parsed, malformed, newer_format = None, "", 0
    try:
        parsed = message_of(headers, payload)
    except MalformedMessage as error:
        malformed = str(error)
    except NewerFormat as error:
        newer_format = error.format
    return Fetched(message.partition(), message.offset(), headers, key, payload, parsed, malformed, newer_format)


def open_consumer(settings: WorkerSettings, tuned: Mapping[str, object] = MappingProxyType({})) -> Consumer:
    """Return a consumer of the records topic. tuned: properties instead of ours. Raises KafkaMisconfigured."""
    ours = {**_TUNED, "client.id": f"bulkgrpc-worker-{os.getpid()}", **tuned}
    return consumer(settings, configuration(settings), ours)


def configuration(settings: WorkerSettings) -> dict[str, object]:
    """Return the properties of librdkafka on which the promises depend."""
    fixed: dict[str, object] = {
        "group.id": settings.group,
        "group.protocol": settings.group_protocol,
        "enable.auto.commit": False,
        "enable.auto.offset.store": False,
        # If Kafka does not have the ledger's offset, report it: an operator decides about the lost span.
        "auto.offset.reset": "error",
        # A server uses no transactions, so what a transaction aborted was never acknowledged: it must not be applied.
        "isolation.level": "read_committed",
        # Reports that the log ends with control records: nothing else would ever move the position past them.
        "enable.partition.eof": True,
        "max.poll.interval.ms": int(limits.MAX_POLL_INTERVAL_S * 1000),
    }
    if settings.group_protocol == "classic":
        fixed["partition.assignment.strategy"] = "cooperative-sticky"
    return fixed


_TUNED: Mapping[str, object] = MappingProxyType(
    {
        "check.crcs": True,
        "queued.max.messages.kbytes": QUEUE_BYTES_MAX // 1024,
        "fetch.message.max.bytes": FETCH_BYTES_MAX,
        "fetch.max.bytes": limits.KAFKA_MESSAGE_BYTES_MAX,
        "fetch.wait.max.ms": 100,
        # The default of 1000 leaves the worker without messages for a second whenever the queue was full.
        "fetch.queue.backoff.ms": 5,
        # The default of five minutes is how long batches in a new partition would wait.
        "topic.metadata.refresh.interval.ms": 10_000,
    }
)
