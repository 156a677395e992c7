"""Writes rejected records to a file that can be corrected: the fields as `load` reads them, and the reasons."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Container, Sequence
from datetime import datetime, timedelta
from decimal import Decimal
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from bulkgrpc.cli.bad_row import with_row
from bulkgrpc.cli.files.batches import Format, format_of
from bulkgrpc.cli.files.errors import FileError
from bulkgrpc.client import Dataset, Rejection
from bulkgrpc.datasets.codec import BatchCodec, UndecodablePayload
from bulkgrpc.datasets.framing import frame
from bulkgrpc.tabular.fields import Leaf, leaves_of
from bulkgrpc.tabular.rejection_columns import BYTES_COLUMN, REJECTION_COLUMNS

_ISO = "%Y-%m-%dT%H:%M:%SZ"


class RejectedRecordsFile:
    """A CSV or JSON lines file of rejected records. A context manager: the file appears when it ends without an error.

    Raises FileError if the path's suffix is neither .csv nor .jsonl.
    """

    def __init__(self, path: Path, dataset: Dataset) -> None:
        self._format = format_of(path)
        if self._format not in (Format.CSV, Format.JSONL):
            raise FileError(f"{path.name}: rejected records can be written as .csv or .jsonl")
        self._path = path
        self._part = path.with_name(f"{path.name}.part")
        self._codec = BatchCodec(dataset)
        self._documents = frozenset(leaf.name for leaf in leaves_of(dataset, self._codec.record_schema) if leaf.json)
        self._file: BinaryIO | None = None
        self.rows = 0

    def __enter__(self) -> RejectedRecordsFile:
        self._file = self._part.open("wb")
        self.add([])
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._file is not None  # noqa: S101 — it was entered
        self._file.close()
        if kind is None:
            self._part.replace(self._path)
        else:
            self._part.unlink()

    def add(self, rejections: Sequence[Rejection]) -> None:
        """Append rejections. They must include their records."""
        assert self._file is not None  # noqa: S101 — it was entered
        table = as_table(self._codec, rejections)
        if self._format is Format.JSONL:
            _write_jsonl(table, self._file, self._documents)
        else:
            _write_csv(table, self._file, header=self.rows == 0 and not rejections)
        self.rows += len(rejections)


def as_table(codec: BatchCodec, rejections: Sequence[Rejection]) -> pa.Table:
    """Return rejections as columns: the dataset's fields, REJECTION_COLUMNS, BYTES_COLUMN.

    One native call decodes all records. A record that cannot be decoded has only its bytes, in BYTES_COLUMN.
    """
    rejections = [with_row(rejection) for rejection in rejections]
    records = [rejection.record for rejection in rejections]
    decoded = _decoded(codec, records)
    columns = {}
    for leaf in leaves_of(codec.dataset, codec.record_schema):
        values = _at(decoded, leaf.path)
        columns[leaf.name] = codec.documents.texts(leaf.name, values) if leaf.json else _plain(values, leaf)
    values = (
        pa.array([rejection.sequence for rejection in rejections], pa.int64()),
        pa.array([rejection.record_index for rejection in rejections], pa.int64()),
        *(
            pa.array([getattr(rejection, name) for rejection in rejections], pa.string())
            for name in ("code", "field", "reason")
        ),
    )
    columns |= dict(zip(REJECTION_COLUMNS, values, strict=True))
    malformed = decoded.is_null().to_pylist()
    columns[BYTES_COLUMN] = pa.array(
        [_base64(record) if bad else None for record, bad in zip(records, malformed, strict=True)], pa.string()
    )
    return pa.table(columns)


def _decoded(codec: BatchCodec, records: Sequence[bytes]) -> pa.StructArray:
    """Decode records; null for those that cannot be decoded. One call if all can, otherwise halves."""
    kind = pa.struct(list(codec.record_schema))
    if not records:
        return pa.array([], kind)
    try:
        return codec.decode([b"".join(map(frame, records))]).flatten()
    except UndecodablePayload:
        if len(records) == 1:
            return pa.nulls(1, kind)
    half = len(records) // 2
    return pa.concat_arrays([_decoded(codec, records[:half]), _decoded(codec, records[half:])])


def _at(records: pa.StructArray, path: Sequence[str]) -> pa.Array:
    values: pa.Array = records
    for step in path:
        values = dict(zip((field.name for field in values.type), values.flatten(), strict=True))[step]
    return values


def _plain(values: pa.Array, leaf: Leaf) -> pa.Array:
    """Return values as `load` reads them: times as ISO 8601, bytes as base64, an invalid date unchanged."""
    if pa.types.is_timestamp(values.type):
        return pc.strftime(values, format=_ISO)
    if pa.types.is_list(leaf.type):
        item = _plain_item(leaf.type.value_type, leaf.enum)
        lists = [None if value is None else [item(one) for one in value] for value in values.to_pylist()]
        return pa.array(lists, None if any(lists) else pa.list_(pa.string()))
    numbers = leaf.enum and pa.types.is_integer(leaf.type)
    as_text = numbers or pa.types.is_binary(leaf.type) or pa.types.is_duration(leaf.type)
    if as_text or not values.type.equals(leaf.type):
        item = _plain_item(leaf.type, leaf.enum)
        return pa.array([None if value is None else item(value) for value in values.to_pylist()], pa.string())
    return values


def _plain_item(kind: pa.DataType, enum: Sequence[tuple[int, str]]) -> Callable[[Any], object]:
    if pa.types.is_integer(kind) and enum:
        names = dict(enum)
        return lambda number: names.get(number, str(number))
    found = next((to_text for is_kind, to_text in _TO_TEXT if is_kind(kind)), None)
    return found or (lambda value: value["value"] if isinstance(value, dict) else value)


def _base64(value: bytes) -> str:
    return base64.b64encode(value).decode()


_TO_TEXT: tuple[tuple[Callable[[pa.DataType], bool], Callable[[Any], str]], ...] = (
    (pa.types.is_timestamp, datetime.isoformat),
    (pa.types.is_date, lambda day: f"{day['year']:04}-{day['month']:02}-{day['day']:02}"),
    (pa.types.is_time, lambda at: f"{at['hours']:02}:{at['minutes']:02}:{at['seconds']:02}.{at['nanos'] // 1000:06}"),
    (pa.types.is_duration, lambda duration: f"{Decimal(duration // timedelta(microseconds=1)) / 1_000_000:f}s"),
    (pa.types.is_binary, _base64),
)


def _write_csv(table: pa.Table, file: BinaryIO, *, header: bool) -> None:
    texts = {name: _text(table.column(name).combine_chunks()) for name in table.column_names}
    pyarrow.csv.write_csv(pa.table(texts), file, pyarrow.csv.WriteOptions(include_header=header))


def _text(values: pa.Array) -> pa.Array:
    if pa.types.is_list(values.type):
        return pa.array([None if value is None else json.dumps(value) for value in values.to_pylist()], pa.string())
    return values.cast(pa.string())


def _write_jsonl(table: pa.Table, file: BinaryIO, documents: Container[str]) -> None:
    for row in table.to_pylist():
        document: dict[str, Any] = {}
        for name, value in row.items():
            if value is not None:
                *above, last = name.split(".")
                inner = document
                for step in above:
                    inner = inner.setdefault(step, {})
                inner[last] = json.loads(value) if name in documents else value
        file.write(json.dumps(document, ensure_ascii=False).encode() + b"\n")
