"""The rejection report: where a bad record ends, with its place in its job and why (codes: `errors.Rejected`)."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import psycopg

from bulkgrpc.errors import Rejected
from bulkgrpc.store import statements

_SQL = statements.family("ledger")


@dataclass(frozen=True, slots=True)
class Rejection:
    """A record that could not be applied: its job, batch, place in the batch; why; its bytes."""

    job_id: uuid.UUID
    sequence: int
    record_index: int
    code: Rejected
    field: str
    reason: str
    record: bytes


def add(connection: psycopg.Connection[tuple[Any, ...]], rejections: Sequence[Rejection]) -> None:
    """Write rejections in the caller's transaction."""
    values = {
        "job_ids": [rejection.job_id for rejection in rejections],
        "sequences": [rejection.sequence for rejection in rejections],
        "record_indices": [rejection.record_index for rejection in rejections],
        "codes": [rejection.code.value for rejection in rejections],
        "fields": [rejection.field for rejection in rejections],
        # PostgreSQL's text takes no U+0000, and a reason may quote the record.
        "reasons": [rejection.reason.replace("\0", "\\0") for rejection in rejections],
        "records": [rejection.record for rejection in rejections],
    }
    connection.execute(_SQL["add_rejections"], values)
