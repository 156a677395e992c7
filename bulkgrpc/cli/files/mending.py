"""Rejected records as a file that a person can mend: the fields as `load` reads them, and why each was rejected."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from bulkgrpc.cli.files.opening import Format, format_of
from bulkgrpc.cli.files.problems import FileProblem
from bulkgrpc.cli.files.remarks import BYTES_COLUMN, REMARKS
from bulkgrpc.client import Dataset, Rejection
from bulkgrpc.client.packing import frame
from bulkgrpc.datasets.codec import BatchCodec, UndecodablePayload

_ISO = "%Y-%m-%dT%H:%M:%SZ"


class MendingFile:
    """A CSV or JSON lines file of rejected records. A context manager: the file is there once it was left in peace.

    Raises FileProblem if the path's suffix names neither format.
    """

    def __init__(self, path: Path, dataset: Dataset) -> None:
        self._write = {Format.CSV: _write_csv, Format.JSONL: _write_jsonl}.get(format_of(path))
        if self._write is None:
            raise FileProblem(f"{path.name}: rejections are written as .csv or .jsonl")
        self._path = path
        self._part = path.with_name(f"{path.name}.part")
        self._codec = BatchCodec(dataset)
        self._file: BinaryIO | None = None
        self.rows = 0

    def __enter__(self) -> MendingFile:
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
        """Add rejections, which must have their records."""
        assert self._file is not None  # noqa: S101 — it was entered
        assert self._write is not None  # noqa: S101 — __init__ saw to it
        self._write(as_table(self._codec, rejections), self._file, header=self.rows == 0 and not rejections)
        self.rows += len(rejections)


def as_table(codec: BatchCodec, rejections: Sequence[Rejection]) -> pa.Table:
    """Return rejections as columns: the dataset's fields as a file has them, REMARKS, BYTES_COLUMN.

    Records are decoded a native call for all of them; those that are no messages have no fields but BYTES_COLUMN.
    """
    records = [rejection.record for rejection in rejections]
    decoded = _decoded(codec, records)
    columns = {name: _plain(values) for name, values in _leaves(decoded, "")}
    values = (
        pa.array([rejection.sequence for rejection in rejections], pa.int64()),
        pa.array([rejection.record_index for rejection in rejections], pa.int64()),
        *(
            pa.array([getattr(rejection, name) for rejection in rejections], pa.string())
            for name in ("code", "field", "reason")
        ),
    )
    columns |= dict(zip(REMARKS, values, strict=True))
    malformed = decoded.is_null().to_pylist()
    columns[BYTES_COLUMN] = pa.array(
        [_base64(record) if bad else None for record, bad in zip(records, malformed, strict=True)], pa.string()
    )
    return pa.table(columns)


def _decoded(codec: BatchCodec, records: Sequence[bytes]) -> pa.StructArray:
    """Decode records; null where one is no message. One call if all are, else halves."""
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


def _leaves(records: pa.StructArray, above: str) -> Iterator[tuple[str, pa.Array]]:
    for field, values in zip(records.type, records.flatten(), strict=True):
        if pa.types.is_struct(field.type):
            yield from _leaves(values, f"{above}{field.name}.")
        else:
            yield f"{above}{field.name}", values


def _plain(values: pa.Array) -> pa.Array:
    """Return values as `load` reads them: times as ISO 8601, bytes as base64."""
    if pa.types.is_timestamp(values.type):
        return pc.strftime(values, format=_ISO)
    if pa.types.is_binary(values.type):
        return pa.array([None if value is None else _base64(value) for value in values.to_pylist()], pa.string())
    if pa.types.is_list(values.type):
        item = _plain_item(values.type.value_type)
        lists = [None if value is None else [item(one) for one in value] for value in values.to_pylist()]
        return pa.array(lists, None if any(lists) else values.type)
    return values


def _plain_item(kind: pa.DataType) -> Callable[[Any], object]:
    if pa.types.is_timestamp(kind):
        return datetime.isoformat
    return _base64 if pa.types.is_binary(kind) else lambda value: value


def _base64(value: bytes) -> str:
    return base64.b64encode(value).decode()


def _write_csv(table: pa.Table, file: BinaryIO, *, header: bool) -> None:
    texts = {name: _text(table.column(name).combine_chunks()) for name in table.column_names}
    pyarrow.csv.write_csv(pa.table(texts), file, pyarrow.csv.WriteOptions(include_header=header))


def _text(values: pa.Array) -> pa.Array:
    if pa.types.is_list(values.type):
        return pa.array([None if value is None else json.dumps(value) for value in values.to_pylist()], pa.string())
    return values.cast(pa.string())


def _write_jsonl(table: pa.Table, file: BinaryIO, *, header: bool) -> None:
    for row in table.to_pylist():
        document: dict[str, Any] = {}
        for name, value in row.items():
            if value is not None:
                *above, last = name.split(".")
                inner = document
                for step in above:
                    inner = inner.setdefault(step, {})
                inner[last] = value
        file.write(json.dumps(document, ensure_ascii=False).encode() + b"\n")
