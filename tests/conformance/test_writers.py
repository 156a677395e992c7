"""One suite for every way of writing rows: whatever the way, the table and the counts are the oracle's."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import psycopg
import pyarrow as pa
import pytest

from bulkgrpc.datasets.codec import BatchCodec
from bulkgrpc.datasets.ddl import create_table
from bulkgrpc.datasets.decoding import Payload
from bulkgrpc.datasets.definition import ConflictPolicy
from bulkgrpc.datasets.rows import Rows, to_rows
from bulkgrpc.postgres.connection import Connection
from bulkgrpc.postgres.writers import direct, ignore, reject, update
from bulkgrpc.postgres.writers.constraints import broken_constraints
from bulkgrpc.postgres.writers.table import STAGED_CHUNKS, TableWriter
from bulkgrpc.postgres.writers.written import Writer, Written
from tests.support import examples
from tests.support.database import count, register

CODEC = BatchCodec(examples.readings())
TRADES = BatchCodec(examples.trades())
TABLE = "sensor_readings"


WAYS: dict[str, Writer] = {
    "direct": direct.write,
    "ignore": ignore.write,
    "update": update.write,
    "reject": reject.write,
    "table": lambda connection, rows, owner: TableWriter().write(connection, rows, owner),
}
MERGING = {name: WAYS[name] for name in ("ignore", "table")}


@pytest.fixture(params=[False, True], ids=["", "database's collation"])
def table(connection: Connection, request: pytest.FixtureRequest) -> Connection:
    """The table as it is created, and as earlier releases created it."""
    connection.execute(create_table(replace(examples.readings(), database_collation=request.param)))
    return connection


def _rejected(done: Written) -> list[tuple[int, str, str]]:
    """Row, code and reason of each rejected row."""
    code, _, reason = (column.to_pylist() for column in done.rejected.causes.columns)
    return list(zip(done.rejected.row.tolist(), code, reason, strict=True))


def _indices(rows: Rows, done: Written) -> list[int]:
    """Indices of the rejected records, sorted."""
    return sorted(rows.record_index[done.rejected.row].tolist())


def _rows(*spans: tuple[int, int]) -> Rows:
    return to_rows(CODEC, [Payload("acme", size, examples.reading_batch(start, size)) for start, size in spans])


def _write(connection: Connection, way: Writer, rows: Rows) -> list[int]:
    with connection.transaction():
        return [int(count) for count in way(connection, rows, rows.payload).written]


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_new_rows_are_written_and_counted_for_their_owner(table: Connection, way: Writer) -> None:
    assert _write(table, way, _rows((0, 100), (500, 20), (600, 1))) == [100, 20, 1]
    rows = table.execute("SELECT tenant, sensor_id, value, sampled_at FROM sensor_readings ORDER BY value").fetchall()
    expected = [*range(100), *range(500, 520), 600]
    assert [(row[0], row[1], row[2]) for row in rows] == [("acme", f"S{n % 10}", n * 0.5) for n in expected]
    assert [round(row[3].timestamp() * 1e6) for row in rows] == [1_700_000_000_000_000 + n * 1000 for n in expected]


@pytest.mark.parametrize("way", MERGING.values(), ids=MERGING)
def test_a_key_that_is_there_is_left_alone(table: Connection, way: Writer) -> None:
    _write(table, way, _rows((0, 50)))
    table.execute("UPDATE sensor_readings SET value = -1")
    assert _write(table, way, _rows((40, 20), (45, 30))) == [10, 15]
    assert count(table, TABLE) == 75
    row = table.execute("SELECT count(*) FROM sensor_readings WHERE value = -1").fetchone()
    assert row == (50,)


@pytest.mark.parametrize("way", MERGING.values(), ids=MERGING)
def test_of_equal_keys_the_first_is_written(table: Connection, way: Writer) -> None:
    first, second = b"\x0a\x02S1\x11" + np.float64(1).tobytes(), b"\x0a\x02S1\x11" + np.float64(2).tobytes()
    at = b"\x1a\x02\x08\x05"
    batches = [[first + at, second + at], [second + at]]
    payloads = [Payload("acme", len(batch), examples.batch_of(batch)) for batch in batches]
    assert _write(table, way, to_rows(CODEC, payloads))[0] == 1
    assert table.execute("SELECT value FROM sensor_readings").fetchall() == [(1.0,)]


def test_straight_copy_rejects_a_key_that_is_there(table: Connection) -> None:
    _write(table, direct.write, _rows((0, 5)))
    with pytest.raises(psycopg.errors.UniqueViolation):
        _write(table, direct.write, _rows((4, 5)))
    assert count(table, TABLE) == 5


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_every_shape_of_column_is_stored_as_it_was_sent(connection: Connection, way: Writer) -> None:
    connection.execute(create_table(examples.trades()))
    full = {
        "trade_id": -(2**63),
        "symbol": "ACME",
        "side": "SIDE_SELL",
        "price": "101.2500",
        "quantity": 2**32 - 1,
        "executed_at": 1_700_000_000_123_456,
        "venue": {"code": "XNYS", "country": "US", "desk": None},
        "remark": "é\n\t'",
        "fee_minor": -5,
        "cancelled": False,
        "tags": ["a", ""],
        "fills": [1, -2],
        "fill_prices": [0.5],
        "signature": b"\x00\xff",
        "order_id": 2**64 - 1,
        "risk": 0.25,
    }
    batch = TRADES.encode(pa.RecordBatch.from_pylist([full], schema=TRADES.record_schema), 1)[0]
    assert _write(connection, way, to_rows(TRADES, [Payload("acme", 2, batch + examples.batch_of([b"\x08\x07"]))])) == [
        2
    ]
    found = connection.execute("SELECT * FROM trades ORDER BY trade_id").fetchall()
    assert found[0][:6] == ("acme", -(2**63), "ACME", "SIDE_SELL", "101.2500", 2**32 - 1)
    assert found[0][6].timestamp() * 1e6 == 1_700_000_000_123_456
    assert found[0][7:] == (
        "XNYS",
        "US",
        None,
        "é\n\t'",
        -5,
        False,
        ["a", ""],
        [1, -2],
        [0.5],
        b"\x00\xff",
        2**64 - 1,
        0.25,
    )
    assert found[1] == (
        "acme", 7, "", "SIDE_UNSPECIFIED", "", 0, None, None, None, None, None, None, None, [], [], [], b"", 0, 0.0
    )  # fmt: skip


def test_after_a_conflict_the_next_chunks_go_by_staging_and_then_straight_again(table: Connection) -> None:
    writer = TableWriter()

    def staging_tables() -> int:
        found = table.execute("SELECT FROM pg_class WHERE relname LIKE 'bulkgrpc_%' AND relpersistence = 't'")
        return len(found.fetchall())

    with table.transaction():
        writer.write(table, _rows((0, 5)), np.zeros(5, np.int32))
    assert staging_tables() == 0
    for chunk in range(STAGED_CHUNKS + 2):
        with table.transaction():
            outcome = writer.write(table, _rows((chunk * 5, 5)), np.zeros(5, np.int32))
        assert outcome.written.tolist() == [0 if chunk == 0 else 5]
    assert staging_tables() == 1


@pytest.mark.parametrize("conflicts", [False, True], ids=["new keys", "known keys"])
def test_rows_that_postgresql_rejects_are_reported_and_the_others_written(table: Connection, conflicts: bool) -> None:
    if conflicts:
        _write(table, direct.write, _rows((0, 10)))
    rejected = [n for n in range(200) if (n * 0.5) % 7 == 0.5]
    table.execute("DELETE FROM sensor_readings WHERE value::numeric % 7 = 0.5")
    before = count(table, TABLE)
    table.execute("ALTER TABLE sensor_readings ADD CONSTRAINT no_sevens CHECK (value::numeric % 7 <> 0.5)")
    rows = _rows((0, 200))
    with table.transaction():
        outcome = TableWriter().write(table, rows, rows.payload)
    assert _indices(rows, outcome) == rejected
    assert all("no_sevens" in reason for _, _, reason in _rejected(outcome))
    assert count(table, TABLE) == 200 - len(rejected)
    assert outcome.written.tolist() == [200 - len(rejected) - before]


def test_a_key_too_long_for_its_index_is_rejected_not_retried(table: Connection) -> None:
    rng = np.random.default_rng(1)
    long = bytes(rng.integers(97, 122, 9000, dtype=np.uint8))
    record = b"\x0a" + bytes([len(long) & 127 | 128, len(long) >> 7]) + long + b"\x1a\x00"
    rows = to_rows(CODEC, [Payload("acme", 2, examples.batch_of([b"\x0a\x02S1\x1a\x00", record]))])
    with table.transaction():
        outcome = TableWriter().write(table, rows, rows.payload)
    assert outcome.written.tolist() == [1]
    assert len(outcome.rejected) == 1


def test_a_deferred_refusal_without_a_line_is_found_by_halving(table: Connection) -> None:
    table.execute("CREATE TABLE sensors (id text PRIMARY KEY)")
    table.execute("INSERT INTO sensors SELECT 'S' || n FROM generate_series(0, 8) n")
    table.execute("ALTER TABLE sensor_readings ADD FOREIGN KEY (sensor_id) REFERENCES sensors")
    rows = _rows((0, 40))
    with table.transaction():
        outcome = TableWriter().write(table, rows, rows.payload)
    assert _indices(rows, outcome) == [9, 19, 29, 39]
    assert outcome.written.tolist() == [36]


def _same_key(values: list[float]) -> bytes:
    at = b"\x0a\x02S1\x1a\x02\x08\x05"
    return examples.batch_of([at + b"\x11" + np.float64(value).tobytes() for value in values])


def test_the_last_record_of_a_key_wins_in_the_chunk_and_over_what_is_there(table: Connection) -> None:
    payloads = [Payload("acme", 2, _same_key([1, 2])), Payload("acme", 1, _same_key([3]))]
    assert _write(table, update.write, to_rows(CODEC, payloads)) == [2, 1]
    assert table.execute("SELECT value FROM sensor_readings").fetchall() == [(3.0,)]
    assert _write(table, update.write, to_rows(CODEC, [Payload("acme", 2, _same_key([5, 4]))])) == [2]
    assert table.execute("SELECT value FROM sensor_readings").fetchall() == [(4.0,)]


def test_a_key_that_is_there_or_came_before_is_rejected_by_name(table: Connection) -> None:
    _write(table, direct.write, _rows((0, 5)))
    twice = to_rows(CODEC, [Payload("acme", 2, _same_key([1, 2])), Payload("acme", 10, examples.reading_batch(0, 10))])
    with table.transaction():
        done = reject.write(table, twice, twice.payload)
    assert done.written.tolist() == [1, 5]
    found = _rejected(done)
    positions = sorted((int(twice.payload[row]), int(twice.record_index[row])) for row, _, _ in found)
    assert positions == [
        (0, 1),
        (1, 0),
        (1, 1),
        (1, 2),
        (1, 3),
        (1, 4),
    ]
    assert {code for _, code, _ in found} == {"DUPLICATE_KEY"}
    assert any("sensor_id=S1" in reason for _, _, reason in found)


@pytest.mark.parametrize("policy", ["ignore", "update", "reject"])
def test_a_dataset_is_written_by_its_policy(table: Connection, policy: ConflictPolicy) -> None:
    codec = BatchCodec(replace(examples.readings(), conflict_policy=policy))
    writer = TableWriter()
    for values in ([1.0], [2.0]):
        rows = to_rows(codec, [Payload("acme", 1, _same_key(values))])
        with table.transaction():
            done = writer.write(table, rows, rows.payload)
    found = table.execute("SELECT value FROM sensor_readings").fetchall()
    assert found == [(2.0 if policy == "update" else 1.0,)]
    assert (done.written.tolist(), len(done.rejected)) == {
        "ignore": ([0], 0),
        "update": ([1], 0),
        "reject": ([0], 1),
    }[policy]


NO_SEVENS = """
    CREATE FUNCTION no_sevens() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        IF NEW.value::numeric % 7 = 0.5 THEN RAISE 'no sevens' USING ERRCODE = 'check_violation'; END IF;
        RETURN NEW;
    END $$;
    CREATE TRIGGER no_sevens BEFORE INSERT ON sensor_readings FOR EACH ROW EXECUTE FUNCTION no_sevens()
"""


@pytest.mark.parametrize("there", [0, 10, 200], ids=["new keys", "known keys", "a known key between the new"])
def test_what_a_trigger_rejects_is_found_among_new_and_known_keys(table: Connection, there: int) -> None:
    rejected = [n for n in range(200) if (n * 0.5) % 7 == 0.5]
    known = [n for n in range(there) if n not in rejected and (there == 10 or n % 3 == 0)]
    for number in known:
        _write(table, direct.write, _rows((number, 1)))
    table.execute(NO_SEVENS)
    rows = _rows((0, 200))
    writer = TableWriter()
    with table.transaction():
        outcome = writer.write(table, rows, rows.payload)
    assert _indices(rows, outcome) == rejected
    assert outcome.written.tolist() == [200 - len(rejected) - len(known)]
    assert count(table, TABLE) == 200 - len(rejected)


def test_check_constraints_are_asked_for_all_rows_at_once_and_named_as_postgresql_names_them(table: Connection) -> None:
    table.execute("ALTER TABLE sensor_readings ADD COLUMN remark text CHECK (remark IS NOT NULL OR tenant <> 'x')")
    table.execute("ALTER TABLE sensor_readings ADD CONSTRAINT b_small CHECK (value < 90)")
    table.execute("ALTER TABLE sensor_readings ADD CONSTRAINT a_odd CHECK (value::numeric % 2 <> 0) NOT VALID")
    rows = _rows((0, 200))
    said = {}
    for row, value in enumerate(rows.table.column("value").to_pylist()):
        try:
            with table.transaction(force_rollback=True):
                table.execute("INSERT INTO sensor_readings VALUES ('acme', 'S', %s, now())", (value,))
        except psycopg.errors.CheckViolation as refusal:
            said[row] = refusal.diag.message_primary
    found = broken_constraints(table, rows)
    assert dict(zip(found.row.tolist(), found.causes.column("reason").to_pylist(), strict=True)) == said
    assert {str(reason).split('"')[-2] for reason in said.values()} == {"a_odd", "b_small"}


def test_a_check_of_a_key_column_is_evaluated_with_the_columns_collation(table: Connection) -> None:
    # By bytes, upper-case letters come before all lower-case ones.
    table.execute("ALTER TABLE sensor_readings ADD CONSTRAINT late CHECK (sensor_id > 'a')")
    records = [examples.reading(name, 5, 1.0) for name in ("B", "b", "A", "Z", "a")]
    rows = to_rows(CODEC, [Payload("acme", len(records), examples.batch_of(records))])
    said = set()
    for record, name in enumerate(("B", "b", "A", "Z", "a")):
        try:
            with table.transaction(force_rollback=True):
                table.execute("INSERT INTO sensor_readings VALUES ('acme', %s, 1, now())", (name,))
        except psycopg.errors.CheckViolation:
            said.add(record)
    found = broken_constraints(table, rows)
    assert set(rows.record_index[found.row].tolist()) == said
    assert said


def test_a_check_that_fails_to_be_computed_is_left_to_the_writing(table: Connection) -> None:
    table.execute("ALTER TABLE sensor_readings ADD CONSTRAINT inverse CHECK (1 / value < 0.1)")
    rows = _rows((0, 100))
    with table.transaction():
        outcome = TableWriter().write(table, rows, rows.payload)
    assert _indices(rows, outcome) == list(range(21))
    assert "division by zero" in {reason for _, _, reason in _rejected(outcome)}
    assert outcome.written.tolist() == [79]


def test_a_trigger_that_mends_a_row_comes_before_the_check(table: Connection) -> None:
    table.execute("ALTER TABLE sensor_readings ADD CONSTRAINT small CHECK (value < 40)")
    table.execute(
        "CREATE FUNCTION halve() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN NEW.value := NEW.value / 2; RETURN NEW; "
        "END $$; CREATE TRIGGER halve BEFORE INSERT ON sensor_readings FOR EACH ROW EXECUTE FUNCTION halve()"
    )
    rows = _rows((0, 200))
    with table.transaction():
        outcome = TableWriter().write(table, rows, rows.payload)
    assert _indices(rows, outcome) == list(range(160, 200))


def test_a_conflict_with_another_unique_index_is_left_alone_too(table: Connection) -> None:
    _write(table, direct.write, _rows((0, 5)))
    table.execute("CREATE UNIQUE INDEX ON sensor_readings (value)")
    table.execute("UPDATE sensor_readings SET sampled_at = sampled_at - interval '1 day' WHERE value = 1")
    assert _write(table, ignore.write, _rows((0, 10))) == [5]


@pytest.mark.parametrize("policy", ["ignore", "update", "reject"])
def test_only_records_whose_bytes_are_new_come_to_a_policys_way(connection: Connection, policy: ConflictPolicy) -> None:
    dataset = examples.remembered(policy)
    register(connection, dataset)
    codec, writer = BatchCodec(dataset), TableWriter()
    known, other = examples.reading("S1", 5, 1.0), examples.reading("S1", 5, 2.0)
    for records, written, rejected in (
        ([known, known], [1], []),
        ([known, other, other, known], {"ignore": [0], "update": [1], "reject": [0]}[policy], [1, 2]),
        ([other, known], [0], [0]),
    ):
        rows = to_rows(codec, [Payload("acme", len(records), examples.batch_of(records))])
        with connection.transaction():
            done = writer.write(connection, rows, rows.payload)
        assert done.written.tolist() == written
        assert _indices(rows, done) == (rejected if policy == "reject" else [])
    found = connection.execute(f"SELECT value FROM remembered_{policy}").fetchall()
    assert found == [(2.0 if policy == "update" else 1.0,)]
