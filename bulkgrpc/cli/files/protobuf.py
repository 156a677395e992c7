"""Reads delimited Protobuf files (`writeDelimitedTo`): each record follows its length as a varint."""

from __future__ import annotations

from collections.abc import Iterator

from bulkgrpc.cli.files.errors import FileError
from bulkgrpc.cli.files.sources import Source
from bulkgrpc.client import Batch

_RECORDS_TAG = b"\x12"
_VARINT_BYTES_MAX = 5
_READ_BYTES = 1024 * 1024


def read_delimited(source: Source, batch_rows: int, batch_bytes: int) -> Iterator[tuple[Batch, int]]:
    """Yield batches of `batch_rows` records or up to `batch_bytes`, each with the file offset after it.

    A frame of the file differs from a record of a batch only by its tag, so records are copied, not parsed.
    Raises FileError if the file ends within a record, or a record is larger than a batch.
    """
    frames: list[bytes] = []
    pending_bytes = 0
    for frame, end in _frames(source, batch_bytes):
        if frames and (len(frames) == batch_rows or pending_bytes + len(frame) + 1 > batch_bytes):
            yield _batch(frames), end - len(frame)
            frames, pending_bytes = [], 0
        frames.append(frame)
        pending_bytes += len(frame) + 1
    if frames:
        yield _batch(frames), source.size_bytes


def _batch(frames: list[bytes]) -> Batch:
    return Batch(_RECORDS_TAG + _RECORDS_TAG.join(frames), len(frames))


def _frames(source: Source, bytes_max: int) -> Iterator[tuple[bytes, int]]:
    """Yield each record with its length prefix, and the file offset after it."""
    rows, done, data = 0, 0, b""
    with source.path.open("rb") as file:
        while read := file.read(_READ_BYTES):
            data += read
            start = 0
            while (end := _frame_end(data, start)) is not None:
                rows += 1
                if end - start >= bytes_max:
                    raise FileError(
                        f"{source.name}: row {rows:,} has {end - start:,} bytes; the limit of a batch is {bytes_max:,}"
                    )
                if end > len(data):
                    rows -= 1
                    break
                yield data[start:end], done + end
                start = end
            done += start
            data = data[start:]
            if len(data) >= _VARINT_BYTES_MAX and _frame_end(data, 0) is None:
                raise FileError(
                    f"{source.name}: row {rows + 1:,} has no valid length: the file is not delimited Protobuf"
                )
    if data:
        raise FileError(f"{source.name}: the file ends within row {rows + 1:,}")


def _frame_end(data: bytes, start: int) -> int | None:
    """Return the end of the frame at `start`, which may be beyond the data; None if its length is incomplete."""
    length = shift = 0
    for position in range(start, min(start + _VARINT_BYTES_MAX, len(data))):
        byte = data[position]
        length |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return position + 1 + length
    return None
