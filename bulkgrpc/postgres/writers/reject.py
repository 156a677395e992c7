"""Conflict policy `reject`: a record whose key is in the table, or came earlier, is rejected; the reason says which."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from bulkgrpc.datasets.rows import Rows
from bulkgrpc.postgres.connection import Connection
from bulkgrpc.postgres.writers import ignore, staging
from bulkgrpc.postgres.writers.written import Written
from bulkgrpc.rejections import Integers, Mask, RejectionBuilder, RejectionCode

KEY_TEXT_CHARS_MAX = 200
"""Of the text of a key's column in a reason."""

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
    chosen_rows = rows.table.filter(pa.array(chosen))
    parts: list[pa.Array | str] = []
    for name in rows.dataset.key:
        parts += [", " if parts else "the key (", f"{name}=", _text(chosen_rows.column(name))]
    return pc.binary_join_element_wise(*parts, ") is already in the table, or came earlier in the job", "")


def _text(values: pa.Array) -> pa.StringArray:
    if pa.types.is_binary(values.type) or pa.types.is_fixed_size_binary(values.type):
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
