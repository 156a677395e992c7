"""Rejected records: the codes, and columns of code, field, reason and position. No Python object per record.

A record is rejected where its fault is found. While records are rows of a table, a rejection's position is a row
(`RejectedRows`); outside, it is the number of a payload and the record's index in it (`Rejections`). The records' bytes
are attached in one place, `bulkgrpc.consume.report`.
"""

from __future__ import annotations

import enum
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

Integers = npt.NDArray[np.int32]
Mask = npt.NDArray[np.bool_]


class RejectionCode(enum.StrEnum):
    """Why a record was rejected: `bulk.rejections.code`. Stable; clients may branch on it."""

    MALFORMED_RECORD = "MALFORMED_RECORD"
    """The bytes are no valid message of the dataset's type."""
    NULL_IN_KEY = "NULL_IN_KEY"
    """A key field is not set."""
    NUL_IN_TEXT = "NUL_IN_TEXT"
    """A text has the character U+0000, which PostgreSQL cannot store."""
    OUT_OF_RANGE = "OUT_OF_RANGE"
    """A value is outside its column's range."""
    INVALID_VALUE = "INVALID_VALUE"
    """A value does not fit its column's type, for instance a text that is no UUID."""
    NULL_VALUE = "NULL_VALUE"
    """A field that must be set (`not_null`) is not."""
    RULE_VIOLATION = "RULE_VIOLATION"
    """The record breaks a protovalidate rule of the message."""
    RULE_FAILED = "RULE_FAILED"
    """A protovalidate rule cannot be evaluated for the record, for instance because it divides by zero. The
    reason names the rule by its ID."""
    REJECTED_BY_TABLE = "REJECTED_BY_TABLE"
    """PostgreSQL rejects the row: a constraint, a trigger, a value."""
    DUPLICATE_KEY = "DUPLICATE_KEY"
    """The key is in the table, or came earlier, and the dataset's conflict policy is `reject`."""
    BATCH_CONFLICT = "BATCH_CONFLICT"
    """Another batch with the same sequence was applied before, and the two differ."""
    VERSION_CONFLICT = "VERSION_CONFLICT"
    """The batch is of another version of the dataset than the one that its atomic job was opened with."""
    DATASET_DELETED = "DATASET_DELETED"
    """The dataset was deleted before the batch was applied."""
    JOB_DISCARDED = "JOB_DISCARDED"
    """An operator discarded the job, which had a message that could not be applied."""
    AFTER_SEAL = "AFTER_SEAL"
    """The batch arrived after its lane's seal. Of late batches (`bulk.late_batches`); no longer of rejections."""


@dataclass(frozen=True, slots=True)
class Rejection:
    """One line of a job's rejection report: the position in the job, why, and the record's bytes."""

    job_id: uuid.UUID
    sequence: int
    record_index: int
    code: RejectionCode
    field: str
    reason: str
    record: bytes


CAUSES = pa.schema([("code", pa.string()), ("field", pa.string()), ("reason", pa.string())])
"""Columns of causes. field: path of the field at fault, empty for the whole record; reason: for people."""


def causes(count: int, code: RejectionCode, field: str, reason: str | pa.StringArray) -> pa.RecordBatch:
    """Return `count` causes that differ in nothing, or in their reasons only (then an array of that length)."""
    if isinstance(reason, str):
        reason = _repeated(reason, count)
    return pa.record_batch([_repeated(code.value, count), _repeated(field, count), reason], schema=CAUSES)


@dataclass(frozen=True, slots=True)
class RejectedRows:
    """Rejected rows. row: positions in a table, ascending, each once; causes: of the same length."""

    row: Integers
    causes: pa.RecordBatch

    @classmethod
    def none(cls) -> RejectedRows:
        """Return no rows."""
        return cls(np.empty(0, np.int32), _NO_CAUSES)

    @classmethod
    def concat(cls, parts: Sequence[RejectedRows]) -> RejectedRows:
        """Return the rows of all parts, each of which continues where the one before ends."""
        if len(parts) < 2:
            return parts[0] if parts else cls.none()
        row = np.concatenate([part.row for part in parts])
        return cls(row, pa.concat_batches([part.causes for part in parts]))

    def __len__(self) -> int:
        return len(self.row)

    def mask(self, rows: int) -> Mask:
        """Return which rows of a table of `rows` rows are rejected."""
        found = np.zeros(rows, np.bool_)
        found[self.row] = True
        return found

    def without(self, rows: Mask) -> RejectedRows:
        """Return those that are not in `rows`."""
        kept = ~rows[self.row]
        return self if kept.all() else RejectedRows(self.row[kept], self.causes.filter(pa.array(kept)))

    def moved(self, positions: npt.NDArray[np.integer[Any]]) -> RejectedRows:
        """Return the same rows by their positions in a larger table. positions: of this table's rows, ascending."""
        return RejectedRows(positions[self.row].astype(np.int32), self.causes)

    def at_positions(self, order: Integers) -> RejectedRows:
        """Return the same rows by their positions in a table in another order. order: those of this table's rows."""
        positions = order[self.row]
        ascending = np.argsort(positions, kind="stable")
        return RejectedRows(positions[ascending].astype(np.int32), self.causes.take(pa.array(ascending)))

    def copied(self, rows: Integers, like: Integers) -> RejectedRows:
        """Return `rows`, each rejected for the cause of the row `like` it, which is one of these."""
        return RejectedRows(rows, self.causes.take(pa.array(np.searchsorted(self.row, like))))

    def at(self, payload: Integers, record_index: Integers) -> Rejections:
        """Return the same rejections by payload and index. payload, record_index: of every row of the table."""
        return Rejections(payload[self.row], record_index[self.row], self.causes)


@dataclass(frozen=True, slots=True)
class Rejections:
    """Rejected records, three columns of the same length. payload: number of the record's payload."""

    payload: Integers
    record_index: Integers
    causes: pa.RecordBatch

    @classmethod
    def none(cls) -> Rejections:
        """Return no records."""
        return cls(np.empty(0, np.int32), np.empty(0, np.int32), _NO_CAUSES)

    @classmethod
    def of_payload(cls, payload: int, records: int, code: RejectionCode, reason: str) -> Rejections:
        """Return all `records` of a payload, rejected for one reason."""
        index = np.arange(records, dtype=np.int32)
        return cls(np.full(records, payload, np.int32), index, causes(records, code, "", reason))

    @classmethod
    def concat(cls, parts: Sequence[Rejections]) -> Rejections:
        """Return the rejections of all parts, in their order."""
        parts = [part for part in parts if len(part)]
        if len(parts) < 2:
            return parts[0] if parts else cls.none()
        return cls(
            np.concatenate([part.payload for part in parts]),
            np.concatenate([part.record_index for part in parts]),
            pa.concat_batches([part.causes for part in parts]),
        )

    def __len__(self) -> int:
        return len(self.payload)

    def of_payloads(self, wanted: Mask) -> Rejections:
        """Return the rejections of the payloads for which `wanted` is true."""
        if not len(self) or wanted.all():
            return self
        mask = wanted[self.payload]
        return Rejections(self.payload[mask], self.record_index[mask], self.causes.filter(pa.array(mask)))

    def renumbered(self, numbers: npt.NDArray[np.integer[Any]]) -> Rejections:
        """Return the same rejections with other payload numbers. numbers: the new number of each payload."""
        return Rejections(numbers[self.payload].astype(np.int32), self.record_index, self.causes)


class RejectionBuilder:
    """Collects the rejected rows of a table; the first cause of each row counts. rejected: which rows so far."""

    def __init__(self, rows: int) -> None:
        self.rejected: Mask = np.zeros(rows, np.bool_)
        self._parts: list[RejectedRows] = []

    def __len__(self) -> int:
        return sum(map(len, self._parts))

    def add(self, mask: Mask, code: RejectionCode, field: str, reason: str | pa.StringArray) -> None:
        """Reject the rows for which the mask is true. reason: of all of them, or an array of one for each true row."""
        first = mask & ~self.rejected
        count = int(np.count_nonzero(first))
        if not count:
            return
        if not isinstance(reason, str):
            reason = reason.filter(pa.array(first[mask]))
        self._parts.append(RejectedRows(np.flatnonzero(first).astype(np.int32), causes(count, code, field, reason)))
        self.rejected |= first

    def add_rows(self, found: RejectedRows) -> None:
        """Reject rows, each for its own cause."""
        fresh = ~self.rejected[found.row]
        if fresh.any():
            part = found if fresh.all() else RejectedRows(found.row[fresh], found.causes.filter(pa.array(fresh)))
            self._parts.append(part)
            self.rejected[part.row] = True

    def build(self) -> RejectedRows:
        """Return what was collected."""
        if len(self._parts) < 2:
            return self._parts[0] if self._parts else RejectedRows.none()
        row = np.concatenate([part.row for part in self._parts])
        order = np.argsort(row, kind="stable")
        return RejectedRows(row[order], pa.concat_batches([part.causes for part in self._parts]).take(pa.array(order)))


def _repeated(text: str, count: int) -> pa.StringArray:
    return pa.repeat(pa.scalar(text, pa.string()), count)


_NO_CAUSES = causes(0, RejectionCode.MALFORMED_RECORD, "", "")
