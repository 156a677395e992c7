"""Batches all of whose records are rejected, on real PostgreSQL: all are reported, without Python per record."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from bulkgrpc.consume.assembly import Chunk, Received, Span
from bulkgrpc.consume.decode import PreparedChunk, prepare
from bulkgrpc.datasets.codec import BatchCodec
from bulkgrpc.datasets.definition import ConflictPolicy
from bulkgrpc.model import digest_of
from bulkgrpc.postgres import ledger
from bulkgrpc.postgres.transaction import write_chunk
from bulkgrpc.postgres.writers.table import TableWriter
from tests.integration.test_transaction import TOPIC, job_row, message
from tests.support import examples
from tests.support.cost import BLOCKS_SLACK, OPCODES_RATIO_MAX, Work, cost
from tests.support.database import Connection, count, register

RECORDS = 50_000
KEYS = b"\x0a\x02S1\x1a\x02\x08\x05"
TRIGGER = """
    CREATE FUNCTION reject() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {statement}; RETURN NEW; END $$;
    CREATE TRIGGER reject BEFORE INSERT ON sensor_readings FOR EACH ROW EXECUTE FUNCTION reject()
"""


def prepared(epoch: int, offset: int, payload: bytes, records: int, policy: ConflictPolicy = "ignore") -> PreparedChunk:
    """A chunk of one batch, the next of its job."""
    batch = replace(message(offset, records), digest=digest_of(payload))
    codec = BatchCodec(replace(examples.readings(), conflict_policy=policy))
    span = Span(0, offset, offset + 1, epoch)
    return prepare(Chunk((span,), (Received(0, offset, batch, payload),), records), lambda _name, _version: codec)


@pytest.fixture
def epoch(connection: Connection) -> int:
    register(connection, examples.readings())
    return ledger.acquire(connection, TOPIC, [0])[0].owner_epoch


def reported(connection: Connection) -> list[tuple[str, int]]:
    """How many rejections there are of each code."""
    rows = connection.execute(
        "SELECT code, count(DISTINCT record_index)::int FROM bulk.rejections GROUP BY 1"
    ).fetchall()
    return [(str(code), int(number)) for code, number in rows]


def test_a_batch_of_50_000_records_that_is_sent_twice_is_reported_record_by_record(
    connection: Connection, epoch: int
) -> None:
    payload = examples.reading_batch(0, RECORDS)
    for offset in (0, 1):
        write_chunk(connection, TOPIC, prepared(epoch, offset, payload, RECORDS, "reject"), TableWriter())
    assert job_row(connection)[1:] == (2 * RECORDS, RECORDS, 0, RECORDS, 0)
    assert reported(connection) == [("DUPLICATE_KEY", RECORDS)]
    row = connection.execute("SELECT reason, record FROM bulk.rejections WHERE record_index = 7").fetchone()
    assert row is not None
    assert row[0].startswith("the key (sensor_id=S7, sampled_at=2023-11-14 22:13:20.007")
    assert examples.batch_of([row[1]]) == examples.reading_batch(7, 1)


CAUSES: dict[str, Callable[[Connection], object]] = {
    "check": lambda table: table.execute("ALTER TABLE sensor_readings ADD CHECK (value < 0)"),
    "not null": lambda table: table.execute(
        "ALTER TABLE sensor_readings ADD COLUMN x int NOT NULL DEFAULT nullif(1, 1)"
    ),
    "trigger": lambda table: table.execute(TRIGGER.format(statement="RAISE 'no' USING ERRCODE = '45000'").encode()),
    "foreign key": lambda table: table.execute(
        "CREATE TABLE sensors (id text PRIMARY KEY); ALTER TABLE sensor_readings ADD FOREIGN KEY (sensor_id) "
        "REFERENCES sensors"
    ),
}


@pytest.mark.parametrize("prevent", CAUSES.values(), ids=CAUSES)
def test_python_does_not_work_per_row_that_postgresql_rejects(
    connection: Connection, epoch: int, prevent: Callable[[Connection], object]
) -> None:
    prevent(connection)
    offset = 0

    def writing(records: int) -> Work:
        payload = examples.reading_batch(0, records)

        def work() -> object:
            nonlocal offset
            chunk = prepared(epoch, offset, payload, records)
            offset += 1
            return write_chunk(connection, TOPIC, chunk, TableWriter())

        return work

    few, many = cost(writing(1_000)), cost(writing(20_000))
    assert many[0] <= few[0] * OPCODES_RATIO_MAX
    assert many[1] <= max(few[1], 0) + BLOCKS_SLACK
    assert reported(connection) == [("REJECTED_BY_TABLE", 20_000)]
    assert count(connection, "sensor_readings") == 0


@pytest.mark.parametrize("state", ["45000", "P0002", "P0004", "20000", "55000", "40001", "57014", "XX002", "42P01"])
def test_what_a_trigger_raises_is_about_its_row_whatever_the_sqlstate(
    connection: Connection, epoch: int, state: str
) -> None:
    raised = f"IF NEW.value = 3 THEN RAISE 'not three' USING ERRCODE = '{state}'; END IF"
    connection.execute(TRIGGER.format(statement=raised).encode())
    write_chunk(connection, TOPIC, prepared(epoch, 0, examples.reading_batch(0, 100), 100), TableWriter())
    assert count(connection, "sensor_readings") == 99
    found = connection.execute("SELECT record_index, code, reason FROM bulk.rejections").fetchall()
    assert found == [(6, "REJECTED_BY_TABLE", "not three")]


def test_a_statement_of_a_trigger_that_fails_is_about_its_row(connection: Connection, epoch: int) -> None:
    connection.execute(TRIGGER.format(statement="INSERT INTO audit VALUES (NEW.value)").encode())
    write_chunk(connection, TOPIC, prepared(epoch, 0, examples.reading_batch(0, 100), 100), TableWriter())
    assert reported(connection) == [("REJECTED_BY_TABLE", 100)]


def test_20_000_empty_records_are_reported(connection: Connection, epoch: int) -> None:
    payload = examples.batch_of([b""] * 20_000)
    write_chunk(connection, TOPIC, prepared(epoch, 0, payload, 20_000), TableWriter())
    assert reported(connection) == [("NULL_IN_KEY", 20_000)]


def test_rows_among_refused_and_equal_ones_are_written_by_the_policy(connection: Connection, epoch: int) -> None:
    """Equal keys of which PostgreSQL rejects some: the result is that of writing one record after the other."""
    raised = "IF NEW.value = 2 THEN RAISE 'not two'; END IF"
    connection.execute(TRIGGER.format(statement=raised).encode())
    records = [examples.reading("S1", 5, value) for value in (2.0, 1.0, 2.0, 3.0)]
    expected: dict[ConflictPolicy, tuple[float, list[int]]] = {
        "ignore": (1.0, [0, 2]),
        "update": (3.0, [0, 2]),
        "reject": (1.0, [0, 2, 3]),
    }
    for offset, (policy, (value, rejected)) in enumerate(expected.items()):
        connection.execute("TRUNCATE sensor_readings, bulk.rejections")
        write_chunk(connection, TOPIC, prepared(epoch, offset, examples.batch_of(records), 4, policy), TableWriter())
        assert connection.execute("SELECT value FROM sensor_readings").fetchall() == [(value,)]
        found = connection.execute("SELECT record_index FROM bulk.rejections ORDER BY 1").fetchall()
        assert [index for (index,) in found] == rejected, policy
