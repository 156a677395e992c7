"""Rows of a file that cannot become records: found apart from the others, and sent so that the job rejects them.

Each is sent as a record that no message type accepts (`bulkgrpc.cli.bad_row`). The worker rejects it, MALFORMED_RECORD,
and stores it in the job's report, so that counts, exit codes, `--rejections-max` and atomic jobs treat it as any other
rejection.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from bulkgrpc.cli.bad_row import BadRow
from bulkgrpc.client import Batch
from bulkgrpc.datasets.framing import frame
from bulkgrpc.tabular.errors import InvalidValue

_BATCH_BYTES = 512 * 1024
_BATCH_ROWS = 1000
Numbers = npt.NDArray[np.int64]


def batches(file: str, bad: Sequence[BadRow]) -> Iterator[Batch]:
    """Yield the batches that report bad rows. file: its name."""
    pending: list[bytes] = []
    pending_bytes = 0
    for row in bad:
        pending.append(frame(row.record(file)))
        pending_bytes += len(pending[-1])
        if pending_bytes >= _BATCH_BYTES or len(pending) == _BATCH_ROWS:
            yield Batch(b"".join(pending), len(pending))
            pending, pending_bytes = [], 0
    if pending:
        yield Batch(b"".join(pending), len(pending))


def separated(
    convert: Callable[[pa.Table], pa.RecordBatch], table: pa.Table, numbers: Numbers
) -> tuple[pa.RecordBatch | None, list[BadRow]]:
    """Convert the rows of a table that can be converted. Returns their records, and the other rows in order.

    convert: raises InvalidValue. numbers: of the rows. Cost: a second conversion of the table, and about log2(rows)
    conversions of parts of a column for each bad value; no Python for the other rows.
    """
    found: dict[int, InvalidValue] = {}
    kept = np.arange(len(table))
    while len(kept):
        try:
            records = convert(table.take(kept) if found else table)
            break
        except InvalidValue as invalid:
            for one in invalid.all():
                found.setdefault(int(kept[one.row]), one)
            kept = np.delete(np.arange(len(table)), list(found))
    else:
        records = None
    rows = sorted(found.items())
    return records, [
        BadRow(int(numbers[row]), one.column, f"column {one.column}: {one.reason}", row_text(table, row))
        for row, one in rows
    ]


def row_text(table: pa.Table, row: int) -> str:
    """Return a row as a JSON object of its values, as text."""
    return json.dumps({name: _value(table.column(name), row) for name in table.column_names}, ensure_ascii=False)


def _value(column: pa.ChunkedArray, row: int) -> object:
    try:
        value = column[row].as_py()
    except (ValueError, ImportError, OverflowError):
        # Python has no nanoseconds and no year 10,000.
        value = str(column.slice(row, 1).cast(pa.string())[0].as_py())
    return value if value is None or isinstance(value, str | bool) else str(value)
