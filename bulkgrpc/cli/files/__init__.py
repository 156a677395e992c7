"""Reads CSV, JSON lines, Parquet and delimited Protobuf files as batches: in blocks, converted by native code."""

from bulkgrpc.cli.files.batches import FileBatches, FileOptions, Format, format_of, open_batches
from bulkgrpc.cli.files.errors import FileError

__all__ = ["FileBatches", "FileError", "FileOptions", "Format", "format_of", "open_batches"]
