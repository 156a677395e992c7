"""The example datasets, and batches of them."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from bulkgrpc.datasets import sources
from bulkgrpc.datasets.codec import BatchCodec
from bulkgrpc.datasets.definition import ConflictPolicy, Dataset, define
from bulkgrpc.v1.ingest_pb2 import RecordBatch


@functools.cache
def dataset(file: str, message: str) -> Dataset:
    """A dataset of `proto/examples/v1/{file}.proto`."""
    return define(sources.compile_proto(sources.proto_root() / f"examples/v1/{file}.proto"), f"examples.v1.{message}")


def compiled(file: Path, message: str) -> Dataset:
    """A dataset of a `.proto` file of a test's own."""
    return define(sources.compile_proto(file), message)


def readings() -> Dataset:
    """The sensor readings."""
    return dataset("sensors", "SensorReading")


def fleet() -> Dataset:
    """The same readings, in a dataset whose jobs have four lanes."""
    return dataset("sensors", "FleetReading")


def trades() -> Dataset:
    """The wide example."""
    return dataset("trades", "Trade")


@functools.cache
def things() -> Dataset:
    """A dataset with a field of every type that a column can be made of."""
    return compiled(Path(__file__).parent / "types.proto", "tests.v1.Thing")


@functools.cache
def remembered(conflict: ConflictPolicy = "ignore") -> Dataset:
    """Sensor readings whose bytes are remembered for an hour, under a conflict policy."""
    file = Path(__file__).parent / "remembered.proto"
    return compiled(file, f"tests.v1.Remembered{conflict.capitalize()}")


@functools.cache
def appended(message: str = "Appended") -> Dataset:
    """Sensor readings without a key: `Appended`, `AppendedOnce` whose bytes are remembered, `AppendedByDay`."""
    return compiled(Path(__file__).parent / "appended.proto", f"tests.v1.{message}")


@functools.cache
def changes() -> Dataset:
    """Values of sensors that records write or delete: a key of `sensor_id`."""
    return compiled(Path(__file__).parent / "changes.proto", "tests.v1.Change")


def change(sensor: str, value: float | None) -> bytes:
    """A serialized change: a value to write, or None to delete the row."""
    name = sensor.encode()
    key = b"\x0a" + bytes([len(name)]) + name
    return key + (b"\x20\x02" if value is None else b"\x11" + np.float64(value).tobytes() + b"\x20\x01")


def reading(sensor: str, seconds: int, value: float) -> bytes:
    """A serialized sensor reading."""
    at = bytes([0x1A, 2, 8, seconds]) if seconds else b"\x1a\x00"
    name = sensor.encode()
    return b"\x0a" + bytes([len(name)]) + name + b"\x11" + np.float64(value).tobytes() + at


def reading_batch(start: int, rows: int) -> bytes:
    """A RecordBatch of sensor readings numbered [start, start + rows): all keys differ."""
    codec = BatchCodec(readings())
    numbers = np.arange(start, start + rows)
    records = pa.record_batch(
        [
            pa.array([f"S{number % 10}" for number in numbers], pa.string()),
            pa.array(numbers * 0.5),
            pa.array(1_700_000_000_000_000 + numbers * 1000, pa.timestamp("us", "UTC")),
        ],
        schema=codec.record_schema,
    )
    return codec.encode(records, max(rows, 1))[0] if rows else b""


def batch_of(records: Sequence[bytes]) -> bytes:
    """A RecordBatch of serialized records."""
    return RecordBatch(records=records).SerializeToString()
