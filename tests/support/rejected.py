"""Rejections as tuples, for tests that look at few of them."""

from __future__ import annotations

from bulkgrpc.datasets.rows import Rows


def rejections(rows: Rows) -> list[tuple[int, int, str, str, str]]:
    """Payload, index, code, field and reason of each rejected record, by position."""
    found = rows.rejections
    columns = (found.payload.tolist(), found.record_index.tolist(), *(c.to_pylist() for c in found.causes.columns))
    return sorted(zip(*columns, strict=True))
