"""The topic watch: a thread that compares the topic and this worker's partitions with the ledger."""

from __future__ import annotations

import threading
from collections.abc import Collection, Mapping

import structlog

from bulkgrpc.consume.log_identity import Stop
from bulkgrpc.consume.ports import RecordLogError, StoreError
from bulkgrpc.consume.topic_check import TopicCheck

log = structlog.get_logger()

CHECK_EVERY_S = 5.0
MISSING_CHECKS = 2
"""Checks in a row after which a topic is taken for missing: while brokers start, one may not know it yet."""


class CheckingTopicWatch:
    """Implements `bulkgrpc.consume.ports.TopicWatch`. The thread ends when `stopping` is set."""

    def __init__(self, check: TopicCheck, topic: str, stopping: threading.Event) -> None:
        self._check, self._topic, self._stopping = check, topic, stopping
        self._thread = threading.Thread(target=self._run, name="topic-watch", daemon=True)
        # Each is replaced as a whole, by one thread.
        self._partitions: Collection[int] = ()
        self._found: tuple[Collection[int], Mapping[int, Stop]] | None = None
        self._missing = 0

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def watch(self, partitions: Collection[int]) -> None:
        """Check these partitions from the next round on."""
        self._partitions = partitions

    def found(self) -> tuple[Collection[int], Mapping[int, Stop]] | None:
        """Return what the last round found, once."""
        found, self._found = self._found, None
        return found

    def check(self, partitions: Collection[int]) -> tuple[Collection[int], Mapping[int, Stop]]:
        """Check partitions now. Raises RecordLogError also if Kafka has no such topic: a round decides about that."""
        findings = self._check.check(partitions)
        if findings.missing:
            raise RecordLogError(f"Kafka has no topic {self._topic} now")
        return findings.examined, findings.stops

    def stop(self, partition: int, stop: Stop) -> None:
        """Store that a partition is stopped for what the poll loop found."""
        self._check.save(partition, stop)

    def _run(self) -> None:
        while not self._stopping.wait(CHECK_EVERY_S):
            try:
                self._round()
            except (StoreError, RecordLogError) as error:
                log.warning("topic_not_checked", error=str(error))
            except Exception as error:
                # Any exception: without this thread a topic that is deleted would not be noticed.
                log.exception("topic_not_checked", error=str(error))

    def _round(self) -> None:
        findings = self._check.check(self._partitions, believe_missing=self._missing + 1 >= MISSING_CHECKS)
        self._missing = self._missing + 1 if findings.missing else 0
        if self._missing == MISSING_CHECKS:
            log.warning("topic_missing", topic=self._topic, reason="Kafka has no topic of this name; was it deleted?")
        if findings.examined or findings.stops:
            self._found = (findings.examined, findings.stops)
