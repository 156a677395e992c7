"""What a writer did with rows, and the type of writers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from bulkgrpc.datasets.rows import Rows
from bulkgrpc.postgres.connection import Connection
from bulkgrpc.rejections import Integers, RejectedRows


@dataclass(frozen=True, slots=True)
class Written:
    """written: how many rows of each job, by the job's number; rejected: positions in the rows, and why.

    skipped: how many rows of each job a trigger skipped; may be shorter than `written`. A row that is none of these has
    a key, or bytes, that the table has.
    """

    written: Integers
    rejected: RejectedRows = field(default_factory=RejectedRows.none)
    skipped: Integers = field(default_factory=lambda: np.zeros(0, np.int32))


Writer = Callable[[Connection, Rows, Integers], Written]
"""Writes rows in the caller's transaction. The third argument is the number of each row's job."""
