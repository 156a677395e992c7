"""The wire form of `repeated T records = 2`, without a parser."""

from __future__ import annotations

_RECORDS_TAG = b"\x12"
"""Field 2, length-delimited: `RecordBatch.records`."""


def varint(number: int) -> bytes:
    """Encode a number, 0 or more, as a Protobuf varint."""
    encoded = bytearray()
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)


def frame(record: bytes) -> bytes:
    """Return a serialized message as a record of a batch. Concatenated frames are a batch's payload."""
    return _RECORDS_TAG + varint(len(record)) + record
