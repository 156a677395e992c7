"""Reads one file for one dataset as an iterable of batches.

The n-th batch depends only on the file and the options, so that an interrupted load resumes where it stopped.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pyarrow as pa

from bulkgrpc.cli.bad_row import BadRow
from bulkgrpc.cli.files import bad_rows
from bulkgrpc.cli.files.bad_rows import Numbers, separated
from bulkgrpc.cli.files.csv_reader import CsvFile, Dialect
from bulkgrpc.cli.files.errors import FileError
from bulkgrpc.cli.files.json_arrays import as_lines
from bulkgrpc.cli.files.json_reader import JsonLines
from bulkgrpc.cli.files.parquet_reader import read_arrow, read_parquet
from bulkgrpc.cli.files.protobuf import read_delimited
from bulkgrpc.cli.files.sources import COMPRESSIONS, Block, Source, check_text, open_source
from bulkgrpc.client import Batch
from bulkgrpc.datasets.codec import BatchCodec, UndecodablePayload
from bulkgrpc.datasets.decoding import Payload, decode
from bulkgrpc.datasets.definition import Dataset
from bulkgrpc.tabular.batching import BATCH_BYTES_MAX, RecordBatcher
from bulkgrpc.tabular.conversion import Conversion
from bulkgrpc.tabular.errors import InvalidValue, NotRecords
from bulkgrpc.tabular.rules import Rules

BAD_ROWS_KEPT = 20
"""Bad rows that are kept to be shown."""


class Format(enum.StrEnum):
    """The format of a file."""

    CSV = "csv"
    JSONL = "jsonl"
    PARQUET = "parquet"
    ARROW = "arrow"
    PROTOBUF = "protobuf"


_SUFFIXES = {
    ".csv": Format.CSV,
    ".tsv": Format.CSV,
    ".tab": Format.CSV,
    ".json": Format.JSONL,
    ".jsonl": Format.JSONL,
    ".ndjson": Format.JSONL,
    ".parquet": Format.PARQUET,
    ".arrow": Format.ARROW,
    ".arrows": Format.ARROW,
    ".feather": Format.ARROW,
    ".binpb": Format.PROTOBUF,
    ".pb": Format.PROTOBUF,
}


@dataclass(frozen=True, slots=True)
class FileOptions:
    """How to read a file.

    batch_rows: records of a batch. dialect: of a CSV file. encoding: of text. rules: how values and columns become
    fields. reject_bad_rows: whether a row that cannot be a record is a rejection of the job, and no error.
    """

    format: Format
    batch_rows: int = 1000
    dialect: Dialect = field(default_factory=Dialect)
    encoding: str = "utf-8"
    rules: Rules = field(default_factory=Rules)
    reject_bad_rows: bool = False


_CONVERTED = {
    ".avro": "duckdb -c \"INSTALL avro; COPY (FROM 'FILE.avro') TO 'FILE.parquet'\"",
    ".orc": "`pyarrow.orc.read_table` and `pyarrow.parquet.write_table`",
    ".xlsx": 'the spreadsheet\'s own export as "CSV UTF-8"',
    ".xls": 'the spreadsheet\'s own export as "CSV UTF-8"',
    ".ods": "the spreadsheet's own export as CSV in UTF-8",
    ".zip": "`unzip -p FILE.zip | bulkgrpc load - --format csv`",
    ".tar": "`tar -xOf FILE.tar | bulkgrpc load - --format csv`, if it has one file",
    ".xml": "a program of your own, to CSV, JSON lines or Parquet",
}
"""Suffixes of formats that are not read, and what converts them."""


def format_of(path: Path) -> Format:
    """Return a file's format by its suffix, before that of a compression. Raises FileError for an unknown suffix."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in COMPRESSIONS:
        del suffixes[-1]
    if suffixes and suffixes[-1] in _SUFFIXES:
        return _SUFFIXES[suffixes[-1]]
    if suffixes and suffixes[-1] in _CONVERTED:
        raise FileError(f"{path.name}: {suffixes[-1]} files are not read: convert it with {_CONVERTED[suffixes[-1]]}")
    raise FileError(f"{path.name}: the suffix names no known format: use --format {'|'.join(Format)}")


class FileBatches:
    """The batches of a file. Iterating reads the file from the beginning, block by block, and raises FileError.

    size_bytes: size of the file. read_bytes, rows: bytes and records up to the last batch that was yielded. bad_rows:
    rows among them that cannot be records, and are rejections. bad: the first BAD_ROWS_KEPT of them.
    """

    def __init__(self, source: Source, dataset: Dataset, options: FileOptions) -> None:
        self._source = source
        self._options = options
        self._codec = BatchCodec(dataset)
        # The reader of JSON renames by itself, record by record.
        rules = replace(options.rules, renames={}) if options.format is Format.JSONL else options.rules
        self._conversion = Conversion(self._codec, rules, cells=options.format is Format.CSV)
        self.size_bytes = source.size_bytes
        self.read_bytes = self.rows = self.bad_rows = 0
        self.bad: list[BadRow] = []

    def __iter__(self) -> Iterator[Batch]:
        self.read_bytes = self.rows = self.bad_rows = 0
        self.bad = []
        batches = self._delimited() if self._options.format is Format.PROTOBUF else self._converted()
        for batch, read_bytes in batches:
            self.read_bytes = read_bytes
            self.rows += batch.records
            yield batch

    def _delimited(self) -> Iterator[tuple[Batch, int]]:
        for batch, read_bytes in read_delimited(self._source, self._options.batch_rows, BATCH_BYTES_MAX):
            try:
                self._codec.decode([batch.payload])
            except UndecodablePayload as error:
                if self._options.reject_bad_rows:
                    self._note_rejections(batch)
                    yield batch, read_bytes
                    continue
                message = f"{self._source.name}: rows {self.rows + 1:,} to {self.rows + batch.records:,}"
                message += f" are not all valid messages of {self._codec.dataset.message_type}: {error}"
                raise FileError(message) from error
            yield batch, read_bytes

    def _note_rejections(self, batch: Batch) -> None:
        """Count the records that are no messages: the job will reject them as they are."""
        found = decode(self._codec, [Payload("", batch.records, batch.payload)]).rejections
        self.bad_rows += len(found.record_index)
        kept = zip(found.record_index.tolist(), found.causes.column("reason").to_pylist(), strict=True)
        rows = [BadRow(self.rows + index + 1, "", reason, "") for index, reason in kept]
        self.bad += rows[: BAD_ROWS_KEPT - len(self.bad)]

    def _converted(self) -> Iterator[tuple[Batch, int]]:
        batcher = RecordBatcher(self._codec, self._conversion.schema, self._options.batch_rows, BATCH_BYTES_MAX)
        for block in self._blocks():
            with self._named():
                for payload, records in batcher.add(block.table):
                    yield Batch(payload, records), block.read_bytes
            for batch in self._reported(block.bad):
                yield batch, block.read_bytes
        with self._named():
            for payload, records in batcher.rest():
                yield Batch(payload, records), self.size_bytes

    def _blocks(self) -> Iterator[Block]:
        """Yield the file's blocks, converted to records of the dataset."""
        rows = 0
        for block in self._raw_blocks():
            numbers = np.arange(rows + 1, rows + 1 + len(block.table)) if block.numbers is None else block.numbers
            with self._named():
                records, bad = self._records(block.table, numbers)
            rows += len(block.table) + len(block.bad)
            table = self._conversion.schema.empty_table() if records is None else pa.Table.from_batches([records])
            yield Block(table, block.read_bytes, bad=[*block.bad, *bad])

    def _records(self, table: pa.Table, numbers: Numbers) -> tuple[pa.RecordBatch | None, list[BadRow]]:
        if self._options.reject_bad_rows:
            return separated(self._conversion.records, table, numbers)
        try:
            return self._conversion.records(table), []
        except InvalidValue as invalid:
            raise invalid.numbered(int(numbers[invalid.row])) from None

    def _reported(self, bad: Sequence[BadRow]) -> Iterator[Batch]:
        self.bad += bad[: BAD_ROWS_KEPT - len(self.bad)]
        for batch in bad_rows.batches(self._source.name, bad):
            self.bad_rows += batch.records
            yield batch

    def _raw_blocks(self) -> Iterator[Block]:
        reject = self._options.reject_bad_rows
        match self._options.format:
            case Format.CSV:
                file = CsvFile(self._source, self._options.dialect, reject=reject)
                with self._named():
                    verbatim = self._conversion.verbatim(file.names)
                return file.blocks(verbatim)
            case Format.JSONL:
                return JsonLines(self._source, self._conversion.leaves, self._options.rules, reject=reject).blocks()
            case Format.ARROW:
                return read_arrow(self._source)
            case _:
                return read_parquet(self._source)

    @contextmanager
    def _named(self) -> Iterator[None]:
        """Put the file's name before an error."""
        try:
            yield
        except NotRecords as error:
            raise FileError(f"{self._source.name}: {error}") from None


def open_batches(path: Path, dataset: Dataset, options: FileOptions) -> FileBatches:
    """Open a file for a dataset. path: `-` for standard input. Raises FileError if it cannot be read."""
    return FileBatches(source_of(path, options), dataset, options)


def source_of(path: Path, options: FileOptions) -> Source:
    """Open the bytes of a file in the encoding and form that its reader needs. Raises FileError."""
    text = options.format in {Format.CSV, Format.JSONL}
    source = open_source(path, options.encoding if text else "utf-8")
    if options.format is not Format.JSONL:
        return source
    check_text(source)
    return as_lines(source)
