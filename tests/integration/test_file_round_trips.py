"""Random tables that pyarrow, DuckDB and Python write in every format have the same values when they are read back."""

from __future__ import annotations

import csv
import json
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.csv
import pyarrow.ipc
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bulkgrpc.cli.files import FileOptions, format_of, open_batches
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


WRITERS = [by_python_csv, by_arrow_csv, by_arrow_parquet, by_arrow_ipc, by_duckdb_parquet, by_json_lines]


def without_infinity(values: list[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    """JSON has no infinity."""
    return [(*row[:2], None if row[2] in {float("inf"), float("-inf")} else row[2], *row[3:]) for row in values]


@pytest.mark.parametrize("write", WRITERS, ids=lambda write: write.__name__)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=40)
@given(values=rows)
def test_every_value_that_is_written_is_read(tmp_path: Path, write: Any, values: list[tuple[Any, ...]]) -> None:
    values = without_infinity(values) if write is by_json_lines else values
    path = write(table_of(values), tmp_path)
    dataset = examples.compiled(FOLDER / "round_trip.proto", "cases.v1.RoundTrip")
    batches = list(open_batches(path, dataset, FileOptions(format_of(path), batch_rows=7)))
    decoded = BatchCodec(dataset).decode([batch.payload for batch in batches]).flatten().to_pylist()
    read = [tuple(row[name] for name in NAMES) for row in decoded]
    assert [(*row[:5], Decimal(row[5]), row[6]) for row in read] == values


@pytest.mark.parametrize("write", WRITERS, ids=lambda write: write.__name__)
def test_postgresql_has_every_value(
    write: Any, command: Command, parts: Parts, tenant: str, running: Any, tmp_path: Path
) -> None:
    with BulkClient(running.address) as client:
        client.register_dataset(compile_proto(FOLDER / "round_trip.proto"), "cases.v1.RoundTrip")
    hard: list[Any] = ["NA", "", "\\N", '"', "a\nb", " x ", "007", None]
    values = [
        (2**63 - 1 - n, label, 0.1 * n, n % 2 == 0, datetime(1, 1, 2, tzinfo=UTC) if n else None,
         Decimal("12345678901234567890.12345678") - n, 2**64 - 1 - n)
        for n, label in enumerate(hard)
    ]  # fmt: skip
    command.json("load", write(table_of(values), tmp_path), "--dataset", "round_trips")
    statement = f"SELECT {', '.join(NAMES)} FROM round_trips WHERE tenant = %s ORDER BY id DESC"
    assert parts.rows(statement, tenant) == values


def test_a_dialect_of_python_is_read_with_its_options(tmp_path: Path) -> None:
    path = tmp_path / "odd.csv"
    with path.open("w", newline="", encoding="utf-16") as file:
        writer = csv.writer(file, delimiter="|", quotechar="'", escapechar="\\", doublequote=False)
        writer.writerow(["id", "label", "price"])
        writer.writerow([1, "it's | odd", "1.5"])
    from bulkgrpc.cli.reading_options import Reading

    options = Reading(delimiter="|", quote="'", escape="\\", encoding="utf-16").options(path)
    dataset = examples.compiled(FOLDER / "round_trip.proto", "cases.v1.RoundTrip")
    (batch,) = open_batches(path, dataset, options)
    (row,) = BatchCodec(dataset).decode([batch.payload]).flatten().to_pylist()
    assert (row["id"], row["label"], row["price"]) == (1, "it's | odd", "1.5")
