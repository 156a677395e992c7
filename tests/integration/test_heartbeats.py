"""The heartbeats of the ledger, and positions that belong to one run of a server, on real PostgreSQL."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest

from bulkgrpc.consume.assembly import Span
from bulkgrpc.consume.heartbeat import Heartbeat, TookBack
from bulkgrpc.consume.ports import NotNext
from bulkgrpc.positions import Outcome
from bulkgrpc.postgres import heartbeats, ledger
from bulkgrpc.postgres.heartbeats import PostgresHeartbeats
from tests.support.database import Connection

TOPIC = "records"


def test_it_beats_on_the_server_that_started_then_and_above_what_is_known(
    database: str, connection: Connection
) -> None:
    beats = PostgresHeartbeats(database, TOPIC)
    start = ledger.acquire(connection, TOPIC, [0])[0].server_start
    assert start is not None
    first = beats.beat(start, 0)
    assert first is not None
    second = beats.beat(start, first.number)
    assert second is not None
    assert second.number == first.number + 1
    assert second.time > first.time
    assert second.database.startswith("system ")
    assert ", timeline 1, LSN " in second.database
    # Another server; and one that has forgotten a heartbeat.
    assert beats.beat(start + timedelta(microseconds=1), 0) is None
    assert beats.beat(start, second.number + 1) is None
    beats.raise_to(100)
    raised = beats.state().heartbeat
    assert raised is not None
    assert raised.number == 101
    beats.raise_to(50)
    third = beats.beat(start, 101)
    assert third is not None
    assert third.number == 103


def test_what_was_noticed_of_a_restore_is_kept(database: str, connection: Connection) -> None:
    beats = PostgresHeartbeats(database, TOPIC)
    start = ledger.acquire(connection, TOPIC, [0, 1])[0].server_start
    assert start is not None
    beat = beats.beat(start, 0)
    assert beat is not None
    state = beats.state()
    assert (state.positions, state.moved_at) == ({0: 0, 1: 0}, 0)
    known = Heartbeat(7, beat.time + timedelta(minutes=1), "system 1, timeline 1, LSN 0/7")
    beats.note(TookBack(known, {0: (3, 9), 1: (0, 1)}), state)
    beats.note(TookBack(None), state)
    last, first = heartbeats.restores(connection, TOPIC)
    assert last.found == TookBack(None)
    assert first.found == TookBack(replace(known, number=0), {0: (3, 9), 1: (0, 1)})
    assert first.ledger is not None
    assert first.ledger.time == beat.time
    assert heartbeats.restores(connection, "another") == []


def test_a_position_counts_only_for_the_run_of_the_server_that_it_was_read_from(connection: Connection) -> None:
    owned = ledger.acquire(connection, TOPIC, [0])[0]
    assert owned == ledger.read(connection, TOPIC, [0])[0]
    assert owned.server_start is not None
    span = Span(0, 0, 4, owned.owner_epoch, owned.server_start)
    other = replace(span, server_start=owned.server_start - timedelta(hours=1))
    values = ledger.offsets_values(TOPIC, [span])
    ledger.check_spans(connection.execute(ledger.LOCK_OFFSETS, values), [span])
    assert ledger.positions(connection.execute(ledger.READ_OFFSETS, values), [span]) == {0: 0}
    with pytest.raises(NotNext) as of_chunk:
        ledger.check_spans(connection.execute(ledger.LOCK_OFFSETS, values), [other])
    with pytest.raises(NotNext) as ahead:
        ledger.positions(connection.execute(ledger.READ_OFFSETS, values), [other])
    assert of_chunk.value.outcomes == ahead.value.outcomes == {0: Outcome.RESTARTED}
