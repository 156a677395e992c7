"""Reads Parquet and Arrow files in blocks, with the types that the file has."""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet

from bulkgrpc.cli.files.errors import FileError, one_line
from bulkgrpc.cli.files.sources import Block, Source

BLOCK_ROWS = 20_000


def read_parquet(source: Source) -> Iterator[Block]:
    """Yield the blocks of a Parquet file. Raises FileError if it cannot be read or a page's checksum is wrong."""
    try:
        with pyarrow.parquet.ParquetFile(
            source.path,
            page_checksum_verification=True,
            # Nanoseconds, the default, wrap around for the years before 1678 and after 2262.
            coerce_int96_timestamp_unit="us",
        ) as file:
            rows, read = max(1, file.metadata.num_rows), 0
            for batch in file.iter_batches(BLOCK_ROWS):
                read += batch.num_rows
                yield _block(source, batch, source.size_bytes * read // rows)
    except (pa.ArrowException, OSError) as error:
        raise FileError(f"{source.name} cannot be read as Parquet: {one_line(error)}") from error


def read_arrow(source: Source) -> Iterator[Block]:
    """Yield the blocks of an Arrow IPC file or stream. Raises FileError if it cannot be read."""
    try:
        with source.path.open("rb") as content:
            is_file = content.read(6) == b"ARROW1"
        with pa.memory_map(str(source.path)) as file:
            if is_file:
                reader = pyarrow.ipc.open_file(file)
                batches = (reader.get_batch(number) for number in range(reader.num_record_batches))
            else:
                batches = iter(pyarrow.ipc.open_stream(file))
            for batch in batches:
                for start in range(0, batch.num_rows, BLOCK_ROWS):
                    yield _block(source, batch.slice(start, BLOCK_ROWS), file.tell())
    except (pa.ArrowException, OSError) as error:
        raise FileError(f"{source.name} cannot be read as Arrow IPC: {one_line(error)}") from error


def _block(source: Source, batch: pa.RecordBatch, read_bytes: int) -> Block:
    names = batch.schema.names
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise FileError(f"{source.name}: two columns have the name {repeated[0]}: rename one in the file")
    return Block(pa.Table.from_batches([batch]), read_bytes)
