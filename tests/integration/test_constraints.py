"""Rows that break constraints of their table: which of them are found first, and the statements that it takes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from bulkgrpc.datasets.codec import BatchCodec
from bulkgrpc.datasets.ddl import create_table
from bulkgrpc.datasets.decoding import Payload
from bulkgrpc.datasets.rows import Rows, to_rows
from bulkgrpc.postgres.writers.table import CHECKED_CHUNKS, STAGED_CHUNKS, TableWriter
from bulkgrpc.postgres.writers.written import Written
from tests.support import examples
from tests.support.database import Connection, count

CODEC = BatchCodec(examples.readings())
TABLE = "sensor_readings"
SMALL = "ALTER TABLE sensor_readings ADD CONSTRAINT small CHECK (value < 1000)"
"""The first 2000 readings have such values."""


@pytest.fixture
def table(connection: Connection) -> Connection:
    connection.execute(create_table(examples.readings()))
    return connection


def rows_of(start: int, size: int) -> Rows:
    return to_rows(CODEC, [Payload("acme", size, examples.reading_batch(start, size))])


def write(connection: Connection, writer: TableWriter, rows: Rows) -> Written:
    with connection.transaction():
        return writer.write(connection, rows, rows.payload)


class Statements(list[str]):
    """The statements that a connection sends."""

    def copies(self, connection: Connection, writer: TableWriter, rows: Rows) -> list[str]:
        """What rows are copied into while they are written: their table, or a staging table."""
        self.clear()
        write(connection, writer, rows)
        targets = [statement.split()[1] for statement in self if statement.startswith("COPY")]
        return ["staging" if target.startswith('"pg_temp"') else "table" for target in targets]


@pytest.fixture
def statements(table: Connection) -> Iterator[Statements]:
    sent = Statements()

    class Recording(psycopg.Cursor[Any]):
        def execute(self, query: Any, *arguments: Any, **options: Any) -> Any:
            sent.append(_text(query, self))
            return super().execute(query, *arguments, **options)

        def copy(self, statement: Any, *arguments: Any, **options: Any) -> Any:
            sent.append(_text(statement, self))
            return super().copy(statement, *arguments, **options)

    table.cursor_factory = Recording
    yield sent
    table.cursor_factory = psycopg.Cursor


def _text(query: Any, cursor: psycopg.Cursor[Any]) -> str:
    if isinstance(query, psycopg.sql.Composable):
        return query.as_string(cursor)
    return query.decode() if isinstance(query, bytes) else str(query)


def test_a_table_that_rejects_rows_costs_a_chunk_one_check_and_one_copy(
    table: Connection, statements: Statements
) -> None:
    table.execute(SMALL)
    writer = TableWriter()
    assert statements.copies(table, writer, rows_of(0, 100)) == ["table"]
    assert statements.copies(table, writer, rows_of(1950, 100)) == ["table", "staging", "table"]
    for start in range(2050, 2050 + CHECKED_CHUNKS):
        # All of them are rejected: nothing is left to be copied.
        assert statements.copies(table, writer, rows_of(start, 100)) == ["staging"]
    assert statements.copies(table, writer, rows_of(1900, 101)) == ["staging", "table", "staging", "table"]
    assert count(table, TABLE) == 100 + 100


def test_a_chunk_with_rejected_rows_takes_as_many_statements_whatever_its_size(
    table: Connection, statements: Statements
) -> None:
    table.execute(SMALL)
    writer = TableWriter()
    write(table, writer, rows_of(1995, 10))
    sent = []
    for start, size in ((1900, 95), (100, 1800)):
        write(table, writer, rows_of(2000, 1))
        statements.clear()
        done = write(table, writer, rows_of(start, size))
        sent.append([statement.split()[0] for statement in statements])
        assert done.written.tolist() == [size]
    assert sent[0] == sent[1]


def test_a_table_that_rejects_no_rows_any_more_is_written_by_copy_alone_again(
    table: Connection, statements: Statements
) -> None:
    table.execute(SMALL)
    writer = TableWriter()
    write(table, writer, rows_of(2000, 1))
    for chunk in range(CHECKED_CHUNKS):
        assert statements.copies(table, writer, rows_of(chunk * 10, 10)) == ["staging", "table"]
    assert statements.copies(table, writer, rows_of(1000, 10)) == ["table"]
    assert count(table, TABLE) == CHECKED_CHUNKS * 10 + 10


def test_a_table_that_rejects_rows_and_has_keys_is_written_by_its_policy(
    table: Connection, statements: Statements
) -> None:
    writer = TableWriter()
    write(table, writer, rows_of(1000, 100))
    table.execute(SMALL)
    done = write(table, writer, rows_of(1090, 950))
    assert (done.written.tolist(), len(done.rejected)) == ([900], 40)
    for _ in range(STAGED_CHUNKS // 2):
        # The check; the keys that are looked up. No COPY into the table: no key is new.
        assert statements.copies(table, writer, rows_of(1500, 510)) == ["staging", "staging"]
    assert count(table, TABLE) == 1000


def test_what_a_function_of_a_check_raises_is_about_its_row(table: Connection) -> None:
    table.execute(
        "CREATE FUNCTION is_small(value double precision) RETURNS boolean LANGUAGE plpgsql IMMUTABLE AS $$ BEGIN "
        "IF value > 40 THEN RAISE 'too large' USING ERRCODE = '45000'; END IF; RETURN value < 30; END $$; "
        "ALTER TABLE sensor_readings ADD CONSTRAINT small CHECK (is_small(value))"
    )
    done = write(table, TableWriter(), rows_of(0, 100))
    assert done.written.tolist() == [60]
    assert set(done.rejected.causes.column("reason").to_pylist()) == {
        "too large",
        'new row for relation "sensor_readings" violates check constraint "small"',
    }


def test_a_check_of_the_whole_row_is_left_to_the_writing(table: Connection) -> None:
    table.execute(
        "ALTER TABLE sensor_readings ADD CONSTRAINT small CHECK (value < 30 AND sensor_readings IS DISTINCT FROM NULL)"
    )
    done = write(table, TableWriter(), rows_of(0, 100))
    assert (done.written.tolist(), len(done.rejected)) == ([60], 40)


def test_a_check_that_reads_the_table_is_left_to_the_writing(table: Connection) -> None:
    """A row is valid once the row before it is there."""
    rows = rows_of(0, 10)
    first = rows.table.column("value")[0].as_py()
    table.execute(
        f"""
        CREATE FUNCTION follows(sensor text, value double precision) RETURNS boolean LANGUAGE plpgsql AS
          $$ BEGIN RETURN value = {first} OR EXISTS (SELECT FROM sensor_readings); END $$;
        ALTER TABLE sensor_readings ADD CONSTRAINT follows CHECK (follows(sensor_id, value));
        """
    )
    done = write(table, TableWriter(), rows)
    assert (done.written.tolist(), len(done.rejected)) == ([10], 0)


def test_a_check_of_a_column_with_a_collation_rejects_what_postgresql_rejects(table: Connection) -> None:
    table.execute(
        'ALTER TABLE sensor_readings ALTER sensor_id TYPE text COLLATE "C", ADD CHECK (upper(sensor_id) = sensor_id), '
        "ADD CHECK (value < 1)"
    )
    # By the collation of the database, é is not upper case; by C it is.
    batch = examples.batch_of([examples.reading("S\xe9", second, float(second)) for second in range(2)])
    rows = to_rows(CODEC, [Payload("acme", 2, batch)])
    done = write(table, TableWriter(), rows)
    assert (done.written.tolist(), rows.record_index[done.rejected.row].tolist()) == ([1], [1])


def test_a_trigger_of_a_partition_that_mends_a_row_comes_before_the_check(table: Connection) -> None:
    table.execute(
        "ALTER TABLE sensor_readings RENAME TO whole; CREATE TABLE sensor_readings (LIKE whole, "
        "PRIMARY KEY (tenant, sensor_id, sampled_at), CONSTRAINT small CHECK (value < 30)) PARTITION BY HASH (tenant); "
        "CREATE TABLE only_partition PARTITION OF sensor_readings FOR VALUES WITH (MODULUS 1, REMAINDER 0); "
        "CREATE FUNCTION halve() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN NEW.value := NEW.value / 2; RETURN NEW; "
        "END $$; CREATE TRIGGER halve BEFORE INSERT ON only_partition FOR EACH ROW EXECUTE FUNCTION halve()"
    )
    done = write(table, TableWriter(), rows_of(0, 200))
    assert (done.written.tolist(), len(done.rejected)) == ([120], 80)
