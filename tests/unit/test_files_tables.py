"""The tables of conversions and refusals in docs/files.md: each of their rows is what `load` does."""

from __future__ import annotations

import csv
import json
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest

from bulkgrpc.cli.files import FileError, Rules, open_batches
from bulkgrpc.cli.reading_options import Reading
from bulkgrpc.datasets.codec import BatchCodec
from tests.support import examples
from tests.support.file_cases import FOLDER

PAGE = (Path(__file__).resolve().parent.parent.parent / "docs" / "files.md").read_text()
COUNTS = pa.map_(pa.string(), pa.int32())
NOON = datetime(2013, 1, 31, 12, tzinfo=UTC)
DAY = {"year": 2013, "month": 1, "day": 31}
AT = {"hours": 6, "minutes": 30, "seconds": 0, "nanos": 500_000_000}


def table(title: str) -> list[list[str]]:
    text = PAGE.split(f"## {title}\n")[1].split("\n## ")[0]
    rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in text.splitlines() if line[:1] == "|"]
    return rows[2:]


def read(path: Path, **options: Any) -> list[dict[str, Any]]:
    dataset = examples.things()
    found = Reading(**options).options(path, 1000, Rules(missing_is_default=True))
    batches = [batch.payload for batch in open_batches(path, dataset, found)]
    rows: list[dict[str, Any]] = BatchCodec(dataset).decode(batches).flatten().to_pylist()
    return rows


def of_text(folder: Path, field: str, text: str) -> Any:
    path = folder / "t.csv"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([["id", field], ["1", text]])
    return read(path)[0][field]


def of_type(folder: Path, field: str, value: pa.Array, **options: Any) -> Any:
    path = folder / "t.parquet"
    pyarrow.parquet.write_table(pa.table({"id": [1], field: value}), path)
    return read(path, **options)[0][field]


def of_json(folder: Path, field: str, value: str) -> Any:
    path = folder / "t.jsonl"
    path.write_text(f'{{"id": 1, "{field}": {value}}}\n')
    return read(path)[0][field]


TEXTS: dict[str, list[tuple[str, str, Any]]] = {
    "`int32`, `int64`, `uint32`, `uint64`, …": [("f_int32", "-7", -7), ("f_uint64", "18446744073709551615", 2**64 - 1),
                                                ("f_sint64", "7.0", 7)],
    "`float`, `double`": [("f_double", "1e3", 1000.0), ("f_double", "inf", float("inf")), ("f_float", "0.5", 0.5)],
    "`bool`": [("f_bool", text, text in {"true", "t", "1"}) for text in ("true", "false", "t", "f", "1", "0")],
    "`string`": [("f_string", "007", "007"), ("f_string", "NA", "NA"), ("f_string", " a ", " a ")],
    "`string` as NUMERIC": [("t_numeric", "1e3", "1000"), ("t_numeric", "9.90", "9.90")],
    "`google.protobuf.Timestamp`": [("w_timestamp", "2013-01-31T12:00:00Z", NOON),
                                    ("w_timestamp", "2013-01-31 14:00:00+02", NOON),
                                    ("w_timestamp", "2013-01-31T12:00:00", NOON)],
    "`google.type.Date`": [("w_date", "2013-01-31", DAY)],
    "`google.type.TimeOfDay`": [("w_time", "06:30:00.5", AT)],
    "`google.protobuf.Duration`": [("w_duration", "1.5s", timedelta(seconds=1.5))],
    "`bytes`": [("f_bytes", "AP8=", b"\x00\xff"), ("f_bytes", r"\x00ff", b"\x00\xff")],
    "enum": [("f_enum", "SORT_GOOD", "SORT_GOOD"), ("f_enum", "1", "SORT_GOOD"), ("f_enum_number", "SORT_GOOD", 1)],
    "`repeated`": [("r_int64", "[1, 2]", [1, 2]), ("r_string", '["a"]', ["a"])],
    "map, list of messages, `Struct`": [("j_counts", '{"a": 1}', [("a", 1)])],
}  # fmt: skip
TYPES: dict[str, list[tuple[str, pa.Array, Any]]] = {
    "`int32`, `int64`, `uint32`, `uint64`, …": [("f_int32", pa.array([7]), 7), ("f_uint64", pa.array([7.0]), 7)],
    "`float`, `double`": [("f_double", pa.array([7]), 7.0), ("f_float", pa.array([0.5]), 0.5)],
    "`bool`": [("f_bool", pa.array([True]), True)],
    "`string`": [("w_string", pa.array(["a"]), "a"), ("f_string", pa.array([Decimal("1.50")]), "1.50"),
                 ("f_string", pa.array([date(2013, 1, 31)]), "2013-01-31")],
    "`string` as NUMERIC": [("t_numeric", pa.array([Decimal("1.50")]), "1.50"), ("t_numeric", pa.array([7]), "7")],
    "`google.protobuf.Timestamp`": [("w_timestamp", pa.array([NOON], pa.timestamp("ns", "UTC")), NOON),
                                    ("w_timestamp", pa.array([date(2013, 1, 31)]), NOON - timedelta(hours=12))],
    "`google.type.Date`": [("w_date", pa.array([date(2013, 1, 31)]), DAY),
                           ("w_date", pa.array([datetime(2013, 1, 31)]), DAY)],
    "`google.type.TimeOfDay`": [("w_time", pa.array([23_400_500], pa.time32("ms")), AT)],
    "`google.protobuf.Duration`": [("w_duration", pa.array([1500], pa.duration("ms")), timedelta(seconds=1.5))],
    "`bytes`": [("f_bytes", pa.array([b"\x00\xff"]), b"\x00\xff")],
    "enum": [("f_enum", pa.array(["SORT_GOOD"]), "SORT_GOOD"), ("f_enum", pa.array([1]), "SORT_GOOD")],
    "`repeated`": [("r_int64", pa.array([[1, 2]]), [1, 2])],
    "map, list of messages, `Struct`": [("j_counts", pa.array([[("a", 1)]], COUNTS), [("a", 1)])],
}  # fmt: skip


def test_every_row_of_the_table_of_conversions_is_tested() -> None:
    titles = [row[0] for row in table("Conversions")]
    assert titles == list(TEXTS) == list(TYPES)
    for row in table("Conversions"):
        tested = {text for _, text, _ in TEXTS[row[0]]}
        quoted = {part for part in row[1].split("`")[1::2] if part not in {r"\x", "7", "1000", "nan"}}
        assert quoted <= tested, row[0]


@pytest.mark.parametrize(("field", "text", "value"), [case for cases in TEXTS.values() for case in cases])
def test_a_text_has_the_value_that_the_page_says(field: str, text: str, value: Any, tmp_path: Path) -> None:
    assert of_text(tmp_path, field, text) == value


@pytest.mark.parametrize(("field", "column", "value"), [case for cases in TYPES.values() for case in cases])
def test_a_type_has_the_value_that_the_page_says(field: str, column: pa.Array, value: Any, tmp_path: Path) -> None:
    assert of_type(tmp_path, field, column) == value


def test_numbers_are_times_and_numeric_as_the_page_says(tmp_path: Path) -> None:
    moment = pa.array([int(NOON.timestamp()) * 1000])
    assert of_type(tmp_path, "w_timestamp", moment, epoch="ms") == NOON
    assert of_json(tmp_path, "t_numeric", "1.10") == "1.10"


def test_hexadecimal_digits_are_no_number(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="column f_int32: '0x1F'"):
        of_text(tmp_path, "f_int32", "0x1F")


REFUSED: dict[str, tuple[Any, tuple[Any, ...], str]] = {
    "a quote that is not closed, or has text after it": (of_text, (), "--quote"),
    "a row with too few or too many cells": (of_text, (), "--delimiter"),
    "`1e400` for a `double`, `1e-400`": (of_text, ("f_double", "1e400"), "string"),
    "2⁵³ + 1 for a `double`; a `double` for a `float`; in Parquet a decimal that a `double` does not have":
        (of_text, ("f_double", str(2**53 + 1)), "NUMERIC"),
    "lines that end with and without a carriage return in one CSV file": (of_text, (), "dos2unix"),
    "a number in a `Struct` with more digits than a double has":
        (of_json, ("j_struct", '{"a": 9007199254740993}'), "write it as text"),
    "a number for a `string`": (of_json, ("f_string", "7"), "write it as text"),
    "a whole number for a time": (of_json, ("w_timestamp", "1714564800"), "--epoch"),
    "nanoseconds": (of_type, ("w_timestamp", pa.array([1], pa.timestamp("ns"))), "round it"),
    "a timestamp with a time of day for a date":
        (of_type, ("w_date", pa.array([datetime(2013, 1, 31, 6)])), "google.protobuf.Timestamp"),
    "0.5 or 1 for `bool` in Parquet": (of_type, ("f_bool", pa.array([0.5])), "true or false"),
    "a page of Parquet whose checksum is wrong": (of_type, (), "cannot be read as Parquet"),
    "a JSON object that names a key twice": (of_json, ("f_int32", '1, "f_int32": 2'), "names it twice"),
}  # fmt: skip
FILES = {
    "a quote that is not closed, or has text after it": b'id,f_string\n1,"a\n2,b\n',
    "a row with too few or too many cells": b"id,f_string\n1,a\n2\n",
    "lines that end with and without a carriage return in one CSV file": b"id,f_string\r\n1,a\n2,b\r\n",
}


def load_refused(title: str, how: Any, values: tuple[Any, ...], folder: Path) -> None:
    if values:
        how(folder, *values)
    elif title in FILES:
        path = folder / "t.csv"
        path.write_bytes(FILES[title])
        read(path)
    else:
        dataset = examples.compiled(FOLDER / "cases.proto", "cases.v1.Blob")
        path = FOLDER / "crc_bad.parquet"
        list(open_batches(path, dataset, Reading().options(path, 1000, Rules(ignore_unknown=True))))


def test_every_row_of_the_table_of_refusals_is_tested() -> None:
    assert [row[0] for row in table("What is refused, and why")] == list(REFUSED)


@pytest.mark.parametrize("title", REFUSED)
def test_what_the_page_refuses_is_refused_with_its_way_out(title: str, tmp_path: Path) -> None:
    how, values, way_out = REFUSED[title]
    with pytest.raises(FileError, match=way_out) as caught:
        load_refused(title, how, values, tmp_path)
    assert str(caught.value).startswith(("t.", "crc_bad."))


@pytest.mark.parametrize(
    ("field", "column"),
    [("f_float", pa.array([0.1])), ("f_double", pa.array([Decimal("0.12345678901234567891")])),
     ("f_bool", pa.array([1])), ("f_double", pa.array([2**53 + 1]))],
)  # fmt: skip
def test_the_other_values_of_these_rows_are_refused(field: str, column: pa.Array, tmp_path: Path) -> None:
    with pytest.raises(FileError, match=f"column {field}"):
        of_type(tmp_path, field, column)


def test_a_json_document_keeps_what_it_has(tmp_path: Path) -> None:
    assert json.loads(of_text(tmp_path, "t_jsonb", '{"a": 1}')) == {"a": 1}
