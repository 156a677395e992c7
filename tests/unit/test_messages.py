"""Parsing and checking the messages of a stream."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

from bulkgrpc.ingest.messages import Batch, parse_message
from bulkgrpc.v1 import ingest_pb2


def opcodes_of(call: Callable[[], object]) -> int:
    """Count the Python instructions that a call executes."""
    count = 0

    def trace(frame: FrameType, event: str, _: object) -> Any:
        nonlocal count
        frame.f_trace_opcodes = True
        count += event == "opcode"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        call()
    finally:
        sys.settrace(before)
    return count


def test_checking_a_batch_costs_python_nothing_per_record() -> None:
    costs = set()
    for records in (10, 10_000):
        batch = ingest_pb2.RecordBatch(sequence=1, records=[b"x" * 20] * records)
        raw = ingest_pb2.StreamRecordsRequest(batch=batch).SerializeToString()
        blocks = sys.getallocatedblocks()
        found = parse_message(raw, 1_000_000, 10_000)
        assert isinstance(found, Batch)
        assert sys.getallocatedblocks() - blocks < 100
        assert (found.sequence, found.records, found.payload) == (1, records, batch.SerializeToString())
        costs.add(opcodes_of(lambda raw=raw: parse_message(raw, 1_000_000, 10_000)))  # type: ignore[misc]
    assert len(costs) == 1
