"""The record log of the ingest session, on Kafka. Adapter of the port `bulkgrpc.ingest.ports.RecordLog`."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable
from typing import Final, NoReturn

import structlog
from confluent_kafka import KafkaError, KafkaException

from bulkgrpc.consume.ports import RecordLogError
from bulkgrpc.ingest.ports import Delivered, RecordLogFull, RecordLogUnavailable, RecordTooLarge
from bulkgrpc.kafka.partition import partitions_of
from bulkgrpc.kafka.producer import BATCH_BYTES, RecordsProducer
from bulkgrpc.kafka.topic_log import KafkaTopicLog
from bulkgrpc.limits import MESSAGE_OVERHEAD_BYTES
from bulkgrpc.model import Message

LOOK_S: Final = 10.0
"""How often Kafka is asked for new partitions."""
LIMIT_S: Final = 1.0
"""How long the topic's limit is remembered."""

_log = structlog.get_logger()


class KafkaRecordLog:
    """Appends messages with a producer that the process owns. One task calls `run`.

    partitions: of the records topic. bytes_max: asks Kafka for the topic's max.message.bytes, in a thread; None if it
    is not known.
    """

    def __init__(
        self, producer: RecordsProducer, partitions: int, bytes_max: Callable[[], int | None] = lambda: None
    ) -> None:
        self._producer = producer
        self._partitions = partitions
        self._ask_bytes_max = bytes_max
        self._asking = asyncio.Lock()
        self._bytes_max: tuple[float, int | None] | None = None  # when it was asked for, and the answer
        self._reports: set[asyncio.Task[None]] = set()

    async def run(self) -> NoReturn:
        """Use partitions that are added to the topic, for new jobs, until cancelled."""
        while True:
            await asyncio.sleep(LOOK_S)
            await self.look()

    async def look(self) -> None:
        """Ask Kafka how many partitions there are. A job keeps those that it has."""
        try:
            found = await asyncio.to_thread(self._producer.count_partitions)
        except KafkaException:
            return
        # Never fewer: a broker that lags behind does not know the newest.
        if found > self._partitions:
            _log.info("partitions_added", partitions=found, before=self._partitions)
            self._partitions = found

    def partitions_of(self, tenant: str, lanes: int) -> tuple[int, ...]:
        """Return the tenant's partition and those after it, one per lane; at most all partitions."""
        return partitions_of(tenant, self._partitions, lanes)

    def append(self, partition: int, message: Message, payload: bytes, delivered: Delivered) -> None:
        """Hand a message to librdkafka. See `RecordLog.append`."""

        def report(error: KafkaError | None) -> None:
            if error is None:
                delivered(None)
            elif error.code() == KafkaError.MSG_SIZE_TOO_LARGE:
                task = asyncio.ensure_future(self._report_size(len(payload), delivered))
                self._reports.add(task)
                task.add_done_callback(self._reports.discard)
            else:
                delivered(RecordLogUnavailable(error.str()))

        try:
            self._producer.send(partition, message, payload, report)
        except BufferError as error:
            raise RecordLogFull("the queue of librdkafka is full") from error
        except KafkaException as error:
            raise RecordLogUnavailable(str(error.args[0])) from error

    async def _report_size(self, payload_bytes: int, delivered: Delivered) -> None:
        """Report a message that Kafka refused for its size: the topic's limit was lowered while the server ran.

        Kafka refuses a request's messages of a partition together. One that fits alone may be sent again.
        """
        bytes_max = await self._topic_bytes_max()
        alone = payload_bytes > BATCH_BYTES if bytes_max is None else payload_bytes + MESSAGE_OVERHEAD_BYTES > bytes_max
        limit = "max.message.bytes of the topic" + ("" if bytes_max is None else f" is {bytes_max}")
        if not alone:
            delivered(RecordLogUnavailable(f"{limit}, too small for what was sent together"))
            return
        fits = "" if bytes_max is None else f" of at most {max(bytes_max - MESSAGE_OVERHEAD_BYTES, 0)} bytes"
        delivered(
            RecordTooLarge(
                f"Kafka refuses a batch of {payload_bytes} bytes: {limit}: send batches{fits}, or let an operator "
                f"raise it to the server's largest batch and {MESSAGE_OVERHEAD_BYTES}"
            )
        )

    async def _topic_bytes_max(self) -> int | None:
        async with self._asking:
            now_s = asyncio.get_running_loop().time()
            if self._bytes_max is None or now_s - self._bytes_max[0] > LIMIT_S:
                self._bytes_max = now_s, await asyncio.to_thread(self._ask_bytes_max)
            return self._bytes_max[1]


class KafkaTopicIdentity:
    """Asks Kafka for the ID of the topic, in a thread. Implements `bulkgrpc.ingest.ports.TopicIdentity`."""

    def __init__(self, log: KafkaTopicLog) -> None:
        self._log = log

    async def topic_id(self) -> uuid.UUID | None:
        """Return the topic's ID, None if there is no such topic. Raises RecordLogUnavailable."""
        try:
            return await asyncio.to_thread(self._log.topic_id)
        except RecordLogError as error:
            raise RecordLogUnavailable(str(error)) from error
