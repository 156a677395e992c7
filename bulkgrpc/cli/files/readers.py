"""Reads files in blocks: tables with the file's own columns, and the file offset after each."""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import pyarrow.json as pj
import pyarrow.parquet

from bulkgrpc.cli.files.conversion import flat
from bulkgrpc.cli.files.errors import FileError, InvalidValue, shown
from bulkgrpc.cli.files.fields import Leaf
from bulkgrpc.cli.files.values import is_text_in_json

BLOCK_BYTES = 4 * 1024 * 1024
"""Bytes of a block. A row longer than a block cannot be read."""
PARQUET_BLOCK_ROWS = 20_000
_BEGIN_BYTES = 64 * 1024
_MAGIC = {
    b"PK\x03\x04": "a zip archive",
    b"\x1f\x8b": "compressed with gzip",
    b"\x28\xb5\x2f\xfd": "compressed with Zstandard",
    b"PAR1": "a Parquet file",
    b"%PDF": "a PDF",
}


@dataclass(frozen=True, slots=True)
class Block:
    """Rows of a file, in order. read_bytes: file offset after the block."""

    table: pa.Table
    read_bytes: int


def read_csv(path: Path) -> Iterator[Block]:
    """Yield the blocks of a CSV file with a header. Every column is text, cells unchanged.

    Raises FileError for a row with too few or too many cells, or text that is not UTF-8.
    """
    _check_text(path)
    with path.open("rb") as file:
        try:
            reader = pyarrow.csv.open_csv(
                file,
                # One thread, so that errors include the row.
                pyarrow.csv.ReadOptions(use_threads=False, block_size=BLOCK_BYTES),
                pyarrow.csv.ParseOptions(newlines_in_values=True),
                pyarrow.csv.ConvertOptions(default_column_type=pa.string(), strings_can_be_null=False),
            )
            names = reader.schema.names
            repeated = sorted({name for name in names if names.count(name) > 1})
            if repeated:
                raise FileError(f"{path.name}: the header names column {repeated[0]} twice")
            for batch in reader:
                yield Block(pa.Table.from_batches([batch]), file.tell())
        except pa.ArrowInvalid as error:
            raise FileError(f"{path.name}: {_one_line(error)} (the header is row #1)") from error


def _check_text(path: Path) -> None:
    """Check that a file starts with text. Parsing anything else takes long and may succeed with nonsense."""
    with path.open("rb") as file:
        begin = file.read(_BEGIN_BYTES)
    what = next((what for magic, what in _MAGIC.items() if begin.startswith(magic)), None)
    try:
        # The last character may be incomplete.
        codecs.getincrementaldecoder("utf-8")().decode(begin)
    except UnicodeDecodeError:
        what = what or "not UTF-8 text"
    # A text may contain one: its record is rejected, and a file of rejected records contains it again.
    if what is None and begin.count(0) * 10 > len(begin):
        what = "not text"
    if what is not None:
        raise FileError(f"{path.name}: the file is {what}: unpack it, save it as UTF-8, or use another --format")


def read_parquet(path: Path) -> Iterator[Block]:
    """Yield the blocks of a Parquet file. Raises FileError if it cannot be read."""
    size = path.stat().st_size
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            rows, read = max(1, file.metadata.num_rows), 0
            for batch in file.iter_batches(PARQUET_BLOCK_ROWS):
                read += batch.num_rows
                yield Block(pa.Table.from_batches([batch]), size * read // rows)
    except pa.ArrowException as error:
        raise FileError(f"{path.name} cannot be read as Parquet: {_one_line(error)}") from error


def read_jsonl(path: Path, leaves: tuple[Leaf, ...]) -> Iterator[Block]:
    """Yield the blocks of a file of JSON objects, one per line. Keys are the fields' names or JSON names, nested.

    Raises FileError for the first line that does not match the message.
    """
    rows = 0
    documents = frozenset(spelling for leaf in leaves if leaf.json for spelling in leaf.spellings)
    for block, read_bytes in _line_blocks(path):
        lines = _documents_as_text(block, documents) if documents else block
        table = _parse_lines(lines, leaves)
        if table is None:
            raise _bad_line(path, lines, leaves, rows)
        rows += len(table)
        yield Block(_drop_unused_spellings(table, leaves), read_bytes)


def _line_blocks(path: Path) -> Iterator[tuple[bytes, int]]:
    """Yield blocks of whole lines, and the file offset after each."""
    _check_text(path)
    rest = b""
    with path.open("rb") as file:
        while data := file.read(BLOCK_BYTES):
            data = rest + data
            end = data.rfind(b"\n") + 1
            rest = data[end:]
            if len(rest) > BLOCK_BYTES:
                raise FileError(f"{path.name}: a line is longer than {BLOCK_BYTES:,} bytes")
            if data[:end].strip():
                yield data[:end], file.tell() - len(rest)
        if rest.strip():
            yield rest + b"\n", file.tell()


def _documents_as_text(lines: bytes, documents: frozenset[str]) -> bytes:
    """Return lines of JSON in which the values at `documents` are text that contains their JSON."""

    def as_text(value: object, path: str) -> object:
        if path in documents:
            return None if value is None else json.dumps(value)
        if isinstance(value, dict):
            return {name: as_text(inner, f"{path}.{name}" if path else name) for name, inner in value.items()}
        return value

    def line(text: bytes) -> bytes:
        try:
            return json.dumps(as_text(json.loads(text), "")).encode()
        except (ValueError, RecursionError):
            # `_parse_lines` reports the error.
            return text

    return b"\n".join(line(text) for text in lines.split(b"\n") if text.strip()) + b"\n"


def _parse_lines(lines: bytes, leaves: tuple[Leaf, ...]) -> pa.Table | None:
    # Protobuf JSON writes 64-bit numbers as text, other writers as numbers; a block has one or the other.
    for text_integers in (False, True):
        try:
            return pj.read_json(
                pa.BufferReader(lines),
                pj.ReadOptions(use_threads=False, block_size=len(lines) + 1),
                pj.ParseOptions(
                    explicit_schema=_json_schema(leaves, text_integers=text_integers), unexpected_field_behavior="infer"
                ),
            )
        except pa.ArrowInvalid:
            continue
    return None


def _json_schema(leaves: tuple[Leaf, ...], *, text_integers: bool) -> pa.Schema:
    tree: dict[str, object] = {}
    for leaf in leaves:
        for spelling in {leaf.name, leaf.spellings[-1]}:
            *above, last = spelling.split(".")
            branch = tree
            for step in above:
                branch = branch.setdefault(step, {})  # type: ignore[assignment]
            branch[last] = _json_type(leaf, leaf.type, text_integers=text_integers)
    return pa.schema(_json_fields(tree))


def _json_fields(tree: dict[str, object]) -> list[pa.Field]:
    return [
        pa.field(name, pa.struct(_json_fields(below)) if isinstance(below, dict) else below)
        for name, below in tree.items()
    ]


def _json_type(leaf: Leaf, kind: pa.DataType, *, text_integers: bool) -> pa.DataType:
    if leaf.json:
        return pa.string()
    if pa.types.is_list(kind):
        return pa.list_(_json_type(leaf, kind.value_type, text_integers=text_integers))
    if leaf.enum or is_text_in_json(kind) or (text_integers and kind in (pa.int64(), pa.uint64())):
        return pa.string()
    return kind


def _drop_unused_spellings(table: pa.Table, leaves: tuple[Leaf, ...]) -> pa.Table:
    """Drop the columns of spellings that no line uses, so that each leaf has one column."""
    table = flat(table)
    names = set(table.column_names)
    for leaf in leaves:
        spellings = [spelling for spelling in leaf.spellings if spelling in names]
        used = [spelling for spelling in spellings if table.column(spelling).null_count < len(table)]
        kept = used or spellings[:1]
        table = table.drop_columns([spelling for spelling in spellings if spelling not in kept])
    return table


def _bad_line(path: Path, block: bytes, leaves: tuple[Leaf, ...], rows: int) -> FileError:
    lines = [line for line in block.split(b"\n") if line.strip()]
    fits, unfit = 0, len(lines)
    while unfit - fits > 1:
        middle = (fits + unfit) // 2
        if _parse_lines(b"\n".join(lines[fits:middle]) + b"\n", leaves) is None:
            unfit = middle
        else:
            fits = middle
    try:
        record = json.loads(lines[fits])
    except ValueError:
        record = None
    if not isinstance(record, dict):
        text = lines[fits].decode(errors="replace")
        return FileError(
            f"{path.name}: row {rows + fits + 1:,} (the first record is row 1): not a JSON object: {shown(text)}"
        )
    for name, value in record.items():
        if _parse_lines(json.dumps({name: value}).encode() + b"\n", leaves) is None:
            needed = next(
                (leaf.needed for leaf in leaves if name in leaf.spellings), "a value of the type in the message"
            )
            return InvalidValue(fits, name, value, needed).located(path, rows)
    return FileError(
        f"{path.name}: rows {rows + 1:,} to {rows + len(lines):,}: 64-bit numbers must be all text or all numbers"
    )


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
