"""The bytes of the records of serialized RecordBatches, as Arrow columns: sliced and joined in native code."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import ptars
import pyarrow as pa
import pyarrow.compute as pc
from google.protobuf.message import DecodeError

from bulkgrpc.v1.ingest_pb2 import RecordBatch


def records_of(payloads: Sequence[bytes], counts: npt.NDArray[np.integer[Any]]) -> pa.BinaryArray:
    """Return the bytes of every record, payload after payload: `counts[i]` values for each.

    A payload that cannot be read as that many records gives its own bytes first, then empty values. One native call
    for all payloads, unless one of them cannot be read; about 15 M records/s.
    """
    if (found := sliced(payloads, counts)) is not None:
        return found
    parts = []
    for payload, count in zip(payloads, counts.tolist(), strict=True):
        part = sliced([payload], np.array([count]))
        parts.append(_unreadable(payload, count) if part is None else part)
    return pa.concat_arrays(parts)


def sliced(payloads: Sequence[bytes], counts: npt.NDArray[np.integer[Any]]) -> pa.BinaryArray | None:
    """Return the bytes of every record, or None if the payloads are not that many records each."""
    lists = _lists(payloads)
    if lists is None:
        try:
            # protobuf's own parser accepts more than ptars; ptars reads what that parser writes.
            lists = _lists([_canonical(payload) for payload in payloads])
        except DecodeError:
            return None
    if lists is None or not np.array_equal(np.diff(lists.offsets.to_numpy()), counts):
        return None
    return lists.flatten()


def joined(records: pa.BinaryArray) -> bytes:
    """Return the RecordBatch, without sequence, of these records. One native call."""
    lists = pa.ListArray.from_arrays(pa.array([0, len(records)], pa.int32()), records)
    schema = _handler().schema()
    columns = [pa.array([0], pa.int64()), lists.cast(schema.field("records").type)]
    return bytes(_handler().record_batch_to_array(pa.record_batch(columns, schema=schema))[0].as_py())


def spans_in(records: pa.BinaryArray) -> npt.NDArray[np.int64]:
    """Return where each record starts in the bytes that `joined` returns; the last value is their length."""
    lengths = pc.binary_length(records).to_numpy().astype(np.int64)
    sizes = lengths + 2 + sum((lengths >= 1 << bits).astype(np.int64) for bits in (7, 14, 21, 28))
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes)])


@functools.cache
def _handler() -> Any:
    return ptars.HandlerPool([RecordBatch.DESCRIPTOR.file]).get_for_message(RecordBatch.DESCRIPTOR)


def _lists(payloads: Sequence[bytes]) -> pa.ListArray | None:
    try:
        return _handler().list_to_record_batch(list(payloads)).column("records")
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException:  # noqa: BLE001 — ptars panics with an exception that is no Exception
        return None


def _canonical(payload: bytes) -> bytes:
    return RecordBatch(records=RecordBatch.FromString(payload).records).SerializeToString()


def _unreadable(payload: bytes, count: int) -> pa.BinaryArray:
    empty = pa.repeat(pa.scalar(b"", pa.binary()), max(count - 1, 0))
    return pa.concat_arrays([pa.array([payload][:count], pa.binary()), empty])
