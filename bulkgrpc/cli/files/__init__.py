"""Files as batches: CSV, JSON lines, Parquet and delimited Protobuf, read in blocks, converted and encoded natively."""

from bulkgrpc.cli.files.opening import FileBatches, FileOptions, Format, format_of, open_batches
from bulkgrpc.cli.files.problems import FileProblem

__all__ = ["FileBatches", "FileOptions", "FileProblem", "Format", "format_of", "open_batches"]
