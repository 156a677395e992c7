"""Cells that are JSON: maps, lists of messages, `Struct`s. Read as Protobuf reads its JSON, by Python one by one.

What is read is the bytes of a record that has nothing but the field. Messages merge where their bytes are put one after
the other, so these go behind the bytes of the record that the codec makes of the other fields.
"""

from __future__ import annotations

import json
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from google.protobuf import json_format, message_factory

from bulkgrpc.cli.files.problems import UnfitValue
from bulkgrpc.client.packing import frame
from bulkgrpc.datasets.definition import Dataset, find_message
from bulkgrpc.v1.ingest_pb2 import RecordBatch

COLUMN = ""
"""Name of the column of such bytes, which no field has."""


class Cells:
    """Reads the cells of one dataset's fields."""

    def __init__(self, dataset: Dataset) -> None:
        self._record = message_factory.GetMessageClass(find_message(dataset.descriptors, dataset.message_type))

    def read(self, texts: pa.Array, path: tuple[str, ...]) -> pa.Array:
        """Return the bytes of records that have the field at `path`, from the JSON text of each; of null no bytes.

        Raises UnfitValue if one is no JSON that the field takes; which one is not known.
        """
        try:
            return pa.array(
                [b"" if text is None else self._bytes(text, path) for text in texts.to_pylist()], pa.binary()
            )
        except (json_format.ParseError, RecursionError, ValueError, TypeError) as error:
            raise UnfitValue from error

    def _bytes(self, text: str, path: tuple[str, ...]) -> bytes:
        document: Any = json.loads(text)
        for step in reversed(path):
            document = {step: document}
        return bytes(json_format.ParseDict(document, self._record()).SerializeToString())


def merged(payload: bytes, more: pa.Array) -> bytes:
    """Return a batch's payload with bytes put behind those of each of its records."""
    if not pc.sum(pc.binary_length(more)).as_py():
        return payload
    records = RecordBatch.FromString(payload).records
    return b"".join(frame(record + rest) for record, rest in zip(records, more.to_pylist(), strict=True))
