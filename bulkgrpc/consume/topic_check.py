"""Compares Kafka's topic and partitions with the ledger, and stores in the ledger which partitions are stopped."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from bulkgrpc.consume.log_identity import LogRange, Recorded, Stop, examine
from bulkgrpc.consume.ports import TopicLedger, TopicLog


@dataclass(frozen=True, slots=True)
class Findings:
    """What a check found. examined: the partitions that were compared. stops: those of them that must stop.

    missing: whether Kafka has no such topic; every partition must stop then.
    """

    examined: frozenset[int] = frozenset()
    stops: Mapping[int, Stop] = field(default_factory=dict)
    missing: bool = False


class TopicCheck:
    """Checks of one topic. Any thread may use it: it keeps nothing between two checks."""

    def __init__(self, log: TopicLog, ledger: TopicLedger) -> None:
        self._log, self._ledger = log, ledger

    def check(self, partitions: Collection[int], *, believe_missing: bool = False) -> Findings:
        """Compare partitions with the ledger and store what was found; the first check records the topic's ID.

        Of a topic that is missing or another one, all partitions that the ledger knows are stopped. A topic can seem to
        be missing for a moment, while brokers start: nothing is stored then without `believe_missing`. Raises
        StoreUnavailable, StoreError, RecordLogError.
        """
        found_id = self._log.topic_id()
        if found_id is None and not believe_missing:
            return Findings(missing=True)
        recorded_id, recorded = self._ledger.recorded()
        if recorded_id is None and found_id is not None:
            recorded_id = self._ledger.record(found_id)
        same = found_id is not None and found_id == recorded_id
        logs: Mapping[int, LogRange] = self._log.ranges(partitions) if same else {}
        # Of a topic that is another one every range is; none is looked at.
        examined = frozenset(logs) if same else frozenset(partitions) | recorded.keys()
        nothing = LogRange(0, 0)
        found = {
            number: examine(recorded_id, found_id, recorded.get(number, Recorded(0)), logs.get(number, nothing))
            for number in examined
        }
        if found:
            self._ledger.save(found, logs)
        stops = {number: stop for number, stop in found.items() if stop is not None}
        return Findings(examined, stops, missing=found_id is None)

    def save(self, partition: int, stop: Stop) -> None:
        """Store that a partition is stopped for what the poll loop found. Raises StoreUnavailable, StoreError."""
        self._ledger.save({partition: stop}, {})
