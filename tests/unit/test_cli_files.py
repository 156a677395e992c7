"""Files as batches: what is read, what is refused and where."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import fields, replace
from datetime import UTC, date, datetime, timedelta
from datetime import time as dt_time
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bulkgrpc.cli.files import Dialect, FileError, FileOptions, Format, Rules, TextForms, format_of, open_batches
from bulkgrpc.cli.infer import infer_proto
from bulkgrpc.datasets.codec import BatchCodec
from bulkgrpc.datasets.decoding import Payload
from bulkgrpc.datasets.framing import varint
from bulkgrpc.datasets.rows import to_rows
from bulkgrpc.v1.ingest_pb2 import RecordBatch
from tests.support import examples

TRADE = {"trade_id": "1", "quantity": "3", "order_id": "4", "risk": "0.5"}


def options_of(path: Path, *, batch_rows: int = 1000, encoding: str = "utf-8", **options: Any) -> FileOptions:
    """Return the options of a file; each of `options` belongs to its dialect, its forms of text, or its rules."""

    def own(kind: Any) -> Any:
        return kind(**{name: options.pop(name) for name in [*options] if name in {one.name for one in fields(kind)}})

    dialect, forms, rules = own(Dialect), own(TextForms), own(Rules)
    assert not options
    return FileOptions(format_of(path), batch_rows, dialect, encoding, replace(rules, forms=forms))


def rows_of(path: Path, dataset: Any, **options: Any) -> list[dict[str, Any]]:
    """Read a file, encode it, decode it again."""
    batches = list(open_batches(path, dataset, options_of(path, **options)))
    decoded = BatchCodec(dataset).decode([batch.payload for batch in batches])
    rows: list[dict[str, Any]] = decoded.flatten().to_pylist()
    assert [len(lists) for lists in decoded.to_pylist()] == [batch.records for batch in batches]
    return rows


def csv_of(folder: Path, *rows: dict[str, str]) -> Path:
    path = folder / "t.csv"
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def problem(path: Path, **options: Any) -> str:
    with pytest.raises(FileError) as caught:
        rows_of(path, examples.trades(), **options)
    text = str(caught.value)
    assert "\n" not in text
    return text


@pytest.mark.parametrize(
    ("column", "value", "needed"),
    [
        ("quantity", "-3", "a whole number (uint32)"),
        ("quantity", "1.5", "a whole number (uint32)"),
        ("order_id", str(2**64), "a whole number (uint64)"),
        ("trade_id", "x", "a whole number (int64)"),
        ("risk", "high", "a number (float)"),
        ("cancelled", "maybe", "true or false"),
        ("executed_at", "2024-13-01T00:00:00Z", "a time like 2013-01-01T06:00:00Z"),
        ("executed_at", "yesterday", "a time like 2013-01-01T06:00:00Z"),
        ("side", "BUY", "one of SIDE_UNSPECIFIED, SIDE_BUY, SIDE_SELL"),
        ("signature", "a", "base64"),
        ("fills", "[1,x]", "a list whose values are a whole number (int32)"),
        ("tags", '["a",null]', "a list whose values are text"),
        ("venue.desk", "first", "a whole number (int32)"),
    ],
)
def test_a_wrong_value_is_named_with_its_row_column_and_what_is_needed(
    column: str, value: str, needed: str, tmp_path: Path
) -> None:
    good = {**TRADE, column: ""} if column not in TRADE else TRADE
    path = csv_of(tmp_path, *[good] * 16, {**good, column: value}, good, {**good, column: value})
    assert problem(path) == f"t.csv: row 17 (the first record is row 1), column {column}: {value!r} is not {needed}"


def test_the_lowest_wrong_row_is_named_whatever_its_column(tmp_path: Path) -> None:
    path = csv_of(tmp_path, TRADE, {**TRADE, "risk": "x"}, {**TRADE, "trade_id": "y"})
    assert "row 2 (the first record is row 1), column risk" in problem(path)


def test_a_value_is_missing_where_the_field_takes_no_null(tmp_path: Path) -> None:
    path = csv_of(tmp_path, TRADE, {**TRADE, "quantity": "NA"})
    assert "row 2 (the first record is row 1), column quantity: the value is missing, and the field needs" in problem(
        path
    )


def test_a_key_is_never_null(tmp_path: Path) -> None:
    assert "it is part of the key" in problem(csv_of(tmp_path, {**TRADE, "trade_id": ""}))
    assert "no column for these key fields of dataset trades: trade_id" in problem(csv_of(tmp_path, {"quantity": "1"}))


def test_text_of_a_field_that_takes_no_null_is_kept_as_it_stands(tmp_path: Path) -> None:
    path = csv_of(tmp_path, {**TRADE, "symbol": "NA", "remark": "NA"}, {**TRADE, "symbol": "", "remark": ""})
    rows = rows_of(path, examples.trades())
    assert [(row["symbol"], row["remark"]) for row in rows] == [("NA", None), ("", None)]


def test_null_texts_are_the_callers_choice(tmp_path: Path) -> None:
    path = csv_of(tmp_path, {**TRADE, "remark": "NA"}, {**TRADE, "remark": r"\N"})
    assert [row["remark"] for row in rows_of(path, examples.trades(), nulls=(r"\N",))] == ["NA", None]


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("2024-05-01T12:00:00Z", datetime(2024, 5, 1, 12, tzinfo=UTC)),
        ("2024-05-01T14:00:00+02:00", datetime(2024, 5, 1, 12, tzinfo=UTC)),
        ("2024-05-01 12:00:00.000001", datetime(2024, 5, 1, 12, 0, 0, 1, tzinfo=UTC)),
        ("2024-05-01T12:00", datetime(2024, 5, 1, 12, tzinfo=UTC)),
        ("2024-05-01", datetime(2024, 5, 1, tzinfo=UTC)),
        ("0001-01-01T00:00:00Z", datetime(1, 1, 1, tzinfo=UTC)),
    ],
)
def test_times_are_iso_8601_and_utc_where_they_name_no_zone(text: str, moment: datetime, tmp_path: Path) -> None:
    (row,) = rows_of(csv_of(tmp_path, {**TRADE, "executed_at": text}), examples.trades())
    assert row["executed_at"] == moment


def test_a_nested_message_is_unset_where_none_of_its_columns_has_a_value(tmp_path: Path) -> None:
    path = csv_of(
        tmp_path, {**TRADE, "venue_code": "X", "venue.desk": ""}, {**TRADE, "venue_code": "", "venue.desk": ""}
    )
    assert [row["venue"] for row in rows_of(path, examples.trades())] == [
        {"code": "X", "country": "", "desk": None},
        None,
    ]


def test_a_row_with_too_few_cells_is_named(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("trade_id,quantity,order_id,risk\n" + "1,1,1,1\n" * 16 + "1,1\n")
    assert "row 17 (the first record is row 1; line 18 of the file): 2 cells; the header has 4" in problem(path)


def test_two_columns_of_one_field_are_refused(tmp_path: Path) -> None:
    path = csv_of(tmp_path, {**TRADE, "venue_code": "X", "venue.code": "Y"})
    assert "both match field venue.code" in problem(path)
    path.write_text("trade_id,trade_id\n1,1\n")
    assert "names column trade_id twice" in problem(path)


def test_protobufs_own_json_is_read_too(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text(json.dumps({"tradeId": "1", "orderId": str(2**64 - 1), "feeMinor": "-5", "venue": {"desk": 4}}))
    (row,) = rows_of(path, examples.trades(), missing_is_default=True)
    assert (row["trade_id"], row["order_id"], row["fee_minor"], row["quantity"]) == (1, 2**64 - 1, -5, 0)


def test_an_array_of_objects_is_read_as_their_lines(tmp_path: Path) -> None:
    path = tmp_path / "t.json"
    records = [{"trade_id": n, "order_id": 2**64 - 1, "symbol": "a\nb"} for n in range(3)]
    path.write_text(json.dumps(records, indent=2))
    rows = rows_of(path, examples.trades(), missing_is_default=True)
    assert [(row["trade_id"], row["order_id"], row["symbol"]) for row in rows] == [
        (n, 2**64 - 1, "a\nb") for n in range(3)
    ]
    path.write_text(json.dumps(records)[:-3])
    assert problem(path).startswith("t.json: the JSON array cannot be read: ")
    path.write_text("[1]")
    assert "row 1 (the first record is row 1): not a JSON object: '1'" in problem(path)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('{"trade_id": 1, "quantity": "x"}', "column quantity: 'x' is not a whole number (uint32)"),
        ('{"trade_id": 1, "side": "X"}', "column side: 'X' is not one of SIDE_UNSPECIFIED"),
        ('{"trade_id": 1, "fills": [1, null]}', "column fills: [1, None] is not a list"),
        ("{bad", "not a JSON object: '{bad'"),
        ("[1]", "not a JSON object: '[1]'"),
        ("{}", "column trade_id: the value is missing"),
    ],
)
def test_a_wrong_line_of_json_is_named_with_its_row(line: str, says: str, tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text('{"trade_id": 1}\n\n' * 16 + line)
    text = problem(path, missing_is_default=True)
    assert text.startswith("t.jsonl: row 17 (the first record is row 1)")
    assert says in text


def test_a_delimited_file_that_is_cut_off_is_named_with_its_row(tmp_path: Path) -> None:
    path = tmp_path / "t.binpb"
    path.write_bytes(b"\x02\x08\x01" * 16 + b"\x02\x08")
    assert problem(path) == "t.binpb: the file ends within row 17"


def test_a_delimited_file_of_something_else_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.binpb"
    path.write_bytes(b"\x03\x0a\x05a" * 3)
    assert "rows 1 to 3 are not all valid messages of examples.v1.Trade" in problem(path)
    path.write_bytes(b"\xff" * 100)
    assert "row 1 has no valid length" in problem(path)


texts = st.text(st.characters(codec="utf-8", exclude_characters="\r\n\0"), max_size=20)
records = st.lists(st.tuples(texts, st.floats(allow_nan=False), st.datetimes()), max_size=40)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=50)
@given(records, st.integers(1, 9))
def test_what_is_written_as_csv_is_read_as_it_was(
    tmp_path: Path, rows: list[tuple[str, float, datetime]], batch_rows: int
) -> None:
    text = io.StringIO(newline="")
    writer = csv.writer(text, quoting=csv.QUOTE_ALL)
    writer.writerow(["sensor_id", "value", "sampled_at"])
    writer.writerows([f"k{name}", repr(value), moment.isoformat()] for name, value, moment in rows)
    path = tmp_path / "r.csv"
    path.write_text(text.getvalue(), newline="")
    read = rows_of(path, examples.readings(), batch_rows=batch_rows)
    assert [(row["sensor_id"], row["value"], row["sampled_at"]) for row in read] == [
        (f"k{name}", value, moment.replace(tzinfo=UTC)) for name, value, moment in rows
    ]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=50)
@given(st.lists(st.binary(max_size=300), max_size=60), st.integers(1, 9), st.integers(310, 900))
def test_delimited_records_are_batched_in_order_within_both_limits(
    tmp_path: Path, payloads: list[bytes], batch_rows: int, batch_bytes: int
) -> None:
    from bulkgrpc.cli.files.protobuf import read_delimited
    from bulkgrpc.cli.files.sources import open_source

    path = tmp_path / "r.binpb"
    path.write_bytes(b"".join(varint(len(payload)) + payload for payload in payloads))
    batches = [batch for batch, _ in read_delimited(open_source(path), batch_rows, batch_bytes)]
    assert [record for batch in batches for record in RecordBatch.FromString(batch.payload).records] == payloads
    assert all(batch.records <= batch_rows and len(batch.payload) <= batch_bytes for batch in batches)


def test_the_same_file_gives_the_same_batches_every_time_across_block_boundaries(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bulkgrpc.cli.files.csv_reader.BLOCK_ROWS", 100)
    path = tmp_path / "r.csv"
    lines = "".join(f"S{number},{number},2024-05-01T00:00:00Z\n" for number in range(500))
    path.write_text("sensor_id,value,sampled_at\n" + lines)
    file = open_batches(path, examples.readings(), FileOptions(Format.CSV, batch_rows=70))
    first, second = list(file), list(file)
    assert first == second
    assert [batch.records for batch in first] == [70] * 7 + [10]
    assert (file.rows, file.read_bytes) == (500, file.size_bytes)


SHAPES = """syntax = "proto3"; import "bulkgrpc/v1/options.proto"; import "google/type/date.proto";
import "google/type/timeofday.proto"; import "google/type/decimal.proto"; import "google/protobuf/duration.proto";
import "google/protobuf/struct.proto"; message N { int32 a = 1; string b = 2; }
message M { option (bulkgrpc.v1.dataset) = {table: "m" key: ["id"]}; int64 id = 1; %s f = 2; }"""
DAY = pa.array([0, 1, None], pa.date32())
LASTS = pa.array([0, 1500, None], pa.duration("ms"))
MAPS = pa.array([[("a", 1)], [], None], pa.map_(pa.string(), pa.int32()))
PARTS = pa.array([[{"a": 0, "b": ""}], [], None], pa.list_(pa.struct([("a", pa.int32()), ("b", pa.string())])))


def shaped(folder: Path, kind: str, cells: Any) -> list[Any]:
    """Load a column of a type from a CSV file, given texts, or a Parquet file; return the table's values."""
    proto = folder / "m.proto"
    proto.write_text(SHAPES % kind)
    dataset = examples.compiled(proto, "M")
    if isinstance(cells, list):
        path = csv_of(folder, *({"id": str(n), "f": cell} for n, cell in enumerate(cells)))
    else:
        path = folder / "t.parquet"
        pyarrow.parquet.write_table(pa.table({"id": pa.array(range(len(cells)), pa.int64()), "f": cells}), path)
    batches = list(open_batches(path, dataset, FileOptions(format_of(path))))
    rows = to_rows(BatchCodec(dataset), [Payload("t", batch.records, batch.payload) for batch in batches])
    assert not len(rows.rejections)
    found: list[Any] = rows.table.column("f").to_pylist()
    return found


@pytest.mark.parametrize(
    ("kind", "cells", "values"),
    [
        ("google.type.Date", ["1970-01-01", "1970-01-02", ""], [date(1970, 1, 1), date(1970, 1, 2), None]),
        ("google.type.Date", DAY, [date(1970, 1, 1), date(1970, 1, 2), None]),
        ("google.type.TimeOfDay", ["00:00:00", "23:59:59.000001", ""], [dt_time(), dt_time(23, 59, 59, 1), None]),
        ("google.type.TimeOfDay", pa.array([0, 61], pa.time32("s")), [dt_time(), dt_time(0, 1, 1)]),
        ("google.type.Decimal", ["0", "-1.50", ""], ["0", "-1.50", None]),
        ("google.type.Decimal", pa.array([Decimal("1.50")], pa.decimal128(9, 2)), ["1.50"]),
        ("google.protobuf.Duration", ["0s", "-1.5s", ""], [timedelta(), timedelta(seconds=-1.5), None]),
        ("google.protobuf.Duration", LASTS, [timedelta(), timedelta(seconds=1.5), None]),
        ("map<string, int32>", ['{"a": 1}', "{}", ""], ['{"a":1}', "{}", "{}"]),
        ("map<string, int32>", MAPS, ['{"a":1}', "{}", "{}"]),
        ("map<string, N>", ['{"x": {"a": 1}}'], ['{"x":{"a":1,"b":""}}']),
        ("repeated N", ['[{"a": 1}, {}]', "[]", ""], ['[{"a":1,"b":""},{"a":0,"b":""}]', "[]", "[]"]),
        ("repeated N", PARTS, ['[{"a":0,"b":""}]', "[]", "[]"]),
        ("repeated google.type.Date", ['["1970-01-01"]'], ['[{"year":1970,"month":1,"day":1}]']),
        ("google.protobuf.Struct", ['{"a": [1, null]}', ""], ['{"a":[1,null]}', None]),
        ("google.protobuf.Value", ["3", '"x"', ""], ["3", '"x"', None]),
    ],
)
def test_what_a_file_has_as_one_value_is_loaded(tmp_path: Path, kind: str, cells: Any, values: list[Any]) -> None:
    assert shaped(tmp_path, kind, cells) == values


@pytest.mark.parametrize(
    ("kind", "cells", "says"),
    [
        ("google.type.Date", ["1970-01-01", "1970-02-30"], "row 2 .* column f: '1970-02-30' is not a date like"),
        ("google.type.TimeOfDay", ["24:00:00"], "column f: '24:00:00' is not a time of day like 06:30:00"),
        ("google.protobuf.Duration", ["1s", "90"], "row 2 .* column f: '90' is not a duration like 1.5s"),
        ("google.protobuf.Duration", pa.array([90]), "column f: 90 is not a duration"),
        ("map<string, int32>", ["{}", '{"a": "x"}'], "row 2 .* column f: .* is not Protobuf JSON"),
        ("repeated N", ['[{"c": 1}]'], "column f: .* is not Protobuf JSON"),
        ("repeated N", ['{"a": 1}'], "column f: .* is not Protobuf JSON"),
        ("repeated N", ["["], "column f: '\\[' is not Protobuf JSON"),
        ("repeated N", pa.array([[1]]), "column f: \\[1\\] is not"),
        ("map<string, int32>", pa.array([1]), "column f: 1 is not"),
    ],
)
def test_what_is_no_such_value_is_named_with_its_column(tmp_path: Path, kind: str, cells: Any, says: str) -> None:
    with pytest.raises(FileError, match=says):
        shaped(tmp_path, kind, cells)


@pytest.mark.parametrize(
    ("begin", "says"),
    [
        (b"PK\x03\x04" + bytes(range(256)) * 9, "a zip archive"),
        (b"\x1f\x8b\x08", "compressed with gzip"),
        (b"PAR1", "a Parquet file"),
        (b"a,b\n1,\xff\n", "not UTF-8"),
        ("a,b\n1,2\n".encode("utf-16"), "not UTF-8"),
        (bytes(1000), "not text"),
    ],
)
@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_a_file_that_is_no_text_is_refused_by_its_beginning(
    tmp_path: Path, begin: bytes, says: str, suffix: str
) -> None:
    path = tmp_path / f"t.{suffix}"
    path.write_bytes(begin)
    assert says in problem(path)
    if suffix == "csv":
        with pytest.raises(FileError, match=says):
            infer_proto(path, options_of(path), key="", table="")


def test_a_character_cut_off_by_the_look_at_the_beginning_is_no_fault(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("trade_id,quantity,order_id,risk,symbol\n1,1,1,1," + "é" * 70_000 + "\n")
    assert len(rows_of(path, examples.trades())) == 1


def test_columns_named_like_system_columns_keep_their_fields_and_get_other_columns(tmp_path: Path) -> None:
    path, proto = tmp_path / "boxes.csv", tmp_path / "boxes.proto"
    path.write_text("image,xmin,ymin,XMAX,tenant\na.jpg,10,20,110,ann\nb.jpg,15,25,115,bob\n")
    proto.write_text(infer_proto(path, options_of(path), key="image", table=""))
    boxes = examples.compiled(proto, "datasets.v1.Boxes")
    assert [column.name for column in boxes.columns] == ["tenant", "image", "xmin_", "ymin", "xmax_", "tenant_"]
    assert rows_of(path, boxes)[0] == {"image": "a.jpg", "xmin": 10, "ymin": 20, "XMAX": 110, "tenant": "ann"}


def test_columns_whose_names_no_table_can_have_get_others_that_are_free(tmp_path: Path) -> None:
    path, proto = tmp_path / "odd.csv", tmp_path / "odd.proto"
    long = "a" * 63
    names = ["id", "ctid", "CMAX", "tenant", "bulkgrpc_row", "row", "bulkgrpc_1", f"{long}b", f"{long}c"]
    path.write_text(",".join(names) + "\n" + ",".join("abcdefghi") + "\n")
    proto.write_text(infer_proto(path, options_of(path), key="id", table=""))
    odd = examples.compiled(proto, "datasets.v1.Odd")
    found = ["ctid_", "cmax_", "tenant_", "row_", "row", "column_1", long, f"{long[:62]}_"]
    assert [column.name for column in odd.columns] == ["tenant", "id", *found]
    assert rows_of(path, odd)[0] == dict(zip(names, "abcdefghi", strict=True))
