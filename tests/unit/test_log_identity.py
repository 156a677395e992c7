"""Whether a partition's log matches the ledger: the decision, and a check with its ports in memory."""

from __future__ import annotations

import uuid
from collections.abc import Collection, Mapping

import pytest

from bulkgrpc.consume.log_identity import LogRange, Recorded, Stop, StopCause, examine, resume_offset
from bulkgrpc.consume.topic_check import TopicCheck

A, B = uuid.uuid4(), uuid.uuid4()
SEEN = LogRange(0, 15)


@pytest.mark.parametrize(
    ("recorded_id", "found_id", "log", "stop"),
    [
        (A, A, LogRange(0, 10), None),
        (A, A, LogRange(10, 20), None),
        (None, A, LogRange(0, 20), None),
        (A, A, LogRange(11, 20), Stop(StopCause.MESSAGES_DELETED, 10, 11)),
        (A, A, LogRange(20, 20), Stop(StopCause.MESSAGES_DELETED, 10, 20)),
        (None, A, LogRange(11, 20), Stop(StopCause.MESSAGES_DELETED, 10, 11)),
        (A, A, LogRange(0, 9), Stop(StopCause.LOG_TRUNCATED, 9, 10)),
        (None, A, LogRange(0, 0), Stop(StopCause.LOG_TRUNCATED, 0, 10)),
        (A, B, LogRange(0, 20), Stop(StopCause.TOPIC_REPLACED, 10, 15)),
        (A, B, LogRange(0, 0), Stop(StopCause.TOPIC_REPLACED, 10, 15)),
        (A, None, LogRange(0, 20), Stop(StopCause.TOPIC_MISSING, 10, 15)),
        (None, None, LogRange(0, 20), Stop(StopCause.TOPIC_MISSING, 10, 15)),
    ],
)
def test_the_truth_table(
    recorded_id: uuid.UUID | None, found_id: uuid.UUID | None, log: LogRange, stop: Stop | None
) -> None:
    assert examine(recorded_id, found_id, Recorded(10, SEEN), log) == stop


def test_the_lost_span_of_another_topic_has_no_end_if_no_end_was_seen() -> None:
    assert examine(A, B, Recorded(10), LogRange(0, 0)) == Stop(StopCause.TOPIC_REPLACED, 10, None)
    assert examine(A, B, Recorded(10, LogRange(0, 3)), LogRange(0, 0)) == Stop(StopCause.TOPIC_REPLACED, 10, 10)


@pytest.mark.parametrize(
    ("stop", "log", "resumes_at"),
    [
        (Stop(StopCause.MESSAGES_DELETED, 10, 14), LogRange(14, 20), 14),
        (Stop(StopCause.TOPIC_REPLACED, 10, None), LogRange(0, 3), 0),
        (Stop(StopCause.LOG_TRUNCATED, 5, 10), LogRange(0, 5), 2),
        (Stop(StopCause.LOG_TRUNCATED, 5, 10), LogRange(4, 5), 4),
    ],
)
def test_where_a_partition_continues(stop: Stop, log: LogRange, resumes_at: int) -> None:
    assert resume_offset(stop, log, 2) == resumes_at


class Log:
    """A `TopicLog`. found_id: of the topic, None if it is missing. logs: of its partitions."""

    def __init__(self) -> None:
        self.found_id: uuid.UUID | None = A
        self.logs = {0: LogRange(0, 10), 1: LogRange(0, 10)}

    def topic_id(self) -> uuid.UUID | None:
        return self.found_id

    def ranges(self, partitions: Collection[int]) -> Mapping[int, LogRange]:
        return {number: log for number, log in self.logs.items() if number in partitions}


class Ledger:
    """A `TopicLedger`."""

    def __init__(self) -> None:
        self.topic_id: uuid.UUID | None = None
        self.partitions = {0: Recorded(5), 1: Recorded(5)}
        self.stops: dict[int, Stop | None] = {}

    def recorded(self) -> tuple[uuid.UUID | None, Mapping[int, Recorded]]:
        return self.topic_id, self.partitions

    def record(self, found: uuid.UUID) -> uuid.UUID:
        self.topic_id = self.topic_id or found
        return self.topic_id

    def save(self, stops: Mapping[int, Stop | None], logs: Mapping[int, LogRange | None]) -> None:
        self.stops |= stops


def test_the_first_check_records_the_topic() -> None:
    log, ledger = Log(), Ledger()
    findings = TopicCheck(log, ledger).check([0, 1])
    assert (dict(findings.stops), findings.examined) == ({}, frozenset({0, 1}))
    assert ledger.topic_id == A


def test_one_partition_stops_and_another_does_not() -> None:
    log, ledger = Log(), Ledger()
    log.logs[1] = LogRange(7, 10)
    findings = TopicCheck(log, ledger).check([0, 1])
    assert findings.stops == {1: Stop(StopCause.MESSAGES_DELETED, 5, 7)}
    assert ledger.stops == {0: None, 1: findings.stops[1]}


def test_a_partition_that_kafka_does_not_describe_is_neither_stopped_nor_cleared() -> None:
    log, ledger = Log(), Ledger()
    del log.logs[1]
    assert TopicCheck(log, ledger).check([0, 1]).examined == {0}
    assert ledger.stops == {0: None}


def test_another_topic_stops_every_partition_that_the_ledger_knows() -> None:
    log, ledger = Log(), Ledger()
    ledger.topic_id, log.found_id = A, B
    findings = TopicCheck(log, ledger).check([0])
    assert {stop.cause for stop in findings.stops.values()} == {StopCause.TOPIC_REPLACED}
    assert findings.stops.keys() == ledger.stops.keys() == {0, 1}
    assert ledger.topic_id == A


def test_a_missing_topic_is_stored_only_once_it_is_believed() -> None:
    log, ledger = Log(), Ledger()
    log.found_id = None
    check = TopicCheck(log, ledger)
    assert check.check([0]).missing
    assert not ledger.stops
    findings = check.check([0], believe_missing=True)
    assert findings.missing
    assert {stop.cause for stop in findings.stops.values()} == {StopCause.TOPIC_MISSING}
