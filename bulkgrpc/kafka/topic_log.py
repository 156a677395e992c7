"""The identity of the records topic and the extent of its partitions. Implements `bulkgrpc.consume.ports.TopicLog`."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Collection, Mapping
from datetime import UTC, datetime
from typing import Any

from confluent_kafka import KafkaError, KafkaException, TopicCollection, TopicPartition
from confluent_kafka import admin as kafka_admin

from bulkgrpc.consume.log_identity import LogRange
from bulkgrpc.consume.ports import RecordLogError
from bulkgrpc.kafka.connection import Administrator
from bulkgrpc.settings import StackSettings

TIMEOUT_S = 2.0
"""Of each request. The poll loop waits for two."""
_ADMIN: Any = kafka_admin  # the stubs do not export OffsetSpec
_OffsetSpec = _ADMIN.OffsetSpec
_EPOCH = datetime.fromtimestamp(0, UTC)
_MISSING = (KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError._UNKNOWN_TOPIC)


class KafkaTopicLog:
    """Asks Kafka about the records topic. Any thread may use it. Every method raises RecordLogError."""

    def __init__(self, settings: StackSettings) -> None:
        self._settings, self._topic = settings, settings.topic
        self._admin = Administrator(settings).client

    def topic_id(self) -> uuid.UUID | None:
        """Return the topic's ID, None if there is no such topic."""
        return None if (found := self._describe()) is None else _uuid_of(found.topic_id)

    def partitions(self) -> int | None:
        """Return how many partitions the topic has, None if there is no such topic."""
        return None if (found := self._describe()) is None else len(found.partitions)

    def ranges(self, partitions: Collection[int]) -> Mapping[int, LogRange]:
        """Return what Kafka has of partitions. One for which it does not answer is left out."""
        starts = self._offsets(dict.fromkeys(partitions, _OffsetSpec.earliest()))
        ends = self._offsets(dict.fromkeys(starts, _OffsetSpec.latest()))
        return {number: LogRange(starts[number].offset, end.offset) for number, end in ends.items()}

    def first_from(self, partitions: Collection[int], time: datetime | None) -> Mapping[int, tuple[int, datetime]]:
        """Return offset and time of each partition's first message that is not older than `time`; left out: none.

        time: None for the first message.
        """
        return self.first_at(dict.fromkeys(partitions, _EPOCH if time is None else time))

    def first_at(self, times: Mapping[int, datetime]) -> Mapping[int, tuple[int, datetime]]:
        """Return offset and time of each partition's first message that is not older than its time; left out: none."""
        found = self._offsets(
            {number: _OffsetSpec.for_timestamp(int(time.timestamp() * 1000)) for number, time in times.items()}
        )
        return {
            number: (one.offset, datetime.fromtimestamp(one.timestamp / 1000).astimezone())
            for number, one in found.items()
            if one.offset >= 0
        }

    def _describe(self) -> Any:
        admin = self._admin
        try:
            asked = admin.describe_topics(TopicCollection([self._topic]), request_timeout=TIMEOUT_S)
            return asked[self._topic].result(TIMEOUT_S + 1)
        except KafkaException as error:
            if error.args[0].code() in _MISSING:
                return None
            raise RecordLogError(f"Kafka does not describe topic {self._topic}: {error.args[0].str()}") from error
        except TimeoutError as error:
            raise RecordLogError(f"Kafka does not describe topic {self._topic} in time") from error

    def _offsets(self, specs: Mapping[int, Any]) -> dict[int, Any]:
        """Return what Kafka answers for partitions; those for which it does not are asked for twice."""
        found = self._ask(specs)
        if missing := specs.keys() - found.keys():
            # A client may remember the epoch of an earlier leader, which brokers refuse: a new one does not.
            self._admin = Administrator(self._settings).client
            found |= self._ask({number: specs[number] for number in missing})
        return found

    def _ask(self, specs: Mapping[int, Any]) -> dict[int, Any]:
        if not specs:
            return {}
        found = {}
        queries = {TopicPartition(self._topic, number): spec for number, spec in specs.items()}
        # Kept until all have answered: another thread may replace it, and a client that is freed never answers.
        admin = self._admin
        for place, answer in admin.list_offsets(queries, request_timeout=TIMEOUT_S).items():
            # An error of one partition, such as that it has no leader, is not one of the others.
            with contextlib.suppress(KafkaException, TimeoutError):
                found[place.partition] = answer.result(TIMEOUT_S + 1)
        return found


def _uuid_of(found: Any) -> uuid.UUID:
    """Return librdkafka's two signed halves as a UUID."""
    high, low = (
        half & (1 << 64) - 1 for half in (found.get_most_significant_bits(), found.get_least_significant_bits())
    )
    return uuid.UUID(int=high << 64 | low)
