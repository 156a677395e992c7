"""Whether the ledger is older than what Kafka knows of it, and the watch that notices it, on ports in memory."""

from __future__ import annotations

import threading
from collections.abc import Collection, Mapping
from datetime import UTC, datetime, timedelta

import pytest

from bulkgrpc.consume.heartbeat import Committed, Heartbeat, LedgerState, TookBack, taken_back
from bulkgrpc.consume.ports import RecordLogError
from bulkgrpc.positions import Ownership
from workers import ledger_watch
from workers.ledger_watch import BeatingLedgerWatch

BEGAN = datetime(2026, 11, 30, tzinfo=UTC)
LATER = BEGAN + timedelta(hours=1)


def beat(number: int) -> Heartbeat:
    return Heartbeat(number, BEGAN + timedelta(seconds=number), f"timeline 1, LSN 0/{number}")


@pytest.mark.parametrize(
    ("ledger", "committed", "found"),
    [
        (LedgerState(beat(5), {0: 10}), {}, None),
        (LedgerState(beat(5), {0: 10}), {0: Committed(10, beat(5))}, None),
        (LedgerState(beat(5), {0: 12}), {0: Committed(10, beat(4))}, None),
        (LedgerState(beat(5), {0: 9}), {0: Committed(10, beat(5))}, TookBack(beat(5), {0: (9, 10)})),
        (LedgerState(beat(3), {0: 10}), {0: Committed(10, beat(5))}, TookBack(beat(5))),
        (LedgerState(None, {0: 0}), {0: Committed(0, beat(1))}, TookBack(beat(1))),
        # Of a worker of a release before heartbeats.
        (LedgerState(None, {0: 9}), {0: Committed(10)}, TookBack(None, {0: (9, 10)})),
        # An operator moved the ledger after this was committed, or before.
        (LedgerState(beat(7), {0: 9}, moved_at=6), {0: Committed(10, beat(5))}, None),
        (LedgerState(beat(7), {0: 9}, moved_at=6), {0: Committed(10)}, None),
        (LedgerState(beat(7), {0: 9}, moved_at=6), {0: Committed(10, beat(6))}, TookBack(beat(6), {0: (9, 10)})),
        # Of several partitions, one was not committed, one is not the ledger's.
        (LedgerState(beat(5), {0: 9, 1: 3}), {0: Committed(9, beat(5)), 2: Committed(8, beat(2))}, None),
    ],
)
def test_what_a_restore_took_back(
    ledger: LedgerState, committed: Mapping[int, Committed], found: TookBack | None
) -> None:
    assert taken_back(ledger, committed) == found


def test_a_note_is_read_as_it_was_written_and_what_others_wrote_is_none() -> None:
    assert Heartbeat.from_note(beat(7).to_note()) == beat(7)
    for note in (None, "", "7", "[]", "{}", '{"beat": "x"}', '{"beat": 1, "time_us": 1e400, "database": ""}'):
        assert Heartbeat.from_note(note) is None


class Database:
    """`Heartbeats` and `GroupOffsets`. start: of the server. noted: what was stored of restores."""

    def __init__(self) -> None:
        self.start, self.number, self.offsets = BEGAN, 0, {0: 0}
        self.group: dict[int, Committed] = {}
        self.noted: list[TookBack] = []
        self.kafka_answers = True

    def state(self) -> LedgerState:
        return LedgerState(beat(self.number) if self.number else None, self.offsets)

    def beat(self, server_start: datetime, last: int) -> Heartbeat | None:
        if server_start != self.start or self.number < last:
            return None
        self.number += 1
        return beat(self.number)

    def raise_to(self, number: int) -> None:
        self.number = max(self.number, number) + 1

    def note(self, found: TookBack, ledger: LedgerState) -> None:
        self.noted.append(found)

    def committed(self, partitions: Collection[int]) -> Mapping[int, Committed]:
        if not self.kafka_answers:
            raise RecordLogError("Kafka does not answer")
        return {number: one for number, one in self.group.items() if number in partitions}

    def owned(self) -> dict[int, Ownership]:
        return {number: Ownership(number, offset, 1, self.start) for number, offset in self.offsets.items()}


@pytest.fixture
def database() -> Database:
    return Database()


@pytest.fixture
def watch(database: Database) -> BeatingLedgerWatch:
    return BeatingLedgerWatch(database, database, threading.Event())


def test_it_beats_while_positions_are_of_the_server_that_runs(database: Database, watch: BeatingLedgerWatch) -> None:
    watch.round()
    assert watch.heartbeat() is None  # nothing was acquired
    watch.acquired(database.owned())
    watch.watch(database.owned())
    watch.round()
    watch.round()
    assert watch.heartbeat() == beat(2)
    assert watch.heartbeat() is None
    assert not watch.restarted()
    assert not database.noted


def test_a_restart_is_reported_and_nothing_beats_until_the_positions_are_read_again(
    database: Database, watch: BeatingLedgerWatch
) -> None:
    watch.watch(database.owned())
    watch.round()
    database.start = LATER
    watch.round()
    assert watch.restarted()
    assert not watch.restarted()
    assert database.number == 1
    watch.watch(database.owned())
    watch.round()
    assert not watch.restarted()
    assert database.number == 2


def test_a_server_that_goes_back_without_a_restart_is_noticed_by_its_heartbeat(
    database: Database, watch: BeatingLedgerWatch
) -> None:
    watch.watch(database.owned())
    watch.round()
    watch.round()
    database.number = 1
    watch.round()
    assert watch.restarted()


def test_an_older_ledger_is_noted_once_and_beats_above_what_kafka_has(
    database: Database, watch: BeatingLedgerWatch
) -> None:
    database.number, database.offsets = 3, {0: 5}
    database.group = {0: Committed(9, beat(8))}
    watch.acquired(database.owned())
    assert database.noted == [TookBack(beat(8), {0: (5, 9)})]
    assert database.number > 8
    database.group = {0: Committed(5, beat(8))}
    watch.acquired(database.owned())
    assert len(database.noted) == 1


def test_positions_are_not_taken_without_the_comparison(database: Database, watch: BeatingLedgerWatch) -> None:
    database.kafka_answers = False
    with pytest.raises(RecordLogError):
        watch.acquired(database.owned())


def test_a_kafka_that_never_reports_what_was_committed_keeps_partitions_waiting_for_a_while_only(
    database: Database, watch: BeatingLedgerWatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    database.kafka_answers = False
    with pytest.raises(RecordLogError):
        watch.acquired(database.owned())
    monkeypatch.setattr(ledger_watch, "COMPARES_WITHIN_S", 0.0)
    watch.acquired(database.owned())
    monkeypatch.undo()
    database.kafka_answers = True
    watch.acquired(database.owned())
    database.kafka_answers = False
    with pytest.raises(RecordLogError):
        watch.acquired(database.owned())
