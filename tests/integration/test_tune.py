"""`bulkgrpc tune` on real tables: what it copies, and that it leaves nothing behind."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from bulkgrpc.cli.app import app
from bulkgrpc.datasets.codec import BatchCodec
from bulkgrpc.datasets.decoding import Payload
from bulkgrpc.datasets.rows import to_rows
from bulkgrpc.postgres.scratch import ScratchFailed, scratch
from bulkgrpc.postgres.writers import direct
from tests.support import examples
from tests.support.database import Connection, count, register

SIZES = ["--sizes", "50,200", "--rounds", "1"]


@pytest.fixture
def readings(connection: Connection) -> Connection:
    """A database with the readings' table, an index and a column that the dataset does not have, and 100 rows."""
    register(connection, examples.readings())
    rows = to_rows(BatchCodec(examples.readings()), [Payload("acme", 100, examples.reading_batch(0, 100))])
    direct.write(connection, rows, rows.payload)
    connection.execute("CREATE INDEX ON sensor_readings (value)")
    connection.execute("ALTER TABLE sensor_readings ADD COLUMN remark text CHECK (remark <> '')")
    return connection


def tune(database: str, dataset: str, *options: str) -> Result:
    return CliRunner().invoke(app, ["tune", dataset, "--postgres", database, *SIZES, *options])


def schemas(connection: Connection) -> int:
    return connection.execute("SELECT FROM pg_namespace WHERE nspname LIKE 'bulkgrpc_tune%'").rowcount


def test_each_size_is_measured_and_nothing_is_left_behind(readings: Connection, database: str) -> None:
    result = tune(database, "sensor_readings", "--json")
    document = json.loads(result.stdout)
    assert [size["chunk_rows"] for size in document["sizes"]] == [50, 200]
    assert [size["chunks"] for size in document["sizes"]] == [8, 2]
    assert all(size["rows_per_s"] > 0 < size["chunk_ms_p50"] <= size["chunk_ms_max"] for size in document["sizes"])
    assert document["chunk_rows_recommended"] in {50, 200}
    assert document["sampled_rows"] == 100
    assert schemas(readings) == 0
    assert count(readings, "sensor_readings") == 100


def test_the_table_has_bars_and_the_setting(readings: Connection, database: str) -> None:
    result = tune(database, "sensor_readings")
    assert result.exit_code == 0
    assert "█" in result.stdout
    assert "recommended" in result.stdout
    assert "BULKGRPC_CHUNK_ROWS_MAX=" in result.stdout


def test_the_copy_has_the_tables_definition_and_repeats_its_rows(readings: Connection, database: str) -> None:
    with scratch(database, "sensor_readings", 250) as copy:
        copy.write_chunks(50, 5)
        written = copy.connection.execute(f"SELECT tenant, value FROM {copy.schema}.rows").fetchall()
        assert len(set(written)) == 250
        assert {value for _, value in written} == {n * 0.5 for n in range(100)}
        assert {tenant for tenant, _ in written} == {"acme", "acme~1", "acme~2"}
        indexes = "SELECT count(*) FROM pg_indexes WHERE schemaname = %s AND tablename = 'rows'"
        assert copy.connection.execute(indexes, (copy.schema,)).fetchone() == (2,)
        checks = "SELECT count(*) FROM pg_constraint WHERE conrelid = %s::regclass AND contype = 'c'"
        assert copy.connection.execute(checks, (f"{copy.schema}.rows",)).fetchone() == (1,)


def test_rows_are_generated_for_an_empty_table(connection: Connection, database: str) -> None:
    register(connection, examples.things())
    result = tune(database, examples.things().name, "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["sampled_rows"] == 0


def test_tables_of_others_and_tables_without_a_key_are_measured(
    connection: Connection, database: str, tmp_path: Path
) -> None:
    file = tmp_path / "bound.proto"
    file.write_text(
        'syntax = "proto3"; import "bulkgrpc/v1/options.proto"; message Bound { option (bulkgrpc.v1.dataset) = '
        '{table: "bound" key: ["id"] existing_table: {schema: "App" table: "Bound" tenant_not_stored: true}}; '
        "int64 id = 1; string name = 2; }"
    )
    connection.execute('CREATE SCHEMA "App"; CREATE TABLE "App"."Bound" (id bigint PRIMARY KEY, name text)')
    connection.execute('INSERT INTO "App"."Bound" SELECT n, \'x\' FROM generate_series(1, 9) AS n')
    bound = examples.compiled(file, "Bound")
    connection.execute(
        "INSERT INTO bulk.datasets (dataset, version, message_type, descriptors) VALUES ('bound', 1, 'Bound', %s)",
        (bound.descriptors,),
    )
    register(connection, examples.appended())
    connection.execute("INSERT INTO sensor_readings SELECT 'acme', 's', n, now() FROM generate_series(1, 9) AS n")
    for dataset, sampled in (("bound", 0), (examples.appended().name, 9)):
        result = tune(database, dataset, "--json")
        assert result.exit_code == 0, result.output
        assert json.loads(result.stdout)["sampled_rows"] == sampled
    assert count(connection, "App.Bound") == 9


def test_a_row_that_the_table_rejects_is_one_error_line_and_nothing_is_left(
    readings: Connection, database: str
) -> None:
    readings.execute("TRUNCATE sensor_readings")
    readings.execute("ALTER TABLE sensor_readings ADD CONSTRAINT small CHECK (value < 1)")
    result = tune(database, "sensor_readings")
    assert (result.exit_code, len(result.stderr.strip().splitlines())) == (1, 1)
    assert "small" in result.stderr
    assert schemas(readings) == 0


def test_a_name_that_is_not_a_dataset_is_an_error(connection: Connection, database: str) -> None:
    result = tune(database, "nothing")
    assert (result.exit_code, "bulkgrpc datasets list" in result.stderr) == (1, True)
    with pytest.raises(ScratchFailed), scratch(database, "nothing", 10):
        pass


@pytest.mark.parametrize("sizes", ["", "0", "ten", "1,2000000"])
def test_invalid_sizes_are_named_with_an_example(sizes: str) -> None:
    result = CliRunner().invoke(app, ["tune", "sensor_readings", "--postgres", "x", "--sizes", sizes])
    assert result.exit_code == 1
    assert "--sizes" in result.stderr
