"""Sensor readings as encoded batches, the same for every measurement: no two rows have the same key."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import numpy as np
import pyarrow as pa

from bulkgrpc.bench.model import Load
from bulkgrpc.datasets import definition, sources
from bulkgrpc.datasets.codec import BatchCodec
from bulkgrpc.datasets.definition import Dataset
from bulkgrpc.kafka.partition import partition_of

TABLE = "sensor_readings"
SENSORS = 1000
_FIRST_US = 1_767_225_600_000_000  # 2026-01-01
_STEP_US = 1000
_SENSOR_NAMES = pa.array([f"S{number}" for number in range(SENSORS)])


def dataset() -> Dataset:
    """Return the example dataset `sensor_readings`."""
    file = sources.proto_root() / "examples/v1/sensors.proto"
    return definition.define(sources.compile_proto(file), "examples.v1.SensorReading")


def tenants_of(load: Load) -> list[str]:
    """Return tenant names such that each partition gets exactly one tenant."""
    names = (f"tenant-{number}" for number in itertools.count())
    return [next(name for name in names if partition_of(name, load.tenants) == p) for p in range(load.tenants)]


def batches(codec: BatchCodec, first: int, rows: int, batch_rows: int) -> list[bytes]:
    """Encode the readings [first, first + rows) of a tenant."""
    numbers = np.arange(first, first + rows)
    columns = [
        _SENSOR_NAMES.take(pa.array(numbers % SENSORS)),
        pa.array(numbers * 0.25),
        pa.array(_FIRST_US + numbers * _STEP_US, pa.timestamp("us", "UTC")),
    ]
    return codec.encode(pa.record_batch(columns, schema=codec.record_schema), batch_rows)


def key_of(number: int) -> tuple[str, datetime]:
    """Return the key of a reading: sensor and time."""
    epoch = datetime(1970, 1, 1, tzinfo=UTC)
    return f"S{number % SENSORS}", epoch + timedelta(microseconds=_FIRST_US + number * _STEP_US)


def interleaved(per_tenant: Sequence[Sequence[bytes]]) -> list[tuple[int, int, bytes]]:
    """Return one batch of each tenant in turn, as (tenant number, sequence, payload)."""
    return [
        (tenant, sequence, payload)
        for sequence, row in enumerate(zip(*per_tenant, strict=True))
        for tenant, payload in enumerate(row)
    ]
