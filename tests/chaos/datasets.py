"""The datasets of a storm: sensor readings, with lanes, without a key, with deletes, in a team's table; their batches.

A record is known by its number, which is its `value`. Batch N of a job has the numbers from `base + N * ROWS` on.
"""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import pyarrow as pa

from bulkgrpc.datasets.codec import BatchCodec
from bulkgrpc.datasets.definition import Dataset
from tests.support import examples

ROWS = 1000
"""Records of a batch."""
READINGS, FLEET, APPENDED, BOUND, CHANGING = (
    "sensor_readings",
    "fleet_readings",
    "appended_readings",
    "bound_readings",
    "changing_readings",
)
TABLES = {READINGS: "public.sensor_readings", FLEET: "public.fleet_readings", APPENDED: "public.appended_readings",
          BOUND: '"Team"."Readings"', CHANGING: "public.changing_readings"}  # fmt: skip
"""By dataset: its table, as SQL."""
KEPT, DELETED_NEXT = 700, 50
"""Rows that a batch of `CHANGING` leaves, and how many of them the next batch of its job deletes."""
MOODS = ("calm", "windy")
BOUND_TABLE = f"""
CREATE SCHEMA "Team";
GRANT USAGE ON SCHEMA "Team" TO {{role}};
CREATE TYPE "Team".mood AS ENUM ('calm', 'windy');
CREATE TABLE {TABLES[BOUND]} (
  reading bigint GENERATED ALWAYS AS IDENTITY, tenant text NOT NULL, sensor_id varchar(40) NOT NULL,
  value double precision, sampled_at timestamptz NOT NULL, mood "Team".mood NOT NULL,
  created timestamptz NOT NULL DEFAULT now(), stamp text, CONSTRAINT key PRIMARY KEY (tenant, sensor_id, sampled_at)
);
CREATE FUNCTION "Team".stamp() RETURNS trigger LANGUAGE plpgsql AS
  $$ BEGIN new.stamp := new.mood || ' ' || new.value; RETURN new; END $$;
CREATE TRIGGER stamp BEFORE INSERT OR UPDATE ON {TABLES[BOUND]} FOR EACH ROW EXECUTE FUNCTION "Team".stamp();
GRANT SELECT, INSERT ON {TABLES[BOUND]} TO {{role}};
"""
"""A table that is there before its dataset: with an enum, an identity, a default, and a column that a trigger fills."""
BOUND_IS_RIGHT = (
    "stamp = mood || ' ' || value AND mood::text = CASE WHEN value::bigint % 2 = 0 THEN 'calm' ELSE 'windy' END"
)
_WRITE, _DELETE = "CHANGE_OPERATION_WRITE", "CHANGE_OPERATION_DELETE"


@functools.cache
def all_datasets() -> dict[str, Dataset]:
    """Return the definitions, by name."""
    file = Path(__file__).parent / "readings.proto"
    own = (
        examples.compiled(file, f"tests.chaos.v1.{name}")
        for name in ("AppendedReading", "BoundReading", "ChangingReading")
    )
    return {dataset.name: dataset for dataset in (examples.readings(), examples.fleet(), *own)}


def left_by(dataset: str) -> int:
    """Return how many rows a batch without invalid records leaves."""
    return KEPT if dataset == CHANGING else ROWS


def deleted_by_next(dataset: str) -> int:
    """Return how many of them the next batch of the job deletes."""
    return DELETED_NEXT if dataset == CHANGING else 0


def payload(dataset: str, first: int, bad: int = 0, tenant: str = "") -> bytes:
    """Return a batch of ROWS - `bad` records, the first of them with the number `first + bad`."""
    codec = _codec(dataset)
    numbers, operations = np.arange(first + bad, first + ROWS), [_WRITE] * (ROWS - bad)
    if dataset == CHANGING:
        numbers, operations = _changes(first)
    values = {
        "sensor_id": pa.array(["S1"], pa.string()).take(pa.array(np.zeros(len(numbers), np.int64))),
        "value": pa.array(numbers.astype(np.float64)),
        "sampled_at": pa.array(1_700_000_000_000_000 + numbers, pa.timestamp("us", "UTC")),
        "tenant": [tenant] * len(numbers),
        "mood": [MOODS[number % 2] for number in numbers.tolist()],
        "operation": operations,
    }
    columns = [pa.array(values[field.name], field.type) for field in codec.record_schema]
    return codec.encode(pa.record_batch(columns, schema=codec.record_schema), ROWS)[0]


def _changes(first: int) -> tuple[np.ndarray[tuple[int], np.dtype[np.int64]], list[str]]:
    """Return the numbers and operations of a batch whose order decides what is left.

    It deletes rows that it then writes, writes some, deletes a part of these, and some of the batch before it.
    """
    own, kept_end = np.arange(first, first + ROWS), KEPT + 100
    parts = (
        (own[100:150], _DELETE),
        (own[:kept_end], _WRITE),
        (own[:100], _DELETE),
        (own[kept_end - DELETED_NEXT : kept_end] - ROWS, _DELETE),
    )
    numbers = np.concatenate([numbers for numbers, _ in parts])
    assert len(numbers) == ROWS
    return numbers, [operation for numbers, operation in parts for _ in range(len(numbers))]


@functools.cache
def _codec(dataset: str) -> BatchCodec:
    return BatchCodec(all_datasets()[dataset])
