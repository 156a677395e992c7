"""Random tables that programs write in every format have the same values when they are read back."""

from __future__ import annotations

import csv
import json
import uuid
from datetime import UTC, datetime
from decimal import Decimal
from operator import itemgetter
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.csv
import pyarrow.ipc
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from bulkgrpc.cli.files import open_batches
from bulkgrpc.cli.reading_options import Reading
from bulkgrpc.client import BulkClient
from bulkgrpc.datasets.codec import BatchCodec
from bulkgrpc.datasets.sources import compile_proto
from tests.integration.service_values import Command, Parts
from tests.support import examples
from tests.support.file_cases import FOLDER

pytest_plugins = ["tests.integration.service_parts"]

NAMES = ("id", "label", "share", "active", "at", "price", "reach")
SCHEMA = pa.schema(
    [
        ("id", pa.int64()), ("label", pa.string()), ("share", pa.float64()), ("active", pa.bool_()),
        ("at", pa.timestamp("us", "UTC")), ("price", pa.decimal128(30, 8)), ("reach", pa.uint64()),
    ]
)  # fmt: skip

labels = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=12) | st.sampled_from(
    ["NA", "", "\\N", "null", '"', ",", ";", "a\nb", "\r\n", " x ", "007", "1e5", "'", "\\", "é\t|"]
)
moments = st.datetimes(datetime(1, 1, 2), datetime(9999, 12, 30)).map(lambda moment: moment.replace(tzinfo=UTC))
prices = st.decimals(min_value=-(10**20), max_value=10**20, places=8, allow_nan=False)
rows = st.lists(
    st.tuples(
        st.integers(-(2**63), 2**63 - 1), st.none() | labels, st.none() | st.floats(allow_nan=False),
        st.none() | st.booleans(), st.none() | moments, prices, st.none() | st.integers(0, 2**64 - 1),
    ),
    min_size=1, max_size=30, unique_by=lambda row: row[0],
)  # fmt: skip


def table_of(values: list[tuple[Any, ...]]) -> pa.Table:
    return pa.Table.from_pylist([dict(zip(NAMES, row, strict=True)) for row in values], SCHEMA)


def by_python_csv(table: pa.Table, folder: Path) -> Path:
    path = folder / "python.csv"
    # QUOTE_NOTNULL is newer than Python 3.11: null is a cell without quotes.
    with path.open("w", newline="") as file:
        file.write(",".join(NAMES) + "\n")
        for row in table.to_pylist():
            file.write(",".join(_cell(row[name]) for name in NAMES) + "\n")
    return path


def _cell(value: Any) -> str:
    if value is None:
        return ""
    text = value.isoformat() if isinstance(value, datetime) else f"{value:f}" if isinstance(value, Decimal) else value
    text = repr(text) if isinstance(text, float) else str(text)
    return '"' + text.replace('"', '""') + '"' if isinstance(value, str) else text


def by_arrow_csv(table: pa.Table, folder: Path) -> Path:
    path = folder / "arrow.csv"
    pyarrow.csv.write_csv(table, path)
    return path


def by_arrow_parquet(table: pa.Table, folder: Path) -> Path:
    path = folder / "arrow.parquet"
    pyarrow.parquet.write_table(table, path, store_schema=False)
    return path


def by_arrow_ipc(table: pa.Table, folder: Path) -> Path:
    path = folder / "file.arrow"
    with pyarrow.ipc.new_file(path, table.schema) as writer:
        writer.write_table(table)
    return path


def by_duckdb_parquet(table: pa.Table, folder: Path) -> Path:
    path = folder / "duckdb.parquet"
    with duckdb.connect() as connection:
        connection.register("written", table)
        connection.execute(f"COPY written TO '{path}' (FORMAT parquet)")
    return path


def by_json_lines(table: pa.Table, folder: Path) -> Path:
    path = folder / "python.jsonl"
    documents = [
        {
            name: value.isoformat() if isinstance(value, datetime) else f"{value:f}" if name == "price" else value
            for name, value in row.items()
        }
        for row in table.to_pylist()
    ]
    path.write_text("".join(json.dumps(document) + "\n" for document in documents))
    return path


def _copied_by_duckdb(table: pa.Table, path: Path, selected: str, options: str) -> Path:
    with duckdb.connect() as connection:
        connection.execute("SET TimeZone = 'UTC'")
        connection.register("written", table)
        connection.execute(f"COPY (SELECT {selected} FROM written) TO '{path}' ({options})")
    return path


def by_duckdb_csv(table: pa.Table, folder: Path) -> Path:
    quoted = "FORMAT csv, FORCE_QUOTE (label)"
    return _copied_by_duckdb(table, folder / "duckdb.csv", "*", quoted)


def by_duckdb_tsv(table: pa.Table, folder: Path) -> Path:
    return _copied_by_duckdb(table, folder / "duckdb.tsv", "*", "FORMAT csv, DELIMITER '\t', FORCE_QUOTE (label)")


def by_duckdb_json_lines(table: pa.Table, folder: Path) -> Path:
    return _copied_by_duckdb(table, folder / "duckdb.jsonl", "* REPLACE (price::VARCHAR AS price)", "FORMAT json")


def by_duckdb_json_array(table: pa.Table, folder: Path) -> Path:
    replaced = "* REPLACE (price::VARCHAR AS price)"
    return _copied_by_duckdb(table, folder / "duckdb.json", replaced, "FORMAT json, ARRAY true")


def by_arrow_stream(table: pa.Table, folder: Path) -> Path:
    path = folder / "stream.arrows"
    with pyarrow.ipc.new_stream(path, table.schema) as writer:
        writer.write_table(table)
    return path


def by_polars_csv(table: pa.Table, folder: Path) -> Path:
    path = folder / "polars.csv"
    pytest.importorskip("polars").from_arrow(table).write_csv(path)
    return path


def by_polars_tsv(table: pa.Table, folder: Path) -> Path:
    path = folder / "polars.tsv"
    pytest.importorskip("polars").from_arrow(table).write_csv(path, separator="\t")
    return path


def by_polars_json_lines(table: pa.Table, folder: Path) -> Path:
    path = folder / "polars.jsonl"
    pytest.importorskip("polars").from_arrow(table).write_ndjson(path)
    return path


def by_polars_json_array(table: pa.Table, folder: Path) -> Path:
    path = folder / "polars.json"
    pytest.importorskip("polars").from_arrow(table).write_json(path)
    return path


def by_polars_parquet(table: pa.Table, folder: Path) -> Path:
    path = folder / "polars.parquet"
    pytest.importorskip("polars").from_arrow(table).write_parquet(path)
    return path


def by_polars_ipc(table: pa.Table, folder: Path) -> Path:
    path = folder / "polars.arrow"
    pytest.importorskip("polars").from_arrow(table).write_ipc(path)
    return path


def _pandas(table: pa.Table) -> Any:
    """Return a data frame with types that have null: pandas' own turn whole numbers with null into doubles."""
    pandas = pytest.importorskip("pandas")
    return table.to_pandas(types_mapper=pandas.ArrowDtype)


def by_pandas_csv(table: pa.Table, folder: Path) -> Path:
    path = folder / "pandas.csv"
    _pandas(table).to_csv(path, index=False)
    return path


def by_pandas_tsv(table: pa.Table, folder: Path) -> Path:
    path = folder / "pandas.tsv"
    _pandas(table).to_csv(path, index=False, sep="\t")
    return path


def by_pandas_parquet(table: pa.Table, folder: Path) -> Path:
    path = folder / "pandas.parquet"
    _pandas(table).to_parquet(path, index=False)
    return path


def by_pandas_feather(table: pa.Table, folder: Path) -> Path:
    path = folder / "pandas.feather"
    _pandas(table).to_feather(path)
    return path


WRITERS = [
    by_python_csv, by_arrow_csv, by_arrow_parquet, by_arrow_ipc, by_arrow_stream, by_duckdb_csv, by_duckdb_tsv,
    by_duckdb_parquet, by_duckdb_json_lines, by_duckdb_json_array, by_json_lines, by_polars_csv, by_polars_tsv,
    by_polars_json_lines, by_polars_json_array, by_polars_parquet, by_polars_ipc, by_pandas_csv, by_pandas_tsv,
    by_pandas_parquet, by_pandas_feather,
]  # fmt: skip


def without_infinity(values: list[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    """JSON has no infinity."""
    return [(*row[:2], None if row[2] in {float("inf"), float("-inf")} else row[2], *row[3:]) for row in values]


NULLS = {"polars": {"NA", "\\N"}, "pandas": {"NA", "\\N", ""}}
"""By program, the texts that its CSV does not distinguish from null: it writes them without quotes."""


def writable(write: Any, values: list[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    """Return the values as the file can have them."""
    name = write.__name__
    if "json" in name:
        return without_infinity(values)
    nulls = next((texts for program, texts in NULLS.items() if program in name and "sv" in name), set[str]())
    if "pandas" in name and "sv" in name:
        # It writes a carriage return without quotes, and the file is refused: its lines end in two ways.
        nulls = nulls | {row[1] for row in values if row[1] and "\r" in row[1]}
    return [(row[0], None if row[1] in nulls else row[1], *row[2:]) for row in values]


@pytest.mark.parametrize("write", WRITERS, ids=lambda write: write.__name__)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=20)
@given(values=rows)
def test_every_value_that_is_written_is_read(tmp_path: Path, write: Any, values: list[tuple[Any, ...]]) -> None:
    values = writable(write, values)
    path = write(table_of(values), tmp_path)
    dataset = examples.compiled(FOLDER / "round_trip.proto", "cases.v1.RoundTrip")
    batches = list(open_batches(path, dataset, Reading().options(path, batch_rows=7)))
    decoded = BatchCodec(dataset).decode([batch.payload for batch in batches]).flatten().to_pylist()
    read = [tuple(row[name] for name in NAMES) for row in decoded]
    assert [(*row[:5], Decimal(row[5]), row[6]) for row in read] == values


@pytest.fixture(scope="session")
def round_trips(running: Any) -> str:
    """The server's address, with the dataset registered."""
    with BulkClient(running.address) as client:
        client.register_dataset(compile_proto(FOLDER / "round_trip.proto"), "cases.v1.RoundTrip")
    return str(running.address)


HARD: list[tuple[Any, ...]] = [
    (2**63 - 1 - n, label, 0.1 * n, n % 2 == 0, datetime(1, 1, 2, tzinfo=UTC) if n else None,
     Decimal("12345678901234567890.12345678") - n, 2**64 - 1 - n)
    for n, label in enumerate(["NA", "", "\\N", '"', "a\nb", " x ", "007", None])
]  # fmt: skip


@pytest.mark.parametrize("write", WRITERS, ids=lambda write: write.__name__)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=3)
@example(values=HARD)
@given(values=rows)
def test_postgresql_has_every_value(
    write: Any, values: list[tuple[Any, ...]], round_trips: str, parts: Parts, tmp_path: Path
) -> None:
    values = writable(write, values)
    tenant = f"t-{uuid.uuid4().hex[:12]}"
    report = Command(round_trips, tenant).json(
        "load", write(table_of(values), tmp_path), "--dataset", "round_trips", "--batch-rows", "7"
    )
    assert report["job"]["counts"]["written"] == len(values)
    statement = f"SELECT {', '.join(NAMES)} FROM round_trips WHERE tenant = %s"
    assert sorted(parts.rows(statement, tenant), key=itemgetter(0)) == sorted(values, key=itemgetter(0))


def test_a_dialect_of_python_is_read_with_its_options(tmp_path: Path) -> None:
    path = tmp_path / "odd.csv"
    with path.open("w", newline="", encoding="utf-16") as file:
        writer = csv.writer(file, delimiter="|", quotechar="'", escapechar="\\", doublequote=False)
        writer.writerow(["id", "label", "price"])
        writer.writerow([1, "it's | odd", "1.5"])
    options = Reading(delimiter="|", quote="'", escape="\\", encoding="utf-16").options(path)
    dataset = examples.compiled(FOLDER / "round_trip.proto", "cases.v1.RoundTrip")
    (batch,) = open_batches(path, dataset, options)
    (row,) = BatchCodec(dataset).decode([batch.payload]).flatten().to_pylist()
    assert (row["id"], row["label"], row["price"]) == (1, "it's | odd", "1.5")
