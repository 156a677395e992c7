"""What became of rows."""

from __future__ import annotations

from dataclasses import dataclass

from bulkgrpc.datasets.rows import Integers
from bulkgrpc.rejections import RejectionCode


@dataclass(frozen=True, slots=True)
class RefusedRow:
    """A row that the table does not take: its position in the rows, and why."""

    row: int
    code: RejectionCode
    reason: str


@dataclass(frozen=True, slots=True)
class Written:
    """written: how many rows of each job, by its number; refused: the rows that the table does not take.

    A row that is neither was there already.
    """

    written: Integers
    refused: tuple[RefusedRow, ...] = ()
