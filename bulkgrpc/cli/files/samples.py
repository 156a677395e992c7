"""Reads the first rows of a file for the inference of types."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from bulkgrpc.cli.files.batches import FileOptions, Format, source_of
from bulkgrpc.cli.files.csv_reader import CsvFile
from bulkgrpc.cli.files.errors import FileError
from bulkgrpc.cli.files.parquet_reader import read_arrow, read_parquet
from bulkgrpc.cli.files.sources import Block, Source, text_of
from bulkgrpc.tabular.errors import shown

JSON_VALUE = "google.protobuf.Value"


class Number(str):
    """The text of a JSON number."""

    __slots__ = ()


def read_sample(path: Path, options: FileOptions, rows: int) -> tuple[pa.Table, str]:
    """Return the first rows of a file, with the file's own columns, and the file's name; rows: 0 for all.

    Raises FileError if it cannot be read.
    """
    source = source_of(path, options)
    if options.format is Format.JSONL:
        return _json(source, rows), source.name
    tables, count = [], 0
    for block in _blocks(source, options):
        tables.append(block.table)
        count += len(block.table)
        if rows and count >= rows:
            break
    if not tables:
        raise FileError(f"{source.name}: the file has no rows to infer types from")
    table = pa.concat_tables(tables)
    return table.slice(0, rows) if rows else table, source.name


def _blocks(source: Source, options: FileOptions) -> Iterator[Block]:
    match options.format:
        case Format.CSV:
            return CsvFile(source, options.dialect).blocks()
        case Format.PARQUET:
            return read_parquet(source)
        case Format.ARROW:
            return read_arrow(source)
        case other:
            raise FileError(f"{source.name}: types are not inferred from {other}: write the .proto file yourself")


def _json(source: Source, rows: int) -> pa.Table:
    """Read lines with Python: the only parser at hand that keeps the text of numbers. It is a sample."""
    records: list[dict[str, Any]] = []
    with text_of(source) as file:
        for line in file:
            if not line.strip():
                continue
            try:
                record = json.loads(line, parse_int=Number, parse_float=Number, parse_constant=Number)
            except ValueError:
                record = None
            if not isinstance(record, dict):
                text = shown(line.decode(errors="replace").strip())
                raise FileError(f"{source.name}: row {len(records) + 1:,}: not a JSON object: {text}")
            records.append(record)
            if rows and len(records) >= rows:
                break
    names = dict.fromkeys(name for record in records for name in record)
    try:
        return pa.table({name: _column(name, [record.get(name) for record in records]) for name in names})
    except FileError as error:
        raise FileError(f"{source.name}: {error}") from None


def _column(name: str, values: list[Any]) -> pa.Array:
    """Return a column: numbers as their type, text as text, objects and lists as structs and lists."""
    there = [value for value in values if value is not None]
    try:
        if there and all(isinstance(value, Number) for value in there):
            return _numbers(name, values)
        if any(isinstance(value, Number) for value in there):
            raise FileError(_mixed(name))
        return pa.array([_bare(value) for value in values], from_pandas=False)
    except (pa.ArrowInvalid, pa.ArrowTypeError, ValueError, OverflowError):
        raise FileError(_mixed(name)) from None


def _numbers(name: str, values: list[Any]) -> pa.Array:
    whole = all(value is None or value.lstrip("-").isdigit() for value in values)
    if whole:
        numbers = [None if value is None else int(value) for value in values]
        kind = pa.uint64() if max(n for n in numbers if n is not None) > 2**63 - 1 else pa.int64()
        return pa.array(numbers, kind)
    return pa.array([None if value is None else float(value) for value in values], pa.float64())


def _bare(value: Any) -> Any:
    if isinstance(value, Number):
        return int(value) if value.lstrip("-").isdigit() else float(value)
    if isinstance(value, dict):
        return {name: _bare(inner) for name, inner in value.items()}
    return [_bare(inner) for inner in value] if isinstance(value, list) else value


def _mixed(name: str) -> str:
    return f"column {name} has values of several types: write its field yourself, for example as {JSON_VALUE}"
