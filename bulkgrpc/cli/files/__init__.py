"""Reads CSV, JSON lines, Parquet, Arrow and delimited Protobuf files as batches: in blocks, by native code."""

from bulkgrpc.cli.files.batches import FileBatches, FileOptions, Format, format_of, open_batches
from bulkgrpc.cli.files.csv_reader import Dialect
from bulkgrpc.cli.files.errors import FileError
from bulkgrpc.tabular.rules import Rules, TextForms

__all__ = [
    "Dialect",
    "FileBatches",
    "FileError",
    "FileOptions",
    "Format",
    "Rules",
    "TextForms",
    "format_of",
    "open_batches",
]
