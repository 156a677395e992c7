"""The files of tests/data/files, which went wrong here or in other tools: the right value of each, or its refusal."""

from __future__ import annotations

import bz2
import gzip
import os
import threading
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from bulkgrpc.client import BulkClient
from bulkgrpc.datasets.sources import compile_proto
from tests.integration.service_values import Command, Parts
from tests.support.file_cases import FOLDER, write_parquet

pytest_plugins = ["tests.integration.service_parts"]

MESSAGES = ("Event", "FromPsql", "LedgerLine", "Stamp", "Product", "Blob", "Account", "Thing")


@dataclass(frozen=True, slots=True)
class Cases:
    """Runs the command line for the cases of one tenant."""

    command: Command
    parts: Parts
    folder: Path

    def path(self, name: str) -> Path:
        """Return a case's file: kept in the repository, or written by the session."""
        kept = FOLDER / name
        return kept if kept.exists() else self.folder / name

    def load(self, name: str, dataset: str, *options: str) -> list[tuple[Any, ...]]:
        """Load a case's file, and return the rows of the table without the tenant."""
        self.command.json("load", self.path(name), "--dataset", dataset, *options)
        return self.rows(dataset)

    def rows(self, table: str) -> list[tuple[Any, ...]]:
        """Return a tenant's rows in the order of their key, without the tenant."""
        found = self.parts.rows(f"SELECT * FROM {table} WHERE tenant = %s ORDER BY 2", self.command.tenant)
        return [row[1:] for row in found]

    def infer(self, name: str, table: str, *options: str) -> str:
        """Infer a proto, register it, and return its text."""
        proto: str = self.command.json("datasets", "infer", self.path(name), "--table", table, *options)["proto"]
        file = self.folder / f"{table}.proto"
        file.write_text(proto)
        self.command.json("datasets", "register", file)
        return proto

    def refused(self, name: str, dataset: str, *options: str) -> str:
        """Return the one line of a refused load. Nothing was written."""
        result = self.command("load", self.path(name), "--dataset", dataset, *options)
        assert result.exit_code == 1, result.output
        assert "Traceback" not in result.output
        line: str = result.stderr.splitlines()[-1]
        assert line.startswith(f"error: {name}: "), line
        assert self.rows(dataset) == []
        return line


@pytest.fixture(scope="session")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cases")
    write_parquet(folder)
    return folder


@pytest.fixture(scope="session")
def registered(running: Any) -> None:
    descriptors = compile_proto(FOLDER / "cases.proto")
    with BulkClient(running.address) as client:
        for message in MESSAGES:
            client.register_dataset(descriptors, f"cases.v1.{message}")


@pytest.fixture
def cases(command: Command, parts: Parts, written: Path, registered: None) -> Cases:
    return Cases(command, parts, written)


def test_ids_of_19_digits_and_unsigned_64_bit_numbers_are_exact(cases: Cases) -> None:
    proto = cases.infer("long_ids.csv", "long_ids")
    assert "int64 message_id" in proto
    assert 'key: ["message_id"]' in proto
    rows = cases.load("long_ids.csv", "long_ids")
    assert [row[0] for row in rows] == [1234567890123456789, 1234567890123456790, 1234567890123456791]
    assert rows[0][3] == 18446744073709551615


def test_the_next_files_rows_are_no_duplicates(cases: Cases) -> None:
    assert 'key: ["id"]' in cases.infer("cust1.csv", "cust")
    cases.load("cust1.csv", "cust")
    assert cases.load("cust2.csv", "cust") == [(1, "Ann"), (2, "Bob"), (3, "Ann"), (4, "Cem")]


def test_telephone_numbers_and_zip_codes_stay_text(cases: Cases) -> None:
    cases.infer("phones.csv", "phones")
    assert cases.load("phones.csv", "phones")[0] == ("+4915112345678", "a")
    cases.infer("zips.csv", "zips")
    assert cases.load("zips.csv", "zips") == [("01067", "Dresden"), ("80331", "Munich")]


def test_decimals_keep_their_digits(cases: Cases) -> None:
    cases.infer("decimals.csv", "decimals")
    assert [row[1] for row in cases.load("decimals.csv", "decimals")] == [
        Decimal("9.90"), Decimal("1234567890123456.78"), Decimal("0.1"),
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["headers.csv", "unnamed_index.csv", "json_names.csv"])
def test_any_header_gives_a_proto_that_takes_the_same_file(cases: Cases, name: str) -> None:
    table = name.removesuffix(".csv")
    cases.infer(name, table)
    assert len(cases.load(name, table)) == 2


def test_system_columns_get_other_names(cases: Cases) -> None:
    cases.infer("boxes.csv", "boxes", "--key", "image")
    assert cases.load("boxes.csv", "boxes")[0] == ("a.jpg", 10, 20, 110, 220, "ann", 1, "train")


PSQL = [
    (1, True, datetime(2026, 1, 31, 6, tzinfo=UTC)),
    (2, False, datetime(2026, 7, 31, 6, 0, 0, 500_000, tzinfo=UTC)),
    (3, True, datetime(2026, 7, 31, 6, tzinfo=UTC)),
]


def test_psqls_own_export_is_read(cases: Cases) -> None:
    assert cases.load("from_psql.csv", "from_psql") == PSQL
    proto = cases.infer("from_psql.csv", "from_psql_inferred")
    assert "bool active" in proto
    assert "Timestamp seen_at" in proto
    assert cases.load("from_psql.csv", "from_psql_inferred") == PSQL


@pytest.mark.parametrize("name", ["times_ns.csv", "nanos.parquet"])
def test_nanoseconds_are_refused_with_the_precision(cases: Cases, name: str) -> None:
    line = cases.refused(name, "stamps")
    assert "row 1 (the first record is row 1), column at: " in line
    assert "it has nanoseconds, and the table keeps microseconds" in line
    cases.infer(name, f"{name[:5]}_inferred")
    assert "nanoseconds" in cases.refused(name, f"{name[:5]}_inferred")


def test_times_of_spark_and_hive_are_of_any_year(cases: Cases) -> None:
    assert cases.load("int96.parquet", "stamps") == [
        (1, datetime(9999, 12, 31, tzinfo=UTC)),
        (2, datetime(2026, 1, 31, 6, tzinfo=UTC)),
        (3, datetime(1500, 1, 1, 12, tzinfo=UTC)),
    ]


def test_a_quote_that_is_not_closed_is_named(cases: Cases) -> None:
    line = cases.refused("open_quote.csv", "products")
    assert "row 2 (the first record is row 1; line 3 of the file), column note: the quote is not closed" in line
    result = cases.command("datasets", "infer", cases.path("open_quote.csv"))
    assert result.exit_code == 1
    assert "row 2 " in result.stderr


def test_the_delimiter_is_recognised(cases: Cases) -> None:
    cases.load("semicolons.csv", "products")
    assert cases.load("products.tsv", "products") == [
        (1, "pipe", "1,50"), (2, "lamp", "2,75"), (31, "pipe", "1,5"), (32, "q", "x"),
    ]  # fmt: skip


def test_a_decimal_comma_is_an_option(cases: Cases) -> None:
    cases.infer("semicolons.csv", "commas", "--decimal", ",")
    cases.load("semicolons.csv", "commas", "--decimal", ",")
    assert [row[2] for row in cases.rows("commas")] == [Decimal("1.50"), Decimal("2.75")]


def test_an_empty_column_at_the_end_is_named(cases: Cases) -> None:
    assert "no field matches column column_4" in cases.refused("trailing_comma.csv", "products")
    assert len(cases.load("trailing_comma.csv", "products", "--ignore-unknown-columns")) == 2


def test_hexadecimal_is_no_whole_number(cases: Cases) -> None:
    assert "row 1 (the first record is row 1), column id: '0x1F' is not a whole number" in cases.refused(
        "hex.csv", "products"
    )


def test_a_number_beyond_double_is_refused(cases: Cases) -> None:
    assert "beyond double" in cases.infer("overflow.csv", "overflow")
    assert "column v: '1e400' is not a number (double)" in cases.refused("overflow.csv", "overflow")


def test_a_header_in_other_case_is_refused(cases: Cases) -> None:
    line = cases.refused("case_header.csv", "products", "--ignore-unknown-columns")
    assert "column ID is not field id: names are compared exactly: use --rename ID=id" in line
    assert cases.load("case_header.csv", "products", "--rename", "ID=id", "--rename", "Name=name") == [(61, "a", "b")]


def test_a_missing_value_is_never_zero(cases: Cases) -> None:
    assert "the file has no column for field value" in cases.refused("no_value_col.csv", "sensor_readings")
    assert "row 1 (the first record is row 1), column value: the value is missing" in cases.refused(
        "null_value.jsonl", "sensor_readings"
    )


def test_small_decimals_have_no_exponent(cases: Cases) -> None:
    rows = cases.load("tiny_decimals.parquet", "ledger_lines")
    assert (len(rows), sum(row[1] for row in rows)) == (5, Decimal("1234567891.62345637"))


@pytest.mark.parametrize(
    ("name", "has"),
    [
        ("money.parquet", "COLUMN_TYPE_NUMERIC precision: 12 scale: 2"),
        ("all_null.parquet", "optional string remark"),
        ("i_dec.parquet", "COLUMN_TYPE_NUMERIC"),
        ("i_sview.parquet", "string"),
        ("uuids.parquet", "COLUMN_TYPE_UUID"),
    ],
)
def test_parquets_types_have_fields(cases: Cases, name: str, has: str) -> None:
    table = f"inferred_{name.removesuffix('.parquet')}"
    assert has in cases.infer(name, table)
    assert cases.load(name, table)


def test_parquets_uuids_are_text(cases: Cases) -> None:
    assert [(str(uid), remark) for uid, remark in cases.load("uuids.parquet", "things")] == [
        ("00000000-0000-0000-0000-000000000001", "a"), ("00000000-0000-0000-0000-000000000002", "b"),
    ]  # fmt: skip


def test_a_wrong_checksum_of_a_page_is_refused(cases: Cases) -> None:
    result = cases.command("load", cases.path("crc_bad.parquet"), "--dataset", "products")
    assert result.exit_code == 1
    assert "crc_bad.parquet cannot be read as Parquet: " in result.stderr
    assert cases.load("crc.parquet", "products")


def test_json_lines_of_other_programs_are_read(cases: Cases) -> None:
    assert "no field matches column meta" in cases.refused("polymorphic.jsonl", "events")
    assert cases.load("bom.jsonl", "events") == [(1, "open"), (2, "close")]
    rows = cases.load("polymorphic.jsonl", "events", "--ignore-unknown-columns")
    assert [row[0] for row in rows] == [1, 2, 3]
    cases.load("dotted.jsonl", "trades", "--missing-is-default")
    found = cases.parts.rows("SELECT venue_code FROM trades WHERE tenant = %s ORDER BY trade_id", cases.command.tenant)
    assert found == [("XNYS",), ("XPAR",)]


def test_a_dry_run_converts_everything_and_submits_nothing(cases: Cases) -> None:
    report = cases.command.json("load", cases.path("cust1.csv"), "--dataset", "products", "--dry-run")
    assert report == {"rows": 2, "submitted": False}
    assert "row 2 " in cases.refused("open_quote.csv", "products", "--dry-run")
    assert cases.rows("products") == []


def test_a_pipe_and_compressed_files_are_read(cases: Cases, tmp_path: Path) -> None:
    text = cases.path("cust1.csv").read_bytes()
    zstd = bytes(pa.compress(text, "zstd", asbytes=True))
    for suffix, packed in ((".gz", gzip.compress(text)), (".bz2", bz2.compress(text)), (".zst", zstd)):
        path = tmp_path / f"cust.csv{suffix}"
        path.write_bytes(packed)
        assert cases.command.json("load", path, "--dataset", "products", "--dry-run")["rows"] == 2
    pipe = tmp_path / "pipe.csv"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_bytes, args=[text])
    writer.start()
    assert len(cases.load(str(pipe), "products")) == 2
    writer.join()


def test_several_files_are_one_job_in_a_defined_order(cases: Cases, tmp_path: Path) -> None:
    for number in (2, 1, 3):
        (tmp_path / f"part{number}.csv").write_text(f"id,name\n{number},part {number}\n")
    (tmp_path / "notes.txt").write_text("no data")
    rows = [(1, "part 1", ""), (2, "part 2", ""), (3, "part 3", "")]
    report = cases.command.json("load", tmp_path, "--dataset", "products", "--key", "one")
    assert (report["rows"], report["job"]["counts"]["written"]) == (3, 3)
    assert cases.rows("products") == rows
    again = cases.command.json("load", tmp_path / "part*.csv", "--dataset", "products", "--key", "one")
    assert again["replayed"]
    (tmp_path / "part2.csv").write_text("id,name\nx,part 2\n")
    result = cases.command("load", tmp_path / "part1.csv", tmp_path / "part2.csv", "--dataset", "products", "--dry-run")
    assert "part2.csv: row 1 (the first record is row 1), column id: 'x' is not" in result.stderr
    assert "no file matches" in cases.command("load", tmp_path / "none*.csv", "--dataset", "products").stderr
