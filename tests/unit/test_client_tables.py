"""Tables of other libraries as batches: values, refusals, and the same batches however the table is cut."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import duckdb
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

from bulkgrpc.client import Batch, ClientConfig, Dataset, Rules, TableSource, TextForms, WrongInput
from bulkgrpc.client.tables import ArrowTable, open_table
from bulkgrpc.datasets.codec import BatchCodec
from tests.support import examples
from tests.support.file_cases import FOLDER

DATASET = examples.compiled(FOLDER / "round_trip.proto", "cases.v1.RoundTrip")
AT = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)
SCHEMA = pa.schema(
    [
        ("id", pa.int64()), ("label", pa.string()), ("share", pa.float64()), ("active", pa.bool_()),
        ("at", pa.timestamp("us", "UTC")), ("price", pa.decimal128(30, 8)), ("reach", pa.uint64()),
    ]
)  # fmt: skip
ROWS: list[dict[str, Any]] = [
    {
        "id": 2**63 - 1,
        "label": "NA",
        "share": 0.1,
        "active": True,
        "at": AT,
        "price": Decimal("0.00000001"),
        "reach": 7,
    },
    {"id": 2, "label": "", "share": None, "active": None, "at": None, "price": Decimal("12.5"), "reach": None},
    {"id": 3, "label": None, "share": -0.0, "active": False, "at": AT, "price": Decimal(-3), "reach": 2**64 - 1},
]
TABLE = pa.Table.from_pylist(ROWS, SCHEMA)


class StreamOnly:
    """What any other library gives: a stream, and nothing else."""

    def __init__(self, table: pa.Table) -> None:
        self._table = table

    def __arrow_c_stream__(self, requested_schema: object | None = None) -> object:
        return self._table.__arrow_c_stream__(requested_schema)


def of_duckdb(table: pa.Table) -> Any:
    connection = duckdb.connect()
    connection.register("given", table)
    return connection.sql("SELECT * FROM given")


def of_pandas(table: pa.Table) -> Any:
    return table.to_pandas(types_mapper=pd.ArrowDtype)


def of_views(table: pa.Table) -> pa.Table:
    schema = table.schema.set(1, pa.field("label", pa.string_view()))
    return table.cast(schema)


def of_dictionary(table: pa.Table) -> pa.Table:
    return table.set_column(1, "label", table.column("label").dictionary_encode())


def of_large(table: pa.Table) -> pa.Table:
    return table.cast(table.schema.set(1, pa.field("label", pa.large_string())))


def chunked(table: pa.Table) -> pa.Table:
    return pa.concat_tables([table.slice(0, 1), table.slice(1, 0), table.slice(1, 2)])


LIBRARIES: list[Callable[[pa.Table], Any]] = [
    lambda table: table, StreamOnly, of_duckdb, of_pandas, pl.from_arrow, of_views, of_dictionary, of_large, chunked,
    lambda table: table.to_reader(1), lambda table: pa.concat_tables([table, table]).slice(3),
]  # fmt: skip


def batches(table: Any, batch_records: int = 1000, rules: Rules | None = None) -> list[Batch]:
    async def get_dataset(_name: str) -> Dataset:
        raise AssertionError

    source = table if rules is None else TableSource(table, rules)
    found, version = asyncio.run(open_table(source, DATASET, get_dataset, ClientConfig(batch_records=batch_records)))
    assert version == DATASET.version
    return list(found)


def read(found: list[Batch]) -> list[dict[str, Any]]:
    records: list[dict[str, Any]] = BatchCodec(DATASET).decode([one.payload for one in found]).flatten().to_pylist()
    return [{**record, "price": Decimal(record["price"])} for record in records]


@pytest.mark.parametrize("of", LIBRARIES, ids=range(len(LIBRARIES)))
def test_every_library_gives_the_same_values(of: Callable[[pa.Table], Any]) -> None:
    given = of(TABLE)
    assert isinstance(given, ArrowTable)
    assert read(batches(given)) == ROWS


def test_batches_do_not_depend_on_chunks() -> None:
    long = pa.Table.from_pylist([{**ROWS[1], "id": number} for number in range(1000)], SCHEMA)
    pieces = [long.slice(start, 37) for start in range(0, 1000, 37)]
    whole = batches(long, 64)
    assert [one.records for one in whole] == [64] * 15 + [40]
    assert batches(pa.concat_tables(pieces), 64) == whole
    assert batches(long.to_reader(13), 64) == whole


def test_an_empty_table_has_no_batch_and_its_columns_are_checked() -> None:
    assert batches(TABLE.slice(0, 0)) == []
    with pytest.raises(WrongInput, match="the table has no column for these key fields"):
        batches(pa.table({"label": pa.array([], pa.string())}))


def refusal(table: Any, rules: Rules | None = None) -> str:
    with pytest.raises(WrongInput) as refused:
        batches(table, rules=rules)
    assert "--" not in str(refused.value)
    return str(refused.value)


def with_column(name: str, values: pa.Array) -> pa.Table:
    at = TABLE.schema.get_field_index(name)
    return TABLE.set_column(at, name, values) if at >= 0 else TABLE.append_column(name, values)


def test_a_value_that_does_not_fit_is_named_with_its_row() -> None:
    table = with_column("reach", pa.array([1, 2, -3]))
    assert "row 3 (the first record is row 1), column reach: -3 is not a whole number" in refusal(table)
    long = pa.concat_tables([with_column("reach", pa.array([1, 2, 3]))] * 40_000 + [table])
    assert "row 120,003 " in refusal(long)


def test_a_missing_key_and_an_unknown_column_are_refused() -> None:
    assert "column id" in refusal(with_column("id", pa.array([1, None, 3])))
    said = refusal(with_column("colour", pa.array(["a", "b", "c"])))
    assert "no field matches column colour" in said
    assert "Rules(ignore_unknown=True)" in said
    assert "Rules(renames=" in said


def test_numbers_have_no_unit_of_time() -> None:
    table = with_column("at", pa.array([1767323045678] * 3))
    assert 'Rules(forms=TextForms(epoch="ms"))' in refusal(table)
    found = read(batches(table, rules=Rules(forms=TextForms(epoch="ms"))))
    assert found[0]["at"] == datetime(2026, 1, 2, 3, 4, 5, 678000, tzinfo=UTC)


def test_rules_rename_and_ignore() -> None:
    table = with_column("colour", pa.array(["a", "b", "c"])).rename_columns(["key", *SCHEMA.names[1:], "colour"])
    assert read(batches(table, rules=Rules(ignore_unknown=True, renames={"key": "id"}))) == ROWS


def test_columns_of_the_same_name_and_a_single_column_are_refused() -> None:
    twice = pa.Table.from_arrays([pa.array([1]), pa.array([2])], names=["id", "id"])
    assert "two columns have the name id" in refusal(twice)
    assert "cannot be read as rows of named columns" in refusal(pa.chunked_array([pa.array([1, 2])]))


def test_an_error_of_the_stream_is_its_own() -> None:
    def broken() -> Any:
        yield TABLE.to_batches()[0]
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        batches(pa.RecordBatchReader.from_batches(SCHEMA, broken()))


def test_a_version_that_is_not_the_newest_is_refused() -> None:
    async def get_dataset(_name: str) -> Dataset:
        return DATASET

    with pytest.raises(WrongInput, match="has version 1 now"):
        asyncio.run(open_table(TABLE, "round_trips@2", get_dataset, ClientConfig()))
