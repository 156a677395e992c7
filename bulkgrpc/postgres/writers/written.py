"""What a writer did with rows, and the type of writers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from bulkgrpc.datasets.rows import Rows
from bulkgrpc.postgres.connection import Connection
from bulkgrpc.rejections import Integers, RejectedRows


@dataclass(frozen=True, slots=True)
class Written:
    """written: how many rows of each job, by the job's number; rejected: positions in the rows, and why.

    A row that is neither has a key, or bytes, that the table has.
    """

    written: Integers
    rejected: RejectedRows = field(default_factory=RejectedRows.none)


Writer = Callable[[Connection, Rows, Integers], Written]
"""Writes rows in the caller's transaction. The third argument is the number of each row's job."""
