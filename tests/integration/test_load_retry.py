"""Rejected records written to a file, corrected and submitted again; jobs cancelled and deleted on the command line."""

from __future__ import annotations

import base64
import csv
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import json_format, message_factory

from bulkgrpc.cli.files import Dialect, FileOptions, Format, Rules, open_batches
from bulkgrpc.cli.files.rejected_records import RejectedRecordsFile
from bulkgrpc.client import AsyncBulkClient, Batch, Rejection
from bulkgrpc.datasets.definition import find_message
from bulkgrpc.datasets.framing import frame
from bulkgrpc.v1.ingest_pb2 import RecordBatch
from tests.integration.service_values import Command, Parts
from tests.integration.test_load_files import sensors_file, trade
from tests.support import examples

pytest_plugins = ["tests.integration.service_parts"]

MALFORMED = b"\x0a\x7f"
NOON = datetime(2024, 5, 1, 12, 0, 0, 123456, tzinfo=UTC)
FULL = trade(
    trade_id=1, symbol='nul\0 "quoted", NA', side=1, price="101.25", quantity=3, executed_at=NOON,
    venue={"code": "XNYS", "country": "US"}, remark="two\nlines", fee_minor=-4, cancelled=False,
    tags=["a", "NA"], fills=[1, 2], fill_prices=[0.5], signature=b"\x00\xff", order_id=2**64 - 1, risk=0.25,
)  # fmt: skip
BARE = trade(trade_id=2, symbol="nul\0")


@pytest.fixture
async def rejected(client: AsyncBulkClient) -> str:
    """The name of a job with a good record and three that were rejected."""
    records = [trade(trade_id=9).SerializeToString(), FULL.SerializeToString(), MALFORMED, BARE.SerializeToString()]
    handle = await client.submit("trades", [Batch(b"".join(map(frame, records)), len(records))])
    assert (await handle.wait()).counts.rejected == 3
    return handle.name


def rows_of(path: Path) -> list[dict[str, Any]]:
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text().splitlines()]
    with path.open(newline="") as file:
        return list(csv.DictReader(line.replace("\0", "␀") for line in file))


def correct(path: Path) -> None:
    """Correct the file by hand: remove U+0000 from the text, and the line that is not a message."""
    text = path.read_bytes().replace(b"nul\0", b"good").replace(b"nul\\u0000", b"good")
    lines = text.decode().split("\n")
    path.write_text("\n".join(line for line in lines if base64.b64encode(MALFORMED).decode() not in line))


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_rejections_are_written_to_a_file_corrected_and_submitted_as_one_job(
    command: Command, parts: Parts, tenant: str, rejected: str, tmp_path: Path, suffix: str
) -> None:
    path = tmp_path / f"bad{suffix}"
    assert command.json("jobs", "rejections", rejected, "--out", path) == {
        "job": rejected,
        "file": str(path),
        "rows": 3,
    }
    rows = rows_of(path)
    assert [(str(row["_sequence"]), str(row["_record_index"])) for row in rows] == [("0", "1"), ("0", "2"), ("0", "3")]
    assert [row["_code"] for row in rows] == ["NUL_IN_TEXT", "MALFORMED_RECORD", "NUL_IN_TEXT"]
    assert all(row["_reason"] for row in rows)
    assert base64.b64decode(rows[1]["record_base64"]) == MALFORMED
    assert not rows[0].get("record_base64")
    correct(path)
    report = command.json("load", path, "--retry-of", rejected)
    assert (report["job"]["state"], report["rows"]) == ("SUCCEEDED", 2)
    assert report["job"]["labels"] == {"retry_of": rejected}
    again = command.json("load", path, "--retry-of", rejected)
    assert (again["replayed"], again["job"]["name"]) == (True, report["job"]["name"])
    columns = "symbol, executed_at, venue_code, venue_desk, remark, cancelled, tags, fills, signature, order_id"
    found = parts.rows(f"SELECT {columns} FROM trades WHERE tenant = %s AND trade_id < 9 ORDER BY trade_id", tenant)
    full = ('good "quoted", NA', NOON, "XNYS", None, "two\nlines", False, ["a", "NA"], [1, 2], b"\0\xff", 2**64 - 1)
    assert found == [full, ("good", None, None, None, None, None, [], [], b"", 0)]


def test_a_record_not_corrected_is_named_and_nothing_is_submitted(
    command: Command, rejected: str, tmp_path: Path
) -> None:
    path = tmp_path / "bad.csv"
    assert command("jobs", "rejections", rejected, "--out", path).exit_code == 0
    result = command("load", path, "--retry-of", rejected)
    assert result.exit_code == 1
    assert "row 2" in result.stderr
    assert "column trade_id" in result.stderr


def test_rejections_are_listed_up_to_the_limit(command: Command, rejected: str, tmp_path: Path) -> None:
    found = command.json_lines("jobs", "rejections", rejected, "--limit", "2")
    assert [(one["record_index"], one["code"]) for one in found] == [(1, "NUL_IN_TEXT"), (2, "MALFORMED_RECORD")]
    shown = command("jobs", "rejections", rejected)
    assert shown.stdout.count("NUL_IN_TEXT") == 2
    path = tmp_path / "one.jsonl"
    assert command.json("jobs", "rejections", rejected, "--out", path, "--limit", "1")["rows"] == 1
    assert len(rows_of(path)) == 1
    result = command("jobs", "rejections", rejected, "--out", tmp_path / "bad.parquet")
    assert (result.exit_code, "as .csv or .jsonl" in result.stderr) == (1, True)


def test_a_file_that_breaks_off_is_not_there(tmp_path: Path) -> None:
    def break_off() -> None:
        with RejectedRecordsFile(tmp_path / "bad.csv", examples.readings()) as file:
            file.add([Rejection(0, 0, "MALFORMED_RECORD", "", "why", MALFORMED)])
            raise ConnectionError

    with pytest.raises(ConnectionError):
        break_off()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_every_record_that_is_a_message_comes_back_as_it_was(tmp_path: Path, suffix: str) -> None:
    dataset, path = examples.trades(), tmp_path / f"bad{suffix}"
    records = [FULL.SerializeToString(deterministic=True), BARE.SerializeToString(deterministic=True)] * 700
    with RejectedRecordsFile(path, dataset) as file:
        for start in range(0, len(records), 1000):
            file.add([Rejection(0, n, "C", "", "r", record) for n, record in enumerate(records[start:][:1000])])
    options = FileOptions(Format(suffix[1:]), 5000, Dialect(nulls=("",)), rules=Rules(corrected=True))
    (batch,) = open_batches(path, dataset, options)
    sent = type(FULL).FromString
    position, found = 0, []
    for record in records:
        framed = frame(record)
        found.append(sent(batch.payload[position + len(framed) - len(record) : position + len(framed)]))
        position += len(framed)
    assert found == [sent(record) for record in records]


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_a_field_of_every_type_comes_back_as_it_was(tmp_path: Path, suffix: str) -> None:
    dataset, path = examples.things(), tmp_path / f"bad{suffix}"
    thing: Any = message_factory.GetMessageClass(find_message(dataset.descriptors, "tests.v1.Thing"))
    documents: list[dict[str, Any]] = [
        {"id": "1", "needed": 1},
        {
            "id": "2", "f_double": 0.5, "f_enum": "SORT_BAD", "f_enum_number": "SORT_GOOD", "o_int32": 0,
            "o_string": "x", "r_enum_number": ["SORT_BAD", "SORT_GOOD"], "r_timestamp": ["1970-01-01T00:00:00Z"],
            "w_timestamp": "1970-01-01T00:00:00Z", "w_duration": "-1.500s", "w_double": 0.0, "w_uint64": "0",
            "w_string": "y", "w_bytes": "AAE=", "w_bool": False, "w_date": {"year": 1970, "month": 1, "day": 1},
            "w_time": {}, "w_decimal": {"value": "1.50"}, "place": {"latitude": 0.0}, "money": {"units": "5"},
            "j_part": {"label": "a", "parts": [{"label": "b", "tested": {"year": 1970, "month": 1, "day": 1}}]},
            "j_parts": [{"serial": "18446744073709551615", "seal": "/w==", "made_at": "2001-01-01T00:00:00Z"}],
            "j_counts": {"a": 1, "b": 0}, "j_by_number": {"7": {"weight": 1.5}},
            "j_struct": {"s": None, "t": [1.0, "u"]}, "j_value": 3.5, "choice_text": "z", "needed": 2,
        },
        {"id": "3", "w_duration": "0s", "w_date": {"year": 2023, "month": 2, "day": 30}, "choice_number": 0,
         "needed": 3, "w_time": {"hours": 23, "minutes": 59, "seconds": 58, "nanos": 123456000},
         "j_struct": {}, "j_value": None},
    ]  # fmt: skip
    if suffix == ".jsonl":
        del documents[2]["j_value"]  # null is "not set" in a JSON line
    records = [json_format.ParseDict(document, thing()) for document in documents]
    with RejectedRecordsFile(path, dataset) as file:
        file.add([Rejection(0, n, "C", "", "r", record.SerializeToString()) for n, record in enumerate(records)])
    text = path.read_text()
    assert "2023-02-30" in text, "a person sees what is wrong with it"
    path.write_text(text.replace("2023-02-30", "2023-02-28"))
    records[2].w_date.day = 28
    (batch,) = open_batches(
        path, dataset, FileOptions(Format(suffix[1:]), 5000, Dialect(nulls=("",)), rules=Rules(corrected=True))
    )
    found = [thing.FromString(record) for record in RecordBatch.FromString(batch.payload).records]
    assert [json_format.MessageToDict(one) for one in found] == [json_format.MessageToDict(one) for one in records]


def test_a_job_is_cancelled_listed_by_its_state_and_deleted(command: Command, tmp_path: Path) -> None:
    path = sensors_file(tmp_path, 150_000, bad_row=140_017)
    assert command("load", path, "--dataset", "sensor_readings").exit_code == 1
    (job,) = command.json_lines("jobs", "list", "--state", "open")
    assert command.json_lines("jobs", "list", "--state", "SUCCEEDED") == []
    assert command("jobs", "delete", job["name"]).stderr.startswith("error: ")
    cancelled = command.json("jobs", "cancel", job["name"])
    assert cancelled["state"] == "CANCELLED"
    assert command.json_lines("jobs", "list", "--state", "cancelled")[0]["name"] == job["name"]
    assert command("jobs", "watch", job["name"]).exit_code == 5
    assert "may still come" in command("jobs", "delete", job["name"]).stderr
    whole = sensors_file(tmp_path, 10)
    ended = command.json("load", whole, "--dataset", "sensor_readings")["job"]
    assert command.json("jobs", "delete", ended["name"]) == {"deleted": ended["name"]}
    assert [found["name"] for found in command.json_lines("jobs", "list")] == [job["name"]]


def test_a_load_with_options_shows_them_and_why_it_failed(command: Command, tmp_path: Path) -> None:
    path = tmp_path / "trades.jsonl"
    path.write_text("".join(json.dumps({"trade_id": n, "symbol": "nul\0"}) + "\n" for n in range(5)))
    options = ["--rejections-max", "2", "--ttl", "3600", "--missing-is-default", "--json"]
    result = command("load", path, "--dataset", "trades", *options)
    job = json.loads(result.stdout)["job"]
    assert job["options"] == {"atomic": False, "rejections_max": 2, "time_to_live_s": 3600.0}
    assert (result.exit_code, job["state"]) == (4, "FAILED")
    assert job["failure_reason"]
    assert job["failure_reason"] in command("jobs", "list").stdout
    assert job["failure_reason"] in command("jobs", "get", job["name"]).stdout


def test_an_atomic_load_writes_all_or_nothing(command: Command, parts: Parts, tenant: str, tmp_path: Path) -> None:
    path = tmp_path / "trades.jsonl"
    path.write_text(json.dumps({"trade_id": 1}) + "\n" + json.dumps({"trade_id": 2, "symbol": "nul\0"}) + "\n")
    assert command("load", path, "--dataset", "trades", "--missing-is-default", "--atomic").exit_code == 4
    assert parts.rows("SELECT count(*) FROM trades WHERE tenant = %s", tenant) == [(0,)]
