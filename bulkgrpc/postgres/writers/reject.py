"""Conflict policy `reject`: a record whose key is in the table, or came earlier, is rejected; the reason says which."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from bulkgrpc.datasets.definition import Dataset
from bulkgrpc.datasets.rows import Rows
from bulkgrpc.postgres.connection import Connection
from bulkgrpc.postgres.writers import ignore, staging
from bulkgrpc.postgres.writers.written import Written
from bulkgrpc.rejections import CAUSES, Integers, Mask, RejectedRows, RejectionBuilder, RejectionCode

KEY_TEXT_CHARS_MAX = 200
"""Of the text of a key's column in a reason."""

_UUID_BYTES = 16
_UUID_SPANS = ((0, 8), (8, 12), (12, 16), (16, 20), (20, 32))
"""The digits between the hyphens of a UUID."""
_HEX = np.frombuffer("".join(f"{number:02x}" for number in range(256)).encode(), "V2")


def write(connection: Connection, rows: Rows, job: Integers) -> Written:
    """Write the rows whose keys are new; of equal keys the first."""
    written = ignore.insert(connection, rows, staging.first_of_equal_keys(rows))
    rejected = RejectionBuilder(len(written))
    if not written.all():
        rejected.add(~written, RejectionCode.DUPLICATE_KEY, "", reasons(rows, ~written))
    counts = np.bincount(job[written], minlength=int(job.max(initial=0)) + 1).astype(np.int32)
    return Written(counts, rejected.build())


def reasons(rows: Rows, chosen: Mask) -> pa.StringArray:
    """Return the reasons of the chosen rows, which name their keys. No Python per row."""
    return _reasons(rows.dataset, rows.table.filter(pa.array(chosen)))


def as_sent(rows: Rows, rejected: RejectedRows) -> RejectedRows:
    """Return rejections of converted rows whose reasons show keys as they were sent. rows: before the conversion.

    What PostgreSQL made of a text, such as an address, is bytes that no person can read.
    """
    if not len(rejected) or rows.dataset.conflict_policy != "reject":
        return rejected
    repeated = pc.equal(rejected.causes.column("code"), RejectionCode.DUPLICATE_KEY.value)
    texts = _reasons(rows.dataset, rows.table.take(pa.array(rejected.row)))
    position = rejected.causes.schema.get_field_index("reason")
    reasons = pc.if_else(repeated, texts, rejected.causes.column(position))
    return RejectedRows(rejected.row, rejected.causes.set_column(position, CAUSES.field(position), reasons))


def _reasons(dataset: Dataset, table: pa.RecordBatch) -> pa.StringArray:
    parts: list[pa.Array | str] = []
    for name in dataset.key:
        parts += [", " if parts else "the key (", f"{name}=", _text(table.column(name))]
    return pc.binary_join_element_wise(*parts, ") is already in the table, or came earlier in the job", "")


def _text(values: pa.Array) -> pa.StringArray:
    if pa.types.is_fixed_size_binary(values.type) and values.type.byte_width == _UUID_BYTES:
        digits = _hex(values.cast(pa.binary()))
        values = pc.binary_join_element_wise(*(pc.utf8_slice_codeunits(digits, *span) for span in _UUID_SPANS), "-")
    elif pa.types.is_binary(values.type) or pa.types.is_fixed_size_binary(values.type):
        values = _hex(values.cast(pa.binary()))
    return pc.utf8_slice_codeunits(values.cast(pa.string()), 0, KEY_TEXT_CHARS_MAX)


def _hex(values: pa.BinaryArray) -> pa.StringArray:
    """Return the hexadecimal digits of values, none of which is null."""
    values = pa.concat_arrays([values])
    offsets = np.frombuffer(values.buffers()[1], np.int32, len(values) + 1, values.offset * 4)
    data = np.frombuffer(values.buffers()[2] or b"", np.uint8)[offsets[0] : offsets[-1]]
    digits = _HEX[data].tobytes()
    moved = pa.py_buffer(((offsets - offsets[0]) * 2).astype(np.int32))
    return pa.StringArray.from_buffers(len(values), moved, pa.py_buffer(digits))
