"""The express path's `ExpressLog` on Kafka: a consumer outside of any group, used by one thread."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence

from confluent_kafka import KafkaError, TopicPartition

from bulkgrpc.consume.assembly import Fetched
from bulkgrpc.consume.ports import RecordLogError
from bulkgrpc.kafka.consumer import (
    OF_PARTITION,
    closed_within,
    fetched_of,
    open_consumer,
    raise_if_permanent,
    translated,
)
from bulkgrpc.settings import WorkerSettings

LINGER_S = 0.005
"""How long to wait for what comes with the first message, such as its job's seal, for one transaction of both."""
QUEUE_BYTES_MAX = 16 * 1024 * 1024
FETCH_BYTES_MAX = 1024 * 1024
"""More than on the main path, because nearly all of it is passed over."""
CLOSE_TIMEOUT_S = 5.0


class KafkaExpressLog:
    """Reads partitions from given offsets. Implements `ExpressLog`."""

    def __init__(self, settings: WorkerSettings, offsets: Mapping[int, int]) -> None:
        tuned = {"queued.max.messages.kbytes": QUEUE_BYTES_MAX // 1024, "fetch.message.max.bytes": FETCH_BYTES_MAX}
        self._consumer = open_consumer(settings, tuned)
        self.caught_up = False
        with translated():
            self._consumer.assign(
                [TopicPartition(settings.topic, partition, offset) for partition, offset in offsets.items()]
            )

    def fetch(self, messages_max: int, timeout_s: float, left: Container[str]) -> Sequence[Fetched]:
        """Return up to `messages_max` messages but those of some tenants; wait up to `timeout_s` for the first.

        Raises RecordLogError.
        """
        with translated():
            first = self._consumer.poll(timeout_s)
            messages = () if first is None else (first, *self._consumer.consume(messages_max - 1, LINGER_S))
        fetched = []
        for message in messages:
            error = message.error()
            if error is not None:
                self.caught_up = self.caught_up or error.code() == KafkaError._PARTITION_EOF
                raise_if_permanent(error)
                if error.code() in OF_PARTITION:
                    # librdkafka would continue behind messages that it did not return.
                    raise RecordLogError(error.str())
            # The key is the tenant. Nearly all messages are passed over, so their headers are not read.
            elif (message.key() or b"").decode(errors="replace") not in left:
                fetched.append(fetched_of(message))
        return fetched

    def close(self) -> None:
        """Stop reading. A consumer that cannot be closed in time is abandoned."""
        closed_within(self._consumer, CLOSE_TIMEOUT_S)
