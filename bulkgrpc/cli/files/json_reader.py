"""Reads JSON lines in blocks with Arrow, and with Python the blocks that Arrow cannot read as they are."""

from __future__ import annotations

import json
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json as pj

from bulkgrpc.cli.bad_row import BadRow
from bulkgrpc.cli.files.errors import FileError
from bulkgrpc.cli.files.sources import Block, Source, text_of
from bulkgrpc.tabular.conversion import check_unknown, flat
from bulkgrpc.tabular.errors import ROW_NOTE, InvalidValue, NotRecords, shown
from bulkgrpc.tabular.fields import Leaf
from bulkgrpc.tabular.rejection_columns import is_rejection_column
from bulkgrpc.tabular.rules import Rules
from bulkgrpc.tabular.text_values import WHOLE_MAX
from bulkgrpc.tabular.values import hint_for, is_text_in_json

BLOCK_BYTES = 4 * 1024 * 1024
"""Bytes of a block. A line longer than a block cannot be read."""


class Literal(float):
    """A number with a fraction or an exponent, its text, and whether a double has all of its digits."""

    exact: bool
    text: str

    def __new__(cls, text: str) -> Literal:
        """Parse a JSON number."""
        number = super().__new__(cls, text)
        number.text = text
        number.exact = number not in {float("inf"), float("-inf")} and Decimal(text) == Decimal(repr(float(number)))
        return number


class JsonLines:
    """A file of JSON objects, one per line. Keys are the fields' names or JSON names: nested, or joined with dots."""

    def __init__(self, source: Source, leaves: tuple[Leaf, ...], rules: Rules, *, reject: bool = False) -> None:
        self._source = source
        self._reject = reject
        self._leaves = leaves
        self._rules = rules
        self._by_spelling = {spelling: leaf for leaf in reversed(leaves) for spelling in leaf.spellings}
        self._documents = frozenset(spelling for leaf in leaves if leaf.json for spelling in leaf.spellings)
        self._messages = {
            ".".join(spelling.split(".")[:count])
            for spelling in self._by_spelling
            for count in range(1, spelling.count(".") + 1)
        }

    def blocks(self) -> Iterator[Block]:
        """Yield the blocks of the file. A line that does not match the message is a bad row, or raises FileError."""
        rows = 0
        for lines, read_bytes in self._line_blocks():
            table = self._table(lines)
            if table is not None:
                block = Block(self._drop_unused_spellings(table), read_bytes)
            elif self._reject:
                block = self._separated(lines, rows, read_bytes)
            else:
                raise self._bad_line(lines, rows)
            rows += len(block.table) + len(block.bad)
            yield block

    def _separated(self, block: bytes, rows: int, read_bytes: int) -> Block:
        """Return the lines of a block that match the message, and the others as bad rows. rows: before the block."""
        lines = [line for line in block.split(b"\n") if line.strip()]
        parts, bad = [(0, len(lines))], list[int]()
        while parts:
            start, stop = parts.pop()
            table = self._table(b"\n".join(lines[start:stop]) + b"\n")
            if table is not None and len(table) == stop - start:
                continue
            if stop - start == 1:
                bad.append(start)
            else:
                middle = (start + stop) // 2
                parts += [(middle, stop), (start, middle)]
        kept = np.delete(np.arange(len(lines)), bad)
        good = b"\n".join(lines[row] for row in kept) + b"\n"
        table = self._table(good) if len(kept) else pa.table({})
        if table is None:
            raise self._bad_line(good, rows)
        table = self._drop_unused_spellings(table) if len(kept) else table
        return Block(table, read_bytes, kept + rows + 1, [self._bad_row(lines[row], rows + row) for row in bad])

    def _bad_row(self, line: bytes, rows: int) -> BadRow:
        if self._table(line + b"\n") is not None:
            return BadRow(rows + 1, "", "the line is not one JSON object", line.decode(errors="replace"))
        reason = str(self._bad_line(line, rows)).partition(ROW_NOTE)[2].lstrip(":, ")
        return BadRow(rows + 1, "", reason, line.decode(errors="replace"))

    def _line_blocks(self) -> Iterator[tuple[bytes, int]]:
        """Yield blocks of whole lines, and the file offset after each."""
        rest = b""
        with text_of(self._source) as file:
            while data := file.read(BLOCK_BYTES):
                data = rest + data
                end = data.rfind(b"\n") + 1
                rest = data[end:]
                if len(rest) > BLOCK_BYTES:
                    raise FileError(
                        f"{self._source.name}: a line is longer than {BLOCK_BYTES:,} bytes: write one JSON object per "
                        "line"
                    )
                if data[:end].strip():
                    yield data[:end], file.tell() - len(rest)
            if rest.strip():
                yield rest + b"\n", file.tell()

    def _table(self, lines: bytes) -> pa.Table | None:
        """Parse lines; None if a line does not match the message. Python rewrites only what Arrow cannot read."""
        if not self._documents and not self._rules.renames:
            table = self._parsed(lines, text_integers=False)
            if table is not None:
                return table
        lines = b"\n".join(self._rewritten(line) for line in lines.split(b"\n") if line.strip()) + b"\n"
        return self._parsed(lines, text_integers=True)

    def _parsed(self, lines: bytes, *, text_integers: bool) -> pa.Table | None:
        try:
            table = flat(
                pj.read_json(
                    pa.BufferReader(lines),
                    pj.ReadOptions(use_threads=False, block_size=len(lines) + 1),
                    pj.ParseOptions(
                        explicit_schema=_schema(self._leaves, text_integers=text_integers),
                        unexpected_field_behavior="infer",
                    ),
                )
            )
        except pa.ArrowInvalid:
            return None
        names = table.column_names
        if len(set(names)) < len(names) or any(_overflows(column) for column in table.columns):
            return None
        if not text_integers and any(_may_have_lost_digits(column) for column in table.columns):
            return None
        return table

    def _rewritten(self, line: bytes) -> bytes:
        """Return a line whose names are nested, 64-bit integers are text, and JSON documents are text."""
        try:
            record = json.loads(line, parse_float=Literal, object_pairs_hook=_unique)
            return json.dumps(self._walked(record)).encode() if isinstance(record, dict) else line
        except (ValueError, RecursionError):
            # The parser reports the error.
            return line

    def _walked(self, record: dict[str, Any]) -> dict[str, Any]:
        written: dict[str, Any] = {}
        for path, value in self._cells(record, ""):
            leaf = self._by_spelling.get(self._rules.renames.get(path, path))
            if leaf is None:
                if (path in self._messages and value is None) or (self._rules.corrected and is_rejection_column(path)):
                    continue
                try:
                    check_unknown([path], self._leaves, ignore=self._rules.ignore_unknown)
                except NotRecords as error:
                    raise FileError(f"{self._source.name}: {error}") from None
                continue
            *above, last = leaf.path
            inner = written
            for step in above:
                inner = inner.setdefault(step, {})
            if last in inner:
                raise ValueError(path)
            inner[last] = self._cell(value, leaf)
        return written

    def _cells(self, record: dict[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
        for name, value in record.items():
            path = prefix + name
            if isinstance(value, dict) and path not in self._by_spelling and path in self._messages:
                yield from self._cells(value, f"{path}.")
            else:
                yield path, value

    def _cell(self, value: Any, leaf: Leaf) -> Any:  # noqa: PLR0911 — one for each kind of field
        if value is None:
            return None
        if leaf.json:
            if not _is_exact(value):
                raise ValueError(value)
            return json.dumps(value)
        if pa.types.is_list(leaf.type) and isinstance(value, list):
            if leaf.enum:
                return value
            return [_number(one, leaf.type.value_type) for one in value]
        whole = isinstance(value, int) and not isinstance(value, bool)
        epoch = pa.types.is_timestamp(leaf.type) and self._rules.forms.epoch
        if isinstance(value, Literal) and leaf.column == "numeric":
            # The file has all digits of the number.
            return value.text
        if leaf.enum or epoch or leaf.column == "numeric":
            return str(value) if whole else value
        if pa.types.is_floating(leaf.type) and whole and not _has_whole(leaf.type, value):
            # The parser refuses a text.
            return str(value)
        return _number(value, leaf.type)

    def _drop_unused_spellings(self, table: pa.Table) -> pa.Table:
        """Drop the columns of spellings that no line uses, so that each leaf has one column."""
        names = set(table.column_names)
        for leaf in self._leaves:
            spellings = [spelling for spelling in leaf.spellings if spelling in names]
            used = [spelling for spelling in spellings if table.column(spelling).null_count < len(table)]
            kept = used or spellings[:1]
            table = table.drop_columns([spelling for spelling in spellings if spelling not in kept])
        return table

    def _bad_line(self, block: bytes, rows: int) -> FileError:
        lines = [line for line in block.split(b"\n") if line.strip()]
        fits, unfit = 0, len(lines)
        while unfit - fits > 1:
            middle = (fits + unfit) // 2
            if self._table(b"\n".join(lines[fits:middle]) + b"\n") is None:
                unfit = middle
            else:
                fits = middle
        place = f"{self._source.name}: row {rows + fits + 1:,} {ROW_NOTE}"
        try:
            record = json.loads(lines[fits], parse_float=Literal, object_pairs_hook=_unique)
        except RepeatedName as error:
            return FileError(f"{place}, column {error}: the object names it twice")
        except (ValueError, RecursionError):
            record = None
        if not isinstance(record, dict):
            text = shown(lines[fits].decode(errors="replace"))
            way_out = "write one object per line, for example with `jq -c .`, or one array"
            return FileError(f"{place}: not a JSON object: {text}: {way_out}")
        for path, value in self._cells(record, ""):
            leaf = self._by_spelling.get(self._rules.renames.get(path, path))
            if leaf is not None and leaf.json and not _is_exact(value):
                return FileError(f"{place}, column {path}: a number has more digits than a double: write it as text")
            above: Any = value
            for step in reversed(path.split(".")):
                above = {step: above}
            if self._table(json.dumps(above).encode() + b"\n") is None:
                needed = leaf.needed if leaf else "a value of the type in the message"
                kind = pa.int64() if isinstance(value, int) else pa.string()
                hint = hint_for(kind, value, leaf) if leaf else ""
                return FileError(f"{self._source.name}: {InvalidValue(fits, path, value, needed, hint).located(rows)}")
        return FileError(f"{place}: two names of the object are the same field")


class RepeatedName(ValueError):
    """An object names a key twice."""


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise RepeatedName(next(name for name in names if names.count(name) > 1))
    return found


def _number(value: Any, kind: pa.DataType) -> Any:
    """Return a number as the parser expects it: a 64-bit integer as text, a smaller one as a number."""
    if pa.types.is_integer(kind) and isinstance(value, Literal) and value.exact and value.is_integer():
        value = int(value)
    if pa.types.is_integer(kind) and isinstance(value, int | str) and not isinstance(value, bool):
        if kind.bit_width == 64:
            return str(value)
        return int(value) if str(value).lstrip("-").isdigit() else value
    return value


def _is_exact(value: Any) -> bool:
    """Return whether doubles have all digits of the numbers in a value."""
    if isinstance(value, Literal):
        return value.exact
    return all(map(_is_exact, value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()))


def _overflows(column: pa.ChunkedArray) -> bool:
    """Return whether a number became infinite: JSON has no such number."""
    return bool(pa.types.is_floating(column.type) and pc.any(pc.is_inf(column)).as_py())


def _may_have_lost_digits(column: pa.ChunkedArray) -> bool:
    """Return whether a number is so large that its type does not have every whole number there."""
    if not pa.types.is_floating(column.type):
        return False
    return bool(pc.any(pc.greater_equal(pc.abs(column), WHOLE_MAX[column.type.bit_width])).as_py())


def _has_whole(kind: pa.DataType, number: int) -> bool:
    try:
        return bool(pa.scalar(float(number)).cast(kind).as_py() == number)
    except (OverflowError, pa.ArrowInvalid):
        return False


def _schema(leaves: tuple[Leaf, ...], *, text_integers: bool) -> pa.Schema:
    tree: dict[str, object] = {}
    for leaf in leaves:
        for path in dict.fromkeys((leaf.path, leaf.json_path)):
            *above, last = path
            branch = tree
            for step in above:
                branch = branch.setdefault(step, {})  # type: ignore[assignment]
            branch[last] = _type(leaf, leaf.type, text_integers=text_integers)
    return pa.schema(_fields(tree))


def _fields(tree: dict[str, object]) -> list[pa.Field]:
    return [
        pa.field(name, pa.struct(_fields(below)) if isinstance(below, dict) else below) for name, below in tree.items()
    ]


def _type(leaf: Leaf, kind: pa.DataType, *, text_integers: bool) -> pa.DataType:
    if leaf.json:
        return pa.string()
    if pa.types.is_list(kind):
        return pa.list_(_type(leaf, kind.value_type, text_integers=text_integers))
    if leaf.enum or is_text_in_json(kind) or (text_integers and kind in (pa.int64(), pa.uint64())):
        return pa.string()
    return kind
