"""Delimited Protobuf files (`writeDelimitedTo`): each record preceded by its length as a varint."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from bulkgrpc.cli.files.problems import FileProblem
from bulkgrpc.client import Batch

_RECORDS_TAG = b"\x12"
_VARINT_BYTES_MAX = 5
_READ_BYTES = 1024 * 1024


def read_delimited(path: Path, batch_rows: int, batch_bytes: int) -> Iterator[tuple[Batch, int]]:
    """Give batches of `batch_rows` records or up to `batch_bytes`, and up to where in the file they reach.

    A frame of the file is a record of a batch but for its tag, so that records are copied, not parsed.
    Raises FileProblem if the file ends within a record, or a record is larger than a batch.
    """
    frames: list[bytes] = []
    held_bytes = 0
    for frame, end in _frames(path, batch_bytes):
        if frames and (len(frames) == batch_rows or held_bytes + len(frame) + 1 > batch_bytes):
            yield _batch(frames), end - len(frame)
            frames, held_bytes = [], 0
        frames.append(frame)
        held_bytes += len(frame) + 1
    if frames:
        yield _batch(frames), path.stat().st_size


def _batch(frames: list[bytes]) -> Batch:
    return Batch(_RECORDS_TAG + _RECORDS_TAG.join(frames), len(frames))


def _frames(path: Path, bytes_max: int) -> Iterator[tuple[bytes, int]]:
    """Give each record with its length before it, and where in the file it ends."""
    rows, done, data = 0, 0, b""
    with path.open("rb") as file:
        while read := file.read(_READ_BYTES):
            data += read
            start = 0
            while (end := _frame_end(data, start)) is not None:
                rows += 1
                if end - start >= bytes_max:
                    raise FileProblem(
                        f"{path.name}: row {rows:,} has {end - start:,} bytes; a batch holds {bytes_max:,}"
                    )
                if end > len(data):
                    rows -= 1
                    break
                yield data[start:end], done + end
                start = end
            done += start
            data = data[start:]
            if len(data) >= _VARINT_BYTES_MAX and _frame_end(data, 0) is None:
                raise FileProblem(f"{path.name}: row {rows + 1:,} has no valid length: is it delimited Protobuf?")
    if data:
        raise FileProblem(f"{path.name}: the file ends within row {rows + 1:,}")


def _frame_end(data: bytes, start: int) -> int | None:
    """Return where the frame at `start` ends, which may be after the data; None if its length is not complete."""
    length = shift = 0
    for position in range(start, min(start + _VARINT_BYTES_MAX, len(data))):
        byte = data[position]
        length |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return position + 1 + length
    return None
