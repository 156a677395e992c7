"""RejectionCode records: why a record could not be applied, and its position in its job."""

from __future__ import annotations

import enum
import uuid
from dataclasses import dataclass


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
    """A value is none of its column's type, for instance a text that is no UUID."""
    NULL_VALUE = "NULL_VALUE"
    """A field that must be set (`not_null`) is not."""
    RULE_VIOLATION = "RULE_VIOLATION"
    """A protovalidate rule of the message is broken."""
    REFUSED_BY_TABLE = "REFUSED_BY_TABLE"
    """PostgreSQL refused the row: a constraint, a trigger, a value."""
    DUPLICATE_KEY = "DUPLICATE_KEY"
    """The key is in the table already, or came earlier, and the dataset's conflict policy is `reject`."""
    BATCH_CONFLICT = "BATCH_CONFLICT"
    """Another batch with the same sequence was applied before; the two differ."""
    VERSION_CONFLICT = "VERSION_CONFLICT"
    """The batch is of another version of the dataset than the one that its atomic job was opened with."""
    DATASET_DELETED = "DATASET_DELETED"
    """The dataset was deleted before the batch was applied."""
    AFTER_SEAL = "AFTER_SEAL"
    """The batch came after the job's seal."""


@dataclass(frozen=True, slots=True)
class Rejection:
    """A record that could not be applied: its job, batch, place in the batch; why; its bytes."""

    job_id: uuid.UUID
    sequence: int
    record_index: int
    code: RejectionCode
    field: str
    reason: str
    record: bytes
