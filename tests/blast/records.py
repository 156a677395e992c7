"""The records of the tests: every value of a record follows from its number and its revision.

So the expected content of a row is computed, never remembered.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from google.protobuf.descriptor_pb2 import FileDescriptorSet, MessageOptions

from bulkgrpc.datasets import sources
from bulkgrpc.datasets.codec import BatchCodec
from bulkgrpc.datasets.definition import ConflictPolicy, define
from bulkgrpc.v1 import options_pb2

Message = Literal["Record", "Ruled", "Change", "Bound"]
Kind = Literal["created", "append", "deletes", "existing"]
"""Of a dataset: the service creates its table; it has no key; its records delete rows; its table exists."""
MOODS = ("calm", "windy")
PACKAGE = "tests.blast.v1"
VALUE_COLUMNS = ("small", "large", "single", "number", "label", "note")
_OPTION: Any = options_pb2.dataset  # protoc types its extensions more loosely than the runtime
_EPOCH_US = 1_700_000_000_000_000
_ABOVE_DOUBLES = 2**53 + 1
"""From here on no odd number is a double: a column that turns `large` into one shows it."""
_CONFLICT_POLICIES = {
    "ignore": options_pb2.CONFLICT_POLICY_IGNORE,
    "update": options_pb2.CONFLICT_POLICY_UPDATE,
    "reject": options_pb2.CONFLICT_POLICY_REJECT,
    "append": options_pb2.CONFLICT_POLICY_APPEND,
}


@dataclass(frozen=True, slots=True)
class Shape:
    """A dataset to register. hash_partitions: of its table, 0 for none."""

    table: str
    policy: ConflictPolicy
    message: Message = "Record"
    hash_partitions: int = 0

    @property
    def message_type(self) -> str:
        """The full name of its message."""
        return f"{PACKAGE}.{self.message}"

    def descriptors(self) -> bytes:
        """Return the serialized FileDescriptorSet of its message, with the options of this dataset."""
        files = FileDescriptorSet.FromString(_compiled())
        for message in files.file[-1].message_type:
            options = MessageOptions.FromString(message.options.SerializeToString())
            dataset = options.Extensions[_OPTION]
            dataset.table, dataset.conflict_policy = self.table, _CONFLICT_POLICIES[self.policy]
            if self.policy == "append":
                dataset.ClearField("key")
            # A table that exists is partitioned or not.
            dataset.hash_partitions = 0 if message.name == "Bound" else self.hash_partitions
            message.options.ParseFromString(options.SerializeToString())
        return files.SerializeToString()


def payload(
    first: int, rows: int, revision: int, *, sparse: bool = False, message: Message = "Record", tenant: str = ""
) -> bytes:
    """Return the wire bytes of the records [first, first + rows); sparse: only their keys are set.

    tenant: the value of the field of that name.
    """
    numbers = np.arange(first, first + rows, dtype=np.int64)
    columns = _columns(numbers, revision, sparse=sparse)
    columns["tenant"] = [tenant] * rows
    columns["operation"] = [
        f"CHANGE_OPERATION_{'DELETE' if deletes(number, revision) else 'WRITE'}" for number in numbers.tolist()
    ]
    schema = _codec(message).record_schema
    arrays = [pa.array(columns[field.name], field.type) for field in schema]
    return _codec(message).encode(pa.record_batch(arrays, schema=schema), max(rows, 1))[0]


def deletes(number: int, revision: int) -> bool:
    """Return whether a record of `Change` deletes its row: of two revisions that follow each other at most one does."""
    return (number + revision) % 3 == 0


def wanted(first: int, rows: int, revision: int, *, sparse: bool) -> dict[str, list[Any]]:
    """Return what the columns of the rows [first, first + rows) must contain, the tenant left out; times are naive."""
    columns = _columns(np.arange(first, first + rows, dtype=np.int64), revision, sparse=sparse)
    found = {name: values.tolist() if isinstance(values, np.ndarray) else values for name, values in columns.items()}
    found["at"] = columns["at"].astype("datetime64[us]").tolist()
    return found


def differences(found: Mapping[str, Any], columns: Mapping[str, Sequence[Any]], position: int) -> list[str]:
    """Return the columns of a row that do not contain exactly what was sent; one that is not there does not count."""
    return [
        f"{name} is {found[name]!r}, not {values[position]!r}"
        for name, values in columns.items()
        if name in found and not _same(found[name], values[position])
    ]


def _same(found: Any, wanted: Any) -> bool:
    if found is None or wanted is None:
        return found is wanted
    if isinstance(wanted, int) and isinstance(found, str):
        return found == str(wanted)
    if isinstance(wanted, int | float) and isinstance(found, bool | str | bytes | datetime):
        return False
    return bool(found == wanted)


def _columns(numbers: np.ndarray[Any, Any], revision: int, *, sparse: bool) -> dict[str, Any]:
    zeros = np.zeros(len(numbers), np.int64)
    listed = numbers.tolist()
    if sparse:
        values: dict[str, Any] = {
            "small": zeros,
            "large": zeros,
            "single": zeros.astype(np.float32),
            "number": zeros.astype(np.float64),
            "label": [""] * len(listed),
            "note": [None] * len(listed),
            "mood": MOODS[:1] * len(listed),
        }
    else:
        values = {
            # Most are no `real`.
            "small": (numbers * 1_000_003 + revision) % 2_000_000_011 + 1,
            "large": _ABOVE_DOUBLES + 2 * numbers + 2_000_000_000 * revision,
            "single": (numbers % 1000 + revision % 100 + 0.1).astype(np.float32),
            "number": numbers + revision * 1e6 + 0.1,
            "label": [f"r{number}v{revision}" for number in listed],
            "note": [None if number % 3 == 0 else f"n{number}v{revision}" for number in listed],
            "mood": [MOODS[(number + revision) % 2] for number in listed],
        }
    return {"id": numbers, "at": _EPOCH_US + numbers, **values}


@functools.cache
def _compiled() -> bytes:
    return sources.compile_proto(Path(__file__).parent / "record.proto")


@functools.cache
def _codec(message: Message) -> BatchCodec:
    shape = Shape("blast", "update" if message == "Change" else "ignore", message)
    return BatchCodec(define(shape.descriptors(), shape.message_type))
