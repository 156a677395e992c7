"""Files as people and programs write them: each is read exactly, or refused with its place and a way out."""

from __future__ import annotations

import json
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest

from bulkgrpc.cli.files import FileError, format_of, open_batches
from bulkgrpc.cli.files.file_sets import expanded
from bulkgrpc.cli.reading_options import Reading
from bulkgrpc.datasets.codec import BatchCodec
from tests.support import examples
from tests.support.file_cases import FOLDER

NAMES = ("id", "label", "share", "active", "at", "price", "reach")
HEADER = ",".join(NAMES)
AT = "2024-05-01T12:00:00Z"
VALUES: dict[str, Any] = {
    "id": 1, "label": "a", "share": 0.5, "active": True, "at": datetime(2024, 5, 1, 12, tzinfo=UTC), "price": "1.5",
    "reach": 7,
}  # fmt: skip
EMPTY = {"label": None, "share": None, "active": None, "at": None, "price": "1", "reach": None}


def read(path: Path, **options: Any) -> list[dict[str, Any]]:
    dataset = examples.compiled(FOLDER / "round_trip.proto", "cases.v1.RoundTrip")
    batches = list(open_batches(path, dataset, Reading(**options).options(path)))
    rows: list[dict[str, Any]] = BatchCodec(dataset).decode([batch.payload for batch in batches]).flatten().to_pylist()
    return rows


def cells(**changed: str) -> str:
    row = {"id": "1", "label": "a", "share": "0.5", "active": "true", "at": AT, "price": "1.5", "reach": "7"} | changed
    return ",".join(row[name] for name in NAMES)


def csv_text(*rows: str, header: str = HEADER, end: str = "\n") -> str:
    return end.join([header, *rows, ""])


def document(**changed: Any) -> str:
    return json.dumps({**VALUES, "at": AT, **changed})


SEMICOLONS = csv_text(f"1;a;0,5;true;{AT};1.234,50;7", header=HEADER.replace(",", ";"), end="\r\n")
GERMAN = {"decimal": ",", "thousands": "."}
TEXTS: dict[str, tuple[str | bytes, dict[str, Any], list[dict[str, Any]]]] = {
    "mark of utf-8": ("\ufeff" + csv_text(cells()), {}, [VALUES]),
    "blank lines before the header": ("\n \n" + csv_text(cells()), {}, [VALUES]),
    "utf-16 by its name": (csv_text(cells()).encode("utf-16"), {"encoding": "utf-16"}, [VALUES]),
    "latin-1 by its name": (
        csv_text(cells(label="é")).encode("latin-1"),
        {"encoding": "latin-1"},
        [VALUES | {"label": "é"}],
    ),
    "german excel": ("\ufeff" + SEMICOLONS, GERMAN, [VALUES | {"price": "1234.50"}]),
    "sep line of excel": (
        "sep=;\r\n" + csv_text(cells().replace(",", ";"), header=HEADER.replace(",", ";"), end="\r\n"),
        {},
        [VALUES],
    ),
    "line breaks in quotes": (csv_text(cells(label='"a\nb\r\nc"')), {}, [VALUES | {"label": "a\nb\r\nc"}]),
    "returns only": (csv_text(cells(), cells(id="2"), end="\r"), {}, [VALUES, VALUES | {"id": 2}]),
    "no last line end": (csv_text(cells())[:-1], {}, [VALUES]),
    "header only": (csv_text(), {}, []),
    "header without line end": (HEADER, {}, []),
    "quoted header": (csv_text(cells(), header=",".join(f'"{name}"' for name in NAMES)), {}, [VALUES]),
    "spaces in header": (csv_text(cells(), header=", ".join(NAMES)), {}, [VALUES]),
    "a delimiter at the end of a row": (csv_text(cells() + ","), {}, [VALUES]),
    "nul in a text, which the service rejects": (csv_text(cells(label="a\0b")), {}, [VALUES | {"label": "a\0b"}]),
    "spaces around a number": (csv_text(cells(reach=" 7 ")), {}, [VALUES]),
    "whole number of pandas": (csv_text(cells(reach="7.0")), {}, [VALUES]),
    "not a number": (csv_text(cells(share="-Infinity")), {}, [VALUES | {"share": float("-inf")}]),
    "zone without minutes": (csv_text(cells(at="2024-05-01 14:00:00+02")), {}, [VALUES]),
    "json in a cell": (csv_text(cells(label='"{""a"": 1}"')), {}, [VALUES | {"label": '{"a": 1}'}]),
    "typographic quotes": (csv_text(cells(label="“a”")), {}, [VALUES | {"label": "“a”"}]),
    "formula": (csv_text(cells(label="=1+1")), {}, [VALUES | {"label": "=1+1"}]),
    "one column": ("id\n1\n", {}, [EMPTY | {"id": 1, "price": ""}]),
}
DOCUMENTS: dict[str, tuple[str, dict[str, Any], list[dict[str, Any]]]] = {
    "carriage returns": (document() + "\r\n", {}, [VALUES]),
    "no last line end": (document(), {}, [VALUES]),
    "two objects in a line": ('{"id":1,"price":"1"}{"id":2,"price":"1"}\n', {}, [EMPTY | {"id": 1}, EMPTY | {"id": 2}]),
    "id as text": (document(id="1"), {}, [VALUES]),
    "whole number with a fraction of zeros": (document(reach=7.0), {}, [VALUES]),
    "number for numeric": (document(price=1.5), {}, [VALUES]),
    "long number for numeric": (
        '{"id":1,"price":12345678901234567890.10}',
        {},
        [EMPTY | {"id": 1, "price": "12345678901234567890.10"}],
    ),
    "whole number for numeric": (document(price=15), {}, [VALUES | {"price": "15"}]),
    "milliseconds by their unit": (document(at=1714564800000), {"epoch": "ms"}, [VALUES]),
    "a large number that a double has": (document(share=2**60), {}, [VALUES | {"share": float(2**60)}]),
}
ARRAYS = {
    "array": (f"[{document()}, {document(id=2)}]", [VALUES, VALUES | {"id": 2}]),
    "array over several lines": (json.dumps([json.loads(document())], indent=2), [VALUES]),
    "empty array": ("[]", []),
}
COLUMNS: dict[str, tuple[dict[str, pa.Array], dict[str, Any]]] = {
    "whole nanoseconds": (
        {"at": pa.array([1000], pa.timestamp("ns", "UTC"))},
        {"at": datetime(1970, 1, 1, 0, 0, 0, 1, UTC)},
    ),
    "milliseconds": (
        {"at": pa.array([1], pa.timestamp("ms", "UTC"))},
        {"at": datetime(1970, 1, 1, 0, 0, 0, 1000, UTC)},
    ),
    "time without a zone": ({"at": pa.array([0], pa.timestamp("us"))}, {"at": datetime(1970, 1, 1, tzinfo=UTC)}),
    "time of another zone": (
        {"at": pa.array([0], pa.timestamp("us", "Europe/Berlin"))},
        {"at": datetime(1970, 1, 1, tzinfo=UTC)},
    ),
    "date": ({"at": pa.array([date(2024, 5, 1)])}, {"at": datetime(2024, 5, 1, tzinfo=UTC)}),
    "date of 64 bits": ({"at": pa.array([date(2024, 5, 1)], pa.date64())}, {"at": datetime(2024, 5, 1, tzinfo=UTC)}),
    "time as text": ({"at": pa.array([AT])}, {}),
    "decimal of 256 bits": (
        {"price": pa.array([Decimal("12345678901234567890.12345678")], pa.decimal256(50, 8))},
        {"price": "12345678901234567890.12345678"},
    ),
    "small decimal": ({"price": pa.array([Decimal("0E-8")], pa.decimal128(18, 8))}, {"price": "0.00000000"}),
    "decimal for a whole number": ({"id": pa.array([Decimal("1.00")])}, {}),
    "whole number for numeric": ({"price": pa.array([5])}, {"price": "5"}),
    "dictionary of texts": ({"label": pa.array(["a"]).dictionary_encode()}, {}),
    "dictionary of numbers": ({"reach": pa.array([7]).dictionary_encode()}, {}),
    "large text": ({"label": pa.array(["a"], pa.large_string())}, {}),
    "text view": ({"label": pa.array(["a"], pa.string_view())}, {}),
    "half precision": ({"share": pa.array([0.5], pa.float16())}, {}),
    "single precision": ({"share": pa.array([0.1], pa.float32())}, {"share": 0.10000000149011612}),
    "whole number as double": ({"id": pa.array([1.0])}, {}),
    "decimal that a double has": ({"share": pa.array([Decimal("0.1")])}, {"share": 0.1}),
    "column of null": ({"label": pa.nulls(1)}, {"label": None}),
}

REFUSED_TEXTS: dict[str, tuple[str | bytes, str]] = {
    "utf-16": (csv_text(cells()).encode("utf-16"), "--encoding utf-16"),
    "latin-1": (csv_text(cells(label="é")).encode("latin-1"), "name its encoding with --encoding"),
    "decimal comma": (SEMICOLONS, "row 1 .*column share: '0,5'.*--decimal ,"),
    "two kinds of line ends": (f"{HEADER}\r\n{cells()}\n{cells(id='2')}\r\n", "lines end in different ways.*dos2unix"),
    "nul in a number": (csv_text(cells(reach="7\0")), r"row 1 .*column reach: '7\\x00'"),
    "a delimiter at the end of the header": (
        csv_text(cells() + ",", header=HEADER + ","),
        "column column_8.*--ignore-unknown",
    ),
    "a name twice": (csv_text(cells() + ",9", header=HEADER + ",id"), "names column id twice.*--columns"),
    "a name in two cases": (
        csv_text(cells() + ",9", header=HEADER + ",ID"),
        "column ID is not field id.*--rename ID=id",
    ),
    "nothing": ("", "the file is empty"),
    "blank lines": ("\n\n\n", "the file is empty"),
    "a comment before the header": ("# export\n" + csv_text(cells()), "column # export"),
    "a second header": (csv_text(cells(), HEADER), "row 2 .*column id: 'id' is not a whole number"),
    "a web page": ("<html><body>404</body></html>\n", "no field matches column <html>"),
    "a zip archive": (b"PK\x03\x04aaaa", "a zip archive: unpack it"),
    "quotes of another kind": (csv_text(cells(label="'a,b'")), "row 1 .*8 cells; the header has 7"),
    "huge whole number": (csv_text(cells(reach="99999999999999999999999")), "row 1 .*column reach"),
    "negative for unsigned": (csv_text(cells(reach="-1")), "row 1 .*column reach: '-1'"),
    "fraction for a whole number": (csv_text(cells(reach="7.5")), "row 1 .*column reach: '7.5'"),
    "exponent for a whole number": (csv_text(cells(reach="1e3")), "row 1 .*column reach: '1e3'"),
    "underscore in a number": (csv_text(cells(reach="1_000")), "row 1 .*column reach"),
    "digits of another script": (csv_text(cells(reach="١٢")), "row 1 .*column reach"),
    "infinity by its size": (csv_text(cells(share="1e400")), "row 1 .*column share: '1e400'.*COLUMN_TYPE_NUMERIC"),
    "zero by its size": (csv_text(cells(share="1e-400")), "row 1 .*column share: '1e-400'.*COLUMN_TYPE_NUMERIC"),
    "whole number beyond a double": (csv_text(cells(share="9007199254740993")), "row 1 .*column share.*lose digits"),
    "hexadecimal": (csv_text(cells(share="0x1p3")), "row 1 .*column share"),
    "30 February": (csv_text(cells(at="2024-02-30T00:00:00Z")), "row 1 .*column at"),
    "leap second": (csv_text(cells(at="2024-06-30T23:59:60Z")), "row 1 .*column at"),
    "hour 24": (csv_text(cells(at="2024-06-30T24:00:00Z")), "row 1 .*column at"),
    "american date": (csv_text(cells(at="05/01/2024")), "row 1 .*column at.*--time-format"),
    "name of a zone": (csv_text(cells(at="2024-05-01 12:00:00 Europe/Berlin")), "row 1 .*column at"),
    "yes": (csv_text(cells(active="yes")), "row 1 .*column active: 'yes' is not true or false"),
    "a cell of 5 MB": (csv_text(cells(label="x" * 5_000_000)), "row 1 .*longer than 4,194,304 bytes"),
    "a row larger than a batch": (csv_text(cells(label="x" * 1_200_000)), "the limit of a batch is"),
}
REFUSED_DOCUMENTS: dict[str, tuple[str, str]] = {
    "number for a text": (document(label=5), "row 1 .*column label: 5 is not text.*write it as text"),
    "text and numbers": (document() + "\n" + document(id="x"), "row 2 .*column id: 'x'"),
    "beyond unsigned 64 bits": (document(reach=2**64), "row 1 .*column reach"),
    "whole number beyond a double": (document(share=2**53 + 1), "row 1 .*column share.*lose digits"),
    "infinity by its size": ('{"id":1,"share":1e400,"price":"1"}', "row 1 .*column share"),
    "object for a text": (document(label={"a": 1}), "row 1 .*column label"),
    "list for a text": (document(label=["a"]), "row 1 .*column label"),
    "a key twice": ('{"id":1,"id":2,"price":"1"}', "row 1 .*column id: the object names it twice"),
    "a comma at the end": ('{"id":1,"price":"1",}', "row 1 .*not a JSON object"),
    "an object over several lines": (json.dumps(json.loads(document()), indent=2), "row 1 .*one object per line.*jq"),
    "half a character": ('{"id":1,"label":"\\ud800","price":"1"}', "row 1 .*column label"),
    "text for a truth value": (document(active="true"), "row 1 .*column active"),
    "number for a truth value": (document(active=1), "row 1 .*column active"),
    "a time without a unit": (document(at=1714564800), "row 1 .*column at.*--epoch"),
    "a cut line": (document()[:-10], "row 1 .*not a JSON object"),
    "records within an object": ('{"data":[]}', "no field matches column data"),
}
REFUSED_COLUMNS: dict[str, tuple[dict[str, pa.Array], str]] = {
    "nanoseconds": ({"at": pa.array([1001], pa.timestamp("ns", "UTC"))}, "row 1 .*column at.*nanoseconds.*round it"),
    "a year beyond 9999": ({"at": pa.array([10**14], pa.timestamp("s", "UTC"))}, "row 1 .*column at"),
    "milliseconds without a unit": ({"at": pa.array([1714564800000])}, "row 1 .*column at.*--epoch"),
    "double for numeric": ({"price": pa.array([1.1])}, "row 1 .*column price"),
    "bytes for a text": ({"label": pa.array([b"a"])}, "row 1 .*column label.*make the field bytes"),
    "number for a text": ({"label": pa.array([7])}, "row 1 .*column label.*write it as text"),
    "list for a text": ({"label": pa.array([["a"]])}, "row 1 .*column label"),
    "struct for a text": ({"label": pa.array([{"a": 1}])}, "column label.a"),
    "time of day for a text": ({"label": pa.array([time(1, 2)])}, "row 1 .*column label"),
    "duration for a text": ({"label": pa.array([timedelta(1)])}, "row 1 .*column label"),
    "fraction for a whole number": ({"id": pa.array([Decimal("1.5")])}, "row 1 .*column id"),
    "double beyond whole numbers": ({"id": pa.array([2.0**53 + 2])}, "row 1 .*column id.*lose digits"),
    "decimal beyond a double": (
        {"share": pa.array([Decimal("0.12345678901234567891")])},
        "row 1 .*column share.*NUMERIC",
    ),
    "whole number beyond a double": ({"share": pa.array([2**53 + 1])}, "row 1 .*column share.*lose digits"),
    "number for a truth value": ({"active": pa.array([1])}, "row 1 .*column active"),
    "negative for unsigned": ({"reach": pa.array([-1])}, "row 1 .*column reach"),
    "unsigned beyond signed": ({"id": pa.array([2**63], pa.uint64())}, "row 1 .*column id"),
}


def parquet(path: Path, columns: dict[str, pa.Array]) -> Path:
    plain = {name: pa.array([value]) for name, value in VALUES.items()}
    pyarrow.parquet.write_table(pa.table(plain | columns), path, store_schema=False)
    return path


def written(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


@pytest.mark.parametrize("name", TEXTS)
def test_csv_is_read_exactly(name: str, tmp_path: Path) -> None:
    content, options, rows = TEXTS[name]
    assert read(written(tmp_path / "t.csv", content), **options) == rows


@pytest.mark.parametrize("name", DOCUMENTS)
def test_json_lines_are_read_exactly(name: str, tmp_path: Path) -> None:
    content, options, rows = DOCUMENTS[name]
    assert read(written(tmp_path / "t.jsonl", content), **options) == rows


@pytest.mark.parametrize("name", ARRAYS)
def test_json_arrays_are_read_exactly(name: str, tmp_path: Path) -> None:
    content, rows = ARRAYS[name]
    assert read(written(tmp_path / "t.json", content)) == rows


@pytest.mark.parametrize("name", COLUMNS)
def test_parquet_is_read_exactly(name: str, tmp_path: Path) -> None:
    columns, changed = COLUMNS[name]
    assert read(parquet(tmp_path / "t.parquet", columns)) == [VALUES | changed]


def refused(path: Path, message: str) -> None:
    with pytest.raises(FileError, match=rf"(?s)^{path.name}: .*{message}"):
        read(path)


@pytest.mark.parametrize("name", REFUSED_TEXTS)
def test_csv_is_refused_with_place_and_way_out(name: str, tmp_path: Path) -> None:
    content, message = REFUSED_TEXTS[name]
    refused(written(tmp_path / "t.csv", content), message)


@pytest.mark.parametrize("name", REFUSED_DOCUMENTS)
def test_json_lines_are_refused_with_place_and_way_out(name: str, tmp_path: Path) -> None:
    content, message = REFUSED_DOCUMENTS[name]
    refused(written(tmp_path / "t.jsonl", content), message)


@pytest.mark.parametrize("name", REFUSED_COLUMNS)
def test_parquet_is_refused_with_place_and_way_out(name: str, tmp_path: Path) -> None:
    columns, message = REFUSED_COLUMNS[name]
    refused(parquet(tmp_path / "t.parquet", columns), message)


@pytest.mark.parametrize("suffix", ["avro", "orc", "xlsx", "xls", "ods", "zip", "tar", "xml"])
def test_formats_that_are_not_read_name_what_converts_them(suffix: str) -> None:
    with pytest.raises(FileError, match=f"^t.{suffix}: .{suffix} files are not read: convert it with "):
        format_of(Path(f"t.{suffix}"))


@pytest.mark.parametrize("address", ["s3://bucket/a/t.csv", "https://host/t.csv", "s3://bucket/*.csv", "gs://b/t.csv"])
def test_an_address_is_refused_with_a_pipe_that_reads_it(address: str) -> None:
    with pytest.raises(FileError, match=r"is not read by address: use `.* \| bulkgrpc load - --format"):
        expanded([Path(address)])
    with pytest.raises(FileError, match="is not read by address"):
        read(Path(address).with_suffix(".csv"))


def test_texts_alone_after_a_blank_line_have_no_header_among_them(tmp_path: Path) -> None:
    path = tmp_path / "texts.csv"
    path.write_text(f"\n{HEADER}\n{cells()}\n")
    assert [row["id"] for row in read(path)] == [1]


def test_a_time_before_the_year_1_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "times.csv"
    path.write_text(csv_text(cells(at="0001-01-01 +0500")))
    with pytest.raises(FileError, match=r"row 1 .*column at"):
        read(path, time_format="%Y-%m-%d %z")
