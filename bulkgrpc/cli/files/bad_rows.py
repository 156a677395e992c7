"""Rows of a file that cannot become records: found apart from the others, and sent so that the job rejects them.

Such a row is sent as a record that no message type accepts: a byte that no Protobuf message starts with, then JSON with
the row's file, number, reason and text. The worker rejects it as MALFORMED_RECORD and stores it in the job's report, so
that counts, exit codes, `--rejections-max` and atomic jobs treat it as any other rejection.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from bulkgrpc.client import Batch
from bulkgrpc.datasets.framing import frame
from bulkgrpc.tabular.errors import InvalidValue

MARK = b"\x07"
"""A tag with field number 0 and wire type 7: Protobuf has neither."""
TEXT_CHARS_MAX = 2000
"""Characters that are kept of a row's text, and of a reason."""
_BATCH_BYTES = 512 * 1024
_BATCH_ROWS = 1000
Numbers = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that cannot be a record. row: number, 1 for the first record. column: "" for the whole row."""

    row: int
    column: str
    reason: str
    text: str

    def record(self, file: str) -> bytes:
        """Return the record that the service rejects in place of the row."""
        document = {"file": file, **asdict(self)}
        document |= {"text": self.text[:TEXT_CHARS_MAX], "reason": self.reason[:TEXT_CHARS_MAX]}
        # A character that UTF-8 does not have is written as an escape.
        return MARK + json.dumps(document).encode()


def described(record: bytes) -> tuple[str, str] | None:
    """Return column and reason of a bad row, from the record that was rejected; None for any other record."""
    if not record.startswith(MARK):
        return None
    try:
        found = json.loads(record[len(MARK) :])
        return found["column"], f"{found['file']}: row {found['row']:,}: {found['reason']}: {found['text']}"
    except (ValueError, TypeError, KeyError):
        return None


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
