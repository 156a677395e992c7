"""Reads one file for one dataset as an iterable of batches.

The n-th batch depends only on the file and the options, so that an interrupted load resumes where it stopped.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from bulkgrpc import limits
from bulkgrpc.cli.files.conversion import Conversion, Rules
from bulkgrpc.cli.files.errors import FileError, InvalidValue
from bulkgrpc.cli.files.json_cells import COLUMN, merged
from bulkgrpc.cli.files.protobuf import read_delimited
from bulkgrpc.cli.files.readers import Block, read_csv, read_jsonl, read_parquet
from bulkgrpc.client import Batch
from bulkgrpc.datasets.codec import BatchCodec, UndecodablePayload
from bulkgrpc.datasets.definition import Dataset

BATCH_BYTES_MAX = limits.BATCH_BYTES_MAX - 64
"""Bytes of a batch's records; the rest is for its sequence."""


class Format(enum.StrEnum):
    """The format of a file."""

    CSV = "csv"
    JSONL = "jsonl"
    PARQUET = "parquet"
    PROTOBUF = "protobuf"


_SUFFIXES = {
    ".csv": Format.CSV,
    ".jsonl": Format.JSONL,
    ".ndjson": Format.JSONL,
    ".parquet": Format.PARQUET,
    ".binpb": Format.PROTOBUF,
    ".pb": Format.PROTOBUF,
}


@dataclass(frozen=True, slots=True)
class FileOptions:
    """How to read a file.

    batch_rows: records of a batch. nulls: texts of a CSV cell that mean null. corrected: the file has corrected
    rejected records; the columns with the reasons are ignored.
    """

    format: Format
    batch_rows: int = 1000
    nulls: tuple[str, ...] = ("", "NA")
    ignore_unknown: bool = False
    corrected: bool = False


def format_of(path: Path) -> Format:
    """Return a file's format by its suffix. Raises FileError for an unknown suffix."""
    try:
        return _SUFFIXES[path.suffix.lower()]
    except KeyError:
        raise FileError(f"{path.name}: the suffix names no known format: use --format {'|'.join(Format)}") from None


class FileBatches:
    """The batches of a file. Iterating reads the file from the beginning, block by block, and raises FileError.

    size_bytes: size of the file. read_bytes, rows: bytes and records up to the last batch that was yielded.
    """

    def __init__(self, path: Path, dataset: Dataset, options: FileOptions) -> None:
        self._path = path
        self._options = options
        self._codec = BatchCodec(dataset)
        rules = Rules(
            nulls=options.nulls if options.format is Format.CSV else (),
            null_is_default=options.format is Format.JSONL,
            ignore_unknown=options.ignore_unknown,
            corrected=options.corrected,
        )
        self._conversion = Conversion(self._codec, rules)
        self.size_bytes = path.stat().st_size
        self.read_bytes = 0
        self.rows = 0

    def __iter__(self) -> Iterator[Batch]:
        self.read_bytes = self.rows = 0
        batches = self._delimited() if self._options.format is Format.PROTOBUF else self._converted()
        for batch, read_bytes in batches:
            self.read_bytes = read_bytes
            self.rows += batch.records
            yield batch

    def _delimited(self) -> Iterator[tuple[Batch, int]]:
        for batch, read_bytes in read_delimited(self._path, self._options.batch_rows, BATCH_BYTES_MAX):
            try:
                self._codec.decode([batch.payload])
            except UndecodablePayload as error:
                message = f"{self._path.name}: rows {self.rows + 1:,} to {self.rows + batch.records:,}"
                message += f" are not all valid messages of {self._codec.dataset.message_type}: {error}"
                raise FileError(message) from error
            yield batch, read_bytes

    def _converted(self) -> Iterator[tuple[Batch, int]]:
        rest = self._conversion.schema.empty_table()
        for block in self._blocks():
            whole = pa.concat_tables([rest, block.table])
            cut = len(whole) - len(whole) % self._options.batch_rows
            rest = whole.slice(cut)
            for batch in self._encoded(whole.slice(0, cut)):
                yield batch, block.read_bytes
        for batch in self._encoded(rest):
            yield batch, self.size_bytes

    def _blocks(self) -> Iterator[Block]:
        """Yield the file's blocks, converted to records of the dataset."""
        rows = 0
        for block in self._raw_blocks():
            try:
                records = self._conversion.records(block.table)
            except InvalidValue as invalid:
                raise invalid.located(self._path, rows) from None
            except FileError as error:
                raise FileError(f"{self._path.name}: {error}") from None
            rows += records.num_rows
            yield Block(pa.Table.from_batches([records]), block.read_bytes)

    def _raw_blocks(self) -> Iterator[Block]:
        match self._options.format:
            case Format.CSV:
                return read_csv(self._path)
            case Format.JSONL:
                return read_jsonl(self._path, self._conversion.leaves)
            case _:
                return read_parquet(self._path)

    def _encoded(self, table: pa.Table) -> Iterator[Batch]:
        if not len(table):
            return
        records = table.combine_chunks().to_batches()[0]
        yield from self._encode(records, self._options.batch_rows)

    def _encode(self, records: pa.RecordBatch, batch_rows: int) -> Iterator[Batch]:
        fields = records.select(self._codec.record_schema.names)
        for position, encoded in enumerate(self._codec.encode(fields, batch_rows)):
            start = position * batch_rows
            rows = min(batch_rows, records.num_rows - start)
            more = records.column(COLUMN).slice(start, rows) if COLUMN in records.schema.names else None
            payload = encoded if more is None else merged(encoded, more)
            if len(payload) <= BATCH_BYTES_MAX:
                yield Batch(payload, rows)
            elif rows > 1:
                # Wide rows: the same halves each time, so that sequences do not change.
                yield from self._encode(records.slice(start, rows), (rows + 1) // 2)
            else:
                message = (
                    f"{self._path.name}: a row has {len(payload):,} bytes; the limit of a batch is {BATCH_BYTES_MAX:,}"
                )
                raise FileError(message)


def open_batches(path: Path, dataset: Dataset, options: FileOptions) -> FileBatches:
    """Open a file for a dataset. Raises FileError if it does not exist or cannot be read."""
    if not path.is_file():
        raise FileError(f"there is no file {path}")
    try:
        return FileBatches(path, dataset, options)
    except OSError as error:
        raise FileError(f"{path} cannot be read: {error.strerror}") from error
