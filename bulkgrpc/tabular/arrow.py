"""Encodes a stream of Arrow columns as batches of a dataset. Memory does not grow with the stream."""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa

from bulkgrpc.datasets.codec import BatchCodec
from bulkgrpc.datasets.definition import Dataset
from bulkgrpc.tabular.batching import BATCH_BYTES_MAX, RecordBatcher
from bulkgrpc.tabular.conversion import Conversion
from bulkgrpc.tabular.errors import InvalidValue, NotRecords
from bulkgrpc.tabular.rules import Rules

BLOCK_ROWS = 65_536
"""Rows that are converted at once: this bounds memory."""
BLOCK_ROWS_MIN = 8_192
"""Smaller pieces of a stream are converted together: each conversion costs about 1 ms."""


def encoded(table: object, dataset: Dataset, batch_rows: int, rules: Rules) -> Iterator[tuple[bytes, int]]:
    """Yield the batches of a table: payload, and number of records. No Python per record.

    table: an object with `__arrow_c_stream__`. dataset: with descriptors. Raises NotRecords, and whatever the stream
    raises.
    """
    codec = BatchCodec(dataset)
    conversion = Conversion(codec, rules)
    batcher = RecordBatcher(codec, conversion.schema, batch_rows, BATCH_BYTES_MAX)
    rows = 0
    for block in _blocks(table):
        try:
            records = conversion.records(block)
        except InvalidValue as invalid:
            raise invalid.located(rows) from None
        rows += block.num_rows
        yield from batcher.add(pa.Table.from_batches([records]))
    yield from batcher.rest()


def _blocks(table: object) -> Iterator[pa.Table]:
    """Yield the rows in blocks; an empty one if there are none, so that the columns are checked."""
    try:
        reader = pa.RecordBatchReader.from_stream(table)
    except (TypeError, pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise NotRecords(f"a {type(table).__name__} cannot be read as rows of named columns: {error}") from error
    names = reader.schema.names
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise NotRecords(f"two columns have the name {twice[0]}: rename one")
    yield reader.schema.empty_table()
    pending: list[pa.RecordBatch] = []
    rows = 0
    for batch in reader:
        for start in range(0, batch.num_rows, BLOCK_ROWS):
            pending.append(batch.slice(start, BLOCK_ROWS))
            rows += pending[-1].num_rows
            if rows >= BLOCK_ROWS_MIN:
                yield pa.Table.from_batches(pending)
                pending, rows = [], 0
    if pending:
        yield pa.Table.from_batches(pending)
