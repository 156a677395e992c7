"""Conflict policy `reject`: a record whose key is there, or came before, is a rejection that names it."""

from __future__ import annotations

import numpy as np

from bulkgrpc.datasets.rows import Integers, Rows
from bulkgrpc.postgres.writers import ignore, staging
from bulkgrpc.postgres.writers.copy import Connection
from bulkgrpc.postgres.writers.written import RefusedRow, Written
from bulkgrpc.rejections import RejectionCode


def write(connection: Connection, rows: Rows, owner: Integers) -> Written:
    """Write the rows whose keys are new; of equal keys the first."""
    written = ignore.insert(connection, rows, staging.first_of_equal_keys(rows))
    refused = [
        RefusedRow(row, RejectionCode.DUPLICATE_KEY, _names(rows, row)) for row in np.flatnonzero(~written).tolist()
    ]
    counts = np.bincount(owner[written], minlength=int(owner.max(initial=0)) + 1).astype(np.int32)
    return Written(counts, tuple(refused))


def _names(rows: Rows, row: int) -> str:
    key = ", ".join(f"{name}={rows.table.column(name)[row].as_py()}" for name in rows.dataset.key)
    return f"the key ({key}) is already in the table, or came earlier in the job"
