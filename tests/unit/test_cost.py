"""No Python per record: the work of the interpreter does not grow with the rows of a batch."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from google.protobuf import json_format, message_factory

from bulkgrpc.client.model import Batch
from bulkgrpc.consume.assembly import Chunk, Received, Span
from bulkgrpc.consume.decode import prepare
from bulkgrpc.consume.report import report
from bulkgrpc.datasets.codec import BatchCodec
from bulkgrpc.datasets.decoding import Payload
from bulkgrpc.datasets.definition import find_message
from bulkgrpc.datasets.rows import to_rows
from bulkgrpc.ingest.messages import parse_message
from bulkgrpc.model import JobKey, JobSpec, Kind, Message
from bulkgrpc.rejections import RejectionCode, Rejections
from tests.support import examples
from tests.support.cost import BLOCKS_SLACK, OPCODES_RATIO_MAX, Work, cost

BATCHES = 4
FEW, MANY = 1_000, 100_000
CODEC = BatchCodec(examples.readings())
THINGS = BatchCodec(examples.things())
REMEMBERED = BatchCodec(examples.remembered())


def chunk(rows: int) -> Chunk:
    spec = JobSpec(JobKey("acme", uuid.UUID(int=1)), "", "sensor_readings", 1)
    items = tuple(
        Received(
            0, n, Message(Kind.BATCH, spec, 0, n, rows, 0, datetime.now(UTC)), examples.reading_batch(n * rows, rows)
        )
        for n in range(BATCHES)
    )
    return Chunk((Span(0, 0, BATCHES, 1),), items, rows * BATCHES)


def preparing(rows: int) -> Work:
    made = chunk(rows)
    return lambda: prepare(made, lambda _name, _version: CODEC)


def remembering(rows: int) -> Work:
    made = chunk(rows)
    return lambda: prepare(made, lambda _name, _version: REMEMBERED)


def receiving(rows: int) -> Work:
    payload = b"\x08\x05" + examples.reading_batch(0, rows)
    return lambda: [parse_message(payload, 1 << 30, 1 << 30) for _ in range(BATCHES)]


def encoding(rows: int) -> Work:
    records = pa.RecordBatch.from_struct_array(CODEC.decode([examples.reading_batch(0, rows)]).flatten())
    records = records.cast(CODEC.record_schema)
    return lambda: CODEC.encode(records, -(-rows // BATCHES))


def counting(rows: int) -> Work:
    payload = examples.reading_batch(0, rows)
    return lambda: [Batch.of(payload) for _ in range(BATCHES)]


def converting(rows: int) -> Work:
    """Columns whose values are not the field's own: documents, numerics, UUIDs, dates, times."""
    made: Any = message_factory.GetMessageClass(find_message(THINGS.dataset.descriptors, "tests.v1.Thing"))
    thing = made(
        needed=1,
        j_part={"label": 'a"b', "seal": b"x", "parts": [{"label": "c"}]},
        j_counts={"x": 1},
        t_numeric="1.50",
        t_uuid="6ba7b810-9dad-11d1-80b4-00c04fd430c8",
        t_date="2013-01-31",
        t_timestamptz="2013-01-31T06:00:00Z",
    )
    json_format.ParseDict({"j_struct": {"a": [1.5, {"b": None}]}}, thing)
    data = thing.SerializeToString()
    payload = Payload("acme", rows, examples.batch_of([data] * rows))
    return lambda: to_rows(THINGS, [payload])


OVERSIZED = b"\x1a\x08\x08" + b"\x80" * 6 + b"\x01"
REJECTED = {
    "truncated": b"\x0a\x05S1",
    "not UTF-8": b"\x0a\x02\xff\xfe\x1a\x00",
    "empty": b"",
    "U+0000": b"\x0a\x01\x00\x1a\x00",
    "null in key": b"\x0a\x02S2",
    "out of range": b"\x0a\x02S2" + OVERSIZED,
}


def rejecting(codec: BatchCodec, record: bytes, rows: int) -> Work:
    """Decode a batch all of whose records are rejected, and make its report."""
    payload = examples.batch_of([record] * rows)
    spec = JobSpec(JobKey("acme", uuid.UUID(int=1)), "", codec.dataset.name, 1)
    item = Received(0, 0, Message(Kind.BATCH, spec, 0, 0, rows, 0, datetime.now(UTC)), payload)
    days = {spec.key.job_id: datetime.now(UTC).date()}

    def work() -> object:
        rejections = to_rows(codec, [Payload("acme", rows, payload)]).rejections
        assert len(rejections) == rows
        return report([item], rejections, days)

    return work


@pytest.mark.parametrize("record", REJECTED.values(), ids=REJECTED)
def test_python_does_not_work_per_rejected_record(record: bytes) -> None:
    few, many = (cost(rejecting(CODEC, record, rows)) for rows in (1_000, 50_000))
    assert many[0] <= few[0] * OPCODES_RATIO_MAX
    assert many[1] <= max(few[1], 0) + BLOCKS_SLACK


@pytest.mark.parametrize("field", ["t_uuid", "rule"])
def test_python_does_not_work_per_record_with_an_invalid_value_or_a_broken_rule(field: str, tmp_path: Path) -> None:
    codec = THINGS
    if field == "rule":
        file = tmp_path / "m.proto"
        file.write_text(
            'syntax = "proto3"; import "buf/validate/validate.proto"; import "bulkgrpc/v1/options.proto"; message M {'
            'option (bulkgrpc.v1.dataset) = {table: "m" key: "id"};'
            "string id = 1; double value = 2 [(buf.validate.field).double.gte = 1]; }"
        )
        codec, record = BatchCodec(examples.compiled(file, "M")), b"\x0a\x01a"
    else:
        made: Any = message_factory.GetMessageClass(find_message(THINGS.dataset.descriptors, "tests.v1.Thing"))
        record = made(needed=1, t_uuid="none").SerializeToString()
    few, many = (cost(rejecting(codec, record, rows)) for rows in (1_000, 20_000))
    assert many[0] <= few[0] * OPCODES_RATIO_MAX
    assert many[1] <= max(few[1], 0) + BLOCKS_SLACK


def test_python_does_not_work_per_record_of_a_batch_that_is_rejected_whole() -> None:
    def work(rows: int) -> Work:
        payload = examples.batch_of([b""] * rows)
        spec = JobSpec(JobKey("acme", uuid.UUID(int=1)), "", "sensor_readings", 1)
        item = Received(0, 0, Message(Kind.BATCH, spec, 0, 0, rows, 0, datetime.now(UTC)), payload)
        days = {spec.key.job_id: datetime.now(UTC).date()}
        return lambda: report([item], Rejections.of_payload(0, rows, RejectionCode.AFTER_SEAL, "late"), days)

    few, many = cost(work(1_000)), cost(work(50_000))
    assert many[0] <= few[0] * OPCODES_RATIO_MAX
    assert many[1] <= max(few[1], 0) + BLOCKS_SLACK


@pytest.mark.parametrize("path", [preparing, remembering, receiving, encoding, counting, converting])
def test_python_does_not_work_per_record(path: Callable[[int], Work]) -> None:
    few, many = cost(path(FEW)), cost(path(MANY))
    assert many[0] <= few[0] * OPCODES_RATIO_MAX
    assert many[1] <= max(few[1], 0) + BLOCKS_SLACK


@pytest.mark.parametrize("sin", [lambda n: [x + 1 for x in range(n)], lambda n: list(range(1000, n + 1000))])
def test_the_counters_see_python_per_record(sin: Callable[[int], object]) -> None:
    few, many = cost(lambda: sin(FEW)), cost(lambda: sin(MANY))
    assert many[0] > few[0] * OPCODES_RATIO_MAX or many[1] > few[1] + BLOCKS_SLACK
