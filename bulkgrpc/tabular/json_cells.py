"""Reads cells that contain JSON: maps, lists of messages, `Struct`s. Python parses each as Protobuf JSON.

The result of a cell is the bytes of a record that has only this field. Concatenated messages merge, so these bytes are
appended to the record that the codec encodes from the other fields.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from google.protobuf import json_format, message_factory
from google.protobuf.descriptor import Descriptor

from bulkgrpc.datasets.definition import Dataset, find_message
from bulkgrpc.datasets.framing import frame
from bulkgrpc.tabular.errors import UnsuitableValue
from bulkgrpc.v1.ingest_pb2 import RecordBatch

COLUMN = ""
"""Name of the column of such bytes. No field has an empty name."""

_FREE = frozenset({"google.protobuf.Struct", "google.protobuf.Value", "google.protobuf.ListValue"})


class Cells:
    """Reads the cells of one dataset's fields."""

    def __init__(self, dataset: Dataset) -> None:
        self._message = find_message(dataset.descriptors, dataset.message_type)
        self._record = message_factory.GetMessageClass(self._message)

    def read(self, texts: pa.Array, path: tuple[str, ...]) -> pa.Array:
        """Return, for each JSON text, the bytes of a record that has only the field at `path`; no bytes for null.

        Raises UnsuitableValue if any text is not valid JSON for the field. The exception does not say which.
        """
        number = exact_double if _is_free(self._message, path) else None
        try:
            return pa.array(
                [b"" if text is None else self._bytes(text, path, number) for text in texts.to_pylist()], pa.binary()
            )
        except (json_format.ParseError, RecursionError, ValueError, TypeError) as error:
            raise UnsuitableValue from error

    def _bytes(self, text: str, path: tuple[str, ...], number: Callable[[str], float] | None) -> bytes:
        document: Any = json.loads(text, parse_int=number, parse_float=number, object_pairs_hook=_unique)
        for step in reversed(path):
            document = {step: document}
        return bytes(json_format.ParseDict(document, self._record()).SerializeToString())


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return an object's values. Raises ValueError if it has a name twice: Python would keep the last one."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError
    return found


def exact_double(text: str) -> float:
    """Return a JSON number as a double. Raises ValueError if a double does not have all of its digits."""
    number = float(text)
    if number in {float("inf"), float("-inf")} or Decimal(repr(number)) != Decimal(text):
        raise ValueError(text)
    return number


def _is_free(message: Descriptor, path: tuple[str, ...]) -> bool:
    """Return whether a field has any JSON, whose numbers are doubles."""
    *above, last = path
    for step in above:
        inner = message.fields_by_name[step].message_type
        assert inner is not None  # noqa: S101 — a path leads through messages
        message = inner
    found = message.fields_by_name[last].message_type
    if found is not None and found.GetOptions().map_entry:
        found = found.fields_by_name["value"].message_type
    return found is not None and found.full_name in _FREE


def merged(payload: bytes, more: pa.Array) -> bytes:
    """Return a batch's payload with more bytes appended to each of its records."""
    if not pc.sum(pc.binary_length(more)).as_py():
        return payload
    records = RecordBatch.FromString(payload).records
    return b"".join(frame(record + rest) for record, rest in zip(records, more.to_pylist(), strict=True))
