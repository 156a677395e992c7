"""Bad rows of a file: each is found with its number and reason, and no good row is lost or moved."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bulkgrpc.cli.bad_row import MARK, TEXT_CHARS_MAX, BadRow, described
from bulkgrpc.cli.files import FileBatches, FileError, FileOptions, Format, format_of, open_batches
from bulkgrpc.client import Batch
from bulkgrpc.datasets.codec import BatchCodec
from bulkgrpc.datasets.decoding import Payload, decode
from bulkgrpc.datasets.framing import frame, varint
from bulkgrpc.rejections import RejectionCode
from bulkgrpc.v1.ingest_pb2 import RecordBatch
from tests.support import examples

DATASET = examples.dataset("sensors", "SensorReading")
NOON = "2024-05-01T12:00:00Z"


def read(path: Path, **options: Any) -> tuple[list[str], list[dict[str, Any]], FileBatches]:
    """Read a file; return the IDs of its good rows, and its bad rows as they are sent."""
    options = {"batch_rows": 7, "reject_bad_rows": True} | options
    file = open_batches(path, DATASET, FileOptions(format_of(path), **options))
    records = [record for batch in file for record in RecordBatch.FromString(batch.payload).records]
    bad = [json.loads(record[1:]) for record in records if record.startswith(MARK)]
    good = [frame(record) for record in records if not record.startswith(MARK)]
    rows = BatchCodec(DATASET).decode([b"".join(good)]).flatten().to_pylist()
    return [row["sensor_id"] for row in rows], bad, file


def csv_file(path: Path, *rows: str) -> Path:
    path.write_text("sensor_id,value,sampled_at\n" + "".join(f"{row}\n" for row in rows))
    return path


def test_csv_rows_with_bad_values_and_bad_cells_are_apart_with_their_numbers(tmp_path: Path) -> None:
    path = csv_file(
        tmp_path / "s.csv",
        f"a,1,{NOON}", f"b,warm,{NOON}", "c,1", f'"d\nd",2,{NOON}', "", f'"e"e,1,{NOON}', f"f,1,{NOON},x",
        f"g,,{NOON}", f"h,3,{NOON}",
    )  # fmt: skip
    good, bad, file = read(path)
    assert good == ["a", "d\nd", "h"]
    assert {row["row"]: row["reason"] for row in bad} == {
        2: "column value: 'warm' is not a number (double)",
        3: "line 4: it has too few cells",
        5: "line 8: text follows a closing quote",
        6: "line 9: it has too many cells",
        7: "column value: the value is missing, and the field needs a number (double) (or `optional` in the message): "
        "load its default value with --missing-is-default",
    }
    assert next(row["text"] for row in bad if row["row"] == 3) == "c,1"
    assert json.loads(next(row["text"] for row in bad if row["row"] == 2))["value"] == "warm"
    assert (file.rows, file.bad_rows, len(file.bad)) == (8, 5, 5)


def test_json_lines_that_are_no_objects_or_have_bad_values_are_apart(tmp_path: Path) -> None:
    path = tmp_path / "s.jsonl"
    lines = [{"sensor_id": str(n), "value": n, "sampled_at": NOON} for n in range(20)]
    lines[3]["value"], lines[5]["sampled_at"], lines[12]["value"] = "x", "noon", None
    texts = [json.dumps(line) for line in lines]
    texts[7], texts[8] = "{broken", "[1]"
    path.write_text("\n".join(texts))
    good, bad, _ = read(path)
    assert good == [str(n) for n in range(20) if n not in {3, 5, 7, 8, 12}]
    assert sorted(row["row"] for row in bad) == [4, 6, 8, 9, 13]
    reasons = {row["row"]: row["reason"] for row in bad}
    assert reasons[4].startswith("column value: 'x' is not a number")
    assert reasons[8].startswith("not a JSON object")


def test_parquet_rows_with_bad_values_are_apart(tmp_path: Path) -> None:
    at = pa.array([0, 1_500, 2_000, 3_001, 4_000], pa.timestamp("ns", "UTC"))
    path = tmp_path / "s.parquet"
    pyarrow.parquet.write_table(
        pa.table({"sensor_id": list("abcde"), "value": [1.0, 2.0, None, 4.0, 5.0], "sampled_at": at}), path
    )
    good, bad, _ = read(path)
    assert good == ["a", "e"]
    assert sorted(row["row"] for row in bad) == [2, 3, 4]
    assert "nanoseconds" in bad[0]["reason"]


def test_the_worker_rejects_bad_rows_however_many_and_keeps_their_neighbours() -> None:
    good = BatchCodec(DATASET).encode(_records("a", "b"), 2)
    bad = b"".join(frame(BadRow(n, "value", "it is bad", "x" * 9000).record("s.csv")) for n in range(1, 5001))
    payload = next(iter(good)) + bad
    decoded = decode(BatchCodec(DATASET), [Payload("t", 5002, payload)])
    assert len(decoded.records) == 2
    assert decoded.rejections.causes.column("code").unique().to_pylist() == [RejectionCode.MALFORMED_RECORD.value]
    assert np.array_equal(np.sort(decoded.rejections.record_index), np.arange(2, 5002))


def _records(*ids: str) -> pa.RecordBatch:
    schema = BatchCodec(DATASET).record_schema
    row = {field.name: None for field in schema}
    return pa.RecordBatch.from_pylist([row | {"sensor_id": one, "value": 1.0} for one in ids], schema)


def test_the_report_of_a_bad_row_is_bounded_and_readable() -> None:
    record = BadRow(3, "value", "it is bad", "é\ud800" * 9000).record("s.csv")
    assert len(record) < 6 * TEXT_CHARS_MAX + 1000
    found = described(record)
    assert found is not None
    assert found[0] == "value"
    assert found[1].startswith("s.csv: row 3: it is bad: é")
    assert described(b"\x0a\x01a") is None
    assert described(MARK + b"no JSON") is None


def test_a_quote_that_is_never_closed_stops_a_load_that_rejects_bad_rows(tmp_path: Path) -> None:
    path = csv_file(tmp_path / "s.csv", f"a,1,{NOON}", f'"b,2,{NOON}', f"c,3,{NOON}")
    with pytest.raises(FileError, match="line 3: the quote is not closed"):
        read(path)


cells = st.sampled_from(["1", "warm", "", "1e400", '"1"', '"x', '1"', '"1"x', "1,2", '"a\nb"', "\n", "\r\n"])


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(values=st.lists(cells, max_size=30), end=st.sampled_from(["\n", "\r\n"]))
def test_every_row_is_either_good_or_bad_and_keeps_its_number(values: list[str], end: str, tmp_path: Path) -> None:
    path = tmp_path / "p.csv"
    rows = [f"s{number},{value},{NOON}" for number, value in enumerate(values, 1)]
    path.write_bytes(end.join(["sensor_id,value,sampled_at", *rows, ""]).encode())
    try:
        good, bad, _ = read(path)
    except FileError:
        # A quote that is not closed.
        assert '"x' in values or '1"' in values
        return
    # Then one row has several lines of the file, and the next one a lower number than its name.
    joined = "\n" in "".join(values) or ('"x' in values and '1"' in values)
    numbers = {int(one[1:]) for one in good}
    assert {number for number, value in enumerate(values, 1) if value in {"1", '"1"'}} >= numbers
    for row in bad:
        text = json.loads(row["text"])["sensor_id"] if row["text"].startswith("{") else row["text"].partition(",")[0]
        if text.startswith("s"):
            assert joined or text == f"s{row['row']}"


def test_the_batches_of_a_file_with_bad_rows_stay_the_same(tmp_path: Path) -> None:
    path = csv_file(tmp_path / "s.csv", *(f"s{n},{'x' if n % 997 == 0 else n},{NOON}" for n in range(60_000)))
    first, second = read_batches(path), read_batches(path)
    assert first == second


def read_batches(path: Path) -> list[Batch]:
    return list(open_batches(path, DATASET, replace(FileOptions(Format.CSV, 1000), reject_bad_rows=True)))


def test_lines_that_end_with_carriage_returns_only_are_not_taken_for_one(tmp_path: Path) -> None:
    path = tmp_path / "s.csv"
    path.write_bytes(f"sensor_id,value,sampled_at\ra,1,{NOON}\rb,1\rc,3,{NOON}\r".encode())
    with pytest.raises(FileError, match="carriage returns only"):
        read(path)
    path.write_bytes(f"sensor_id,value,sampled_at\ra,1,{NOON}\rb,x,{NOON}\rc,3,{NOON}\r".encode())
    good, bad, _ = read(path)
    assert (good, [row["row"] for row in bad]) == (["a", "c"], [2])


@pytest.mark.parametrize("quote", ['5"', '"5"""', '"5,"""'])
def test_numbers_of_rows_are_right_whatever_quotes_are_before_them(quote: str, tmp_path: Path) -> None:
    path = csv_file(tmp_path / "s.csv", f"{quote},1,{NOON}", f"b,2,{NOON}", "c", f'"d\n",x,{NOON}', "e", f"f,1,{NOON}")
    _, bad, _ = read(path)
    assert sorted(row["row"] for row in bad) == [3, 4, 5]


def test_records_of_a_protobuf_file_that_are_no_messages_are_sent_as_they_are_and_counted(tmp_path: Path) -> None:
    path = tmp_path / "s.binpb"
    records = [b"\x0a\x01a", b"\x0a\x09cut", b"\x0a\x01b"]
    path.write_bytes(b"".join(varint(len(record)) + record for record in records))
    file = open_batches(path, DATASET, FileOptions(Format.PROTOBUF, 2, reject_bad_rows=True))
    sent = [record for batch in file for record in RecordBatch.FromString(batch.payload).records]
    assert sent == records
    assert (file.rows, file.bad_rows, [row.row for row in file.bad]) == (3, 1, [2])
    with pytest.raises(FileError, match="rows 1 to 2"):
        list(open_batches(path, DATASET, FileOptions(Format.PROTOBUF, 2)))
