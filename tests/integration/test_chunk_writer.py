"""The writing thread, on real PostgreSQL."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from bulkgrpc import limits
from bulkgrpc.consume.ports import Applied
from bulkgrpc.postgres import ledger
from bulkgrpc.postgres.worker_ports import PostgresChunkWriter
from tests.integration.test_transaction import CODEC, batch, chunk
from tests.support import examples
from tests.support.database import Connection, count, register
from tests.support.worker_ports import FakeDeadLetters, FakeRegistry
from workers.writer import WriterThread

TOPIC = "bulkgrpc.records"
SLOW = """
CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(0.002); RETURN new; END $$;
CREATE TRIGGER slow BEFORE INSERT ON sensor_readings FOR EACH ROW EXECUTE FUNCTION slow();
"""


@pytest.fixture
def writer(database: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[WriterThread]:
    monkeypatch.setattr(limits, "ROWS_TIMEOUT_S", 0.5)
    registry = FakeRegistry({("sensor_readings", 1): CODEC})
    thread = WriterThread(PostgresChunkWriter(database, TOPIC), registry, FakeDeadLetters(), threading.Event())
    thread.start()
    yield thread
    thread.stop(10)


SLOW_AND_SKIPPING = """
CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  PERFORM pg_sleep(0.02);
  IF new.value < 0.2 THEN RETURN NULL; END IF;
  RETURN new;
END $$;
CREATE TRIGGER slow BEFORE INSERT ON sensor_readings FOR EACH ROW EXECUTE FUNCTION slow();
"""


def test_the_time_of_rows_is_that_of_all_their_statements(connection: Connection, writer: WriterThread) -> None:
    register(connection, examples.readings())
    connection.execute(SLOW_AND_SKIPPING)
    epoch = ledger.acquire(connection, TOPIC, [0])[0].owner_epoch
    # The first record is skipped, so the rows are written again: each time in less than the limit.
    jobs = (batch(0, number * 10, 10, job=f"k{number}") for number in range(2))
    writer.submit(chunk(epoch, 0, *jobs).chunk)
    result = writer.result(20)
    assert result is not None
    assert isinstance(result.outcome, Applied)
    assert (result.outcome.parked, result.too_slow) == (2, True)
    assert count(connection, "sensor_readings") == 0


def test_rows_that_take_too_long_are_parked_and_the_chunk_is_written_without_them(
    connection: Connection, writer: WriterThread
) -> None:
    register(connection, examples.readings())
    connection.execute(SLOW)
    epoch = ledger.acquire(connection, TOPIC, [0])[0].owner_epoch
    writer.submit(chunk(epoch, 0, *(batch(number, number * 100, 100) for number in range(10))).chunk)
    result = writer.result(20)
    assert result is not None
    assert isinstance(result.outcome, Applied)
    assert (result.outcome.parked, result.too_slow) == (10, True)
    assert count(connection, "sensor_readings") == 0
    assert count(connection, "bulk.parked") == 10
