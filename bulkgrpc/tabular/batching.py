"""Encodes records as batches of a fixed number of rows, however the records arrive. Pure."""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa

from bulkgrpc import limits
from bulkgrpc.datasets.codec import BatchCodec
from bulkgrpc.tabular.errors import NotRecords
from bulkgrpc.tabular.json_cells import COLUMN, merged

BATCH_BYTES_MAX = limits.BATCH_BYTES_MAX - 64
"""Bytes of a batch's records; the rest is for its sequence."""


class RecordBatcher:
    """Cuts records into batches: the n-th one depends only on the records, not on how they are added.

    schema: of the records (`Conversion.schema`). rows: of a batch; fewer in the last one, and where rows are wide.
    bytes_max: of a batch.
    """

    def __init__(self, codec: BatchCodec, schema: pa.Schema, rows: int, bytes_max: int) -> None:
        self._codec, self._rows, self._bytes_max = codec, rows, bytes_max
        self._rest = schema.empty_table()

    def add(self, records: pa.Table) -> Iterator[tuple[bytes, int]]:
        """Yield the batches that the records complete: payload, and number of records. Raises NotRecords."""
        whole = pa.concat_tables([self._rest, records])
        cut = len(whole) - len(whole) % self._rows
        self._rest = whole.slice(cut)
        yield from self._encoded(whole.slice(0, cut))

    def rest(self) -> Iterator[tuple[bytes, int]]:
        """Yield the batch of the records that are left, if there are any. Raises NotRecords."""
        rest, self._rest = self._rest, self._rest.slice(0, 0)
        yield from self._encoded(rest)

    def _encoded(self, table: pa.Table) -> Iterator[tuple[bytes, int]]:
        if len(table):
            yield from self._encode(table.combine_chunks().to_batches()[0], self._rows)

    def _encode(self, records: pa.RecordBatch, batch_rows: int) -> Iterator[tuple[bytes, int]]:
        fields = records.select(self._codec.record_schema.names)
        for position, encoded in enumerate(self._codec.encode(fields, batch_rows)):
            start = position * batch_rows
            rows = min(batch_rows, records.num_rows - start)
            more = records.column(COLUMN).slice(start, rows) if COLUMN in records.schema.names else None
            payload = encoded if more is None else merged(encoded, more)
            if len(payload) <= self._bytes_max:
                yield payload, rows
            elif rows > 1:
                # Wide rows: the same halves each time, so that sequences do not change.
                yield from self._encode(records.slice(start, rows), (rows + 1) // 2)
            else:
                raise NotRecords(f"a row has {len(payload):,} bytes; the limit of a batch is {self._bytes_max:,}")
