"""Lists, maps and messages in lists, of tables and of text: every value is exact, or refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from bulkgrpc.cli.files import FileError, open_batches
from bulkgrpc.cli.reading_options import Reading
from bulkgrpc.datasets.codec import BatchCodec
from bulkgrpc.tabular.arrow import encoded
from bulkgrpc.tabular.errors import NotRecords
from bulkgrpc.tabular.rules import Rules
from tests.support import examples
from tests.support.file_cases import FOLDER

DATASET = examples.compiled(FOLDER / "nested.proto", "cases.v1.Nested")
TEXTS_NOT_NULL = pa.list_(pa.field("element", pa.string(), nullable=False))
PART = pa.struct([("weight", pa.float32()), ("name", pa.string()), ("number", pa.int32())])


def read(**columns: pa.Array) -> list[dict[str, Any]]:
    rows = len(next(iter(columns.values())))
    table = pa.table({"id": pa.array(range(rows)), **columns})
    payloads = [payload for payload, _ in encoded(table, DATASET, 100, Rules())]
    found: list[dict[str, Any]] = BatchCodec(DATASET).decode(payloads).flatten().to_pylist()
    return found


@pytest.mark.parametrize("kind", [TEXTS_NOT_NULL, pa.list_(pa.string()), pa.large_list(pa.string())])
def test_a_null_list_is_empty_and_its_neighbours_stay(kind: pa.DataType) -> None:
    found = read(tags=pa.array([["a", "b"], None, ["c"], []], kind))
    assert [row["tags"] for row in found] == [["a", "b"], [], ["c"], []]


def test_maps_and_messages_of_fitting_types_are_kept() -> None:
    shares = pa.array([[("a", 0.5), ("b", 1e300)], None, []], pa.map_(pa.string(), pa.float64()))
    parts = pa.array([[{"weight": 0.5, "name": "x", "number": 3}], [], None], pa.list_(PART))
    found = read(shares=shares, parts=parts)
    assert [row["shares"] for row in found] == [[("a", 0.5), ("b", 1e300)], [], []]
    assert [row["parts"] for row in found] == [[{"weight": 0.5, "name": "x", "number": 3}], [], []]


def messages(**fields: pa.DataType) -> pa.DataType:
    return pa.list_(pa.struct([*fields.items()]))


REFUSED: dict[str, tuple[str, pa.Array]] = {
    "a double for a float": ("parts", pa.array([[{"weight": 0.1}]], messages(weight=pa.float64()))),
    "hexadecimal for a number": ("parts", pa.array([[{"number": "0x10"}]], messages(number=pa.string()))),
    "a number for a text": ("parts", pa.array([[{"name": 7}]], messages(name=pa.int64()))),
    "a number that is too large": ("parts", pa.array([[{"number": 2**31}]], messages(number=pa.int64()))),
    "a field that the message does not have": ("parts", pa.array([[{"colour": 7}]], messages(colour=pa.int64()))),
    "a name of an enum that is none": ("painted", pa.array([[{"colour": "PINK"}]], messages(colour=pa.string()))),
    "a value of a map that is null": ("shares", pa.array([[("a", None)]], pa.map_(pa.string(), pa.float64()))),
    "a key of a map that occurs twice": (
        "shares",
        pa.array([[("a", 1), ("a", 2)]], pa.map_(pa.string(), pa.float64())),
    ),
    "a text for a number of a map": ("shares", pa.array([[("a", "1")]], pa.map_(pa.string(), pa.string()))),
    "a text in a list of numbers": ("sizes", pa.array([["0x1F"]], pa.list_(pa.string()))),
    "a null in a list": ("tags", pa.array([["a", None]], pa.list_(pa.string()))),
}


@pytest.mark.parametrize(("column", "values"), REFUSED.values(), ids=REFUSED.keys())
def test_what_a_field_cannot_have_exactly_is_refused(column: str, values: pa.Array) -> None:
    with pytest.raises(NotRecords, match=f"column {column}|row 1"):
        read(**{column: values})


def of_csv(folder: Path, column: str, text: str) -> list[dict[str, Any]]:
    path = folder / "nested.csv"
    quoted = text.replace('"', '""')
    path.write_text(f'id,{column}\n1,"{quoted}"\n')
    options = Reading().options(path, 100, Rules(missing_is_default=True))
    payloads = [batch.payload for batch in open_batches(path, DATASET, options)]
    found: list[dict[str, Any]] = BatchCodec(DATASET).decode(payloads).flatten().to_pylist()
    return found


def test_a_list_of_numbers_in_text_keeps_its_digits(tmp_path: Path) -> None:
    assert of_csv(tmp_path, "sizes", "[0.1, 9007199254740992, -0.0]")[0]["sizes"] == [0.1, 9007199254740992.0, -0.0]
    for text in ("[9007199254740993]", "[0.10000000000000000555]", "[1e400]", '["1"]', "[null]", "{}"):
        with pytest.raises(FileError, match="row 1"):
            of_csv(tmp_path, "sizes", text)


def test_a_name_twice_in_a_cell_is_refused(tmp_path: Path) -> None:
    assert of_csv(tmp_path, "shares", '{"a": 0.5}')[0]["shares"] == [("a", 0.5)]
    with pytest.raises(FileError, match="row 1"):
        of_csv(tmp_path, "shares", '{"a": 0.1, "a": 5}')
