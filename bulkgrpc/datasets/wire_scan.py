"""Finds records whose bytes are not in Protobuf's wire format, for all records of a batch at once.

Every step reads one field of every record, with NumPy. What it reports as invalid, protobuf's parser rejects: a field
that is cut off, a varint of more than ten bytes, field number 0, an unknown wire type, the end of a group that did not
start, a string of a proto3 message that is not UTF-8. The scan is not complete: groups and packed fields are not read,
so a record that passes may still be invalid. The parser decides about those.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.descriptor_pb2 import FileDescriptorProto

from bulkgrpc.rejections import Mask

Positions = npt.NDArray[np.int64]

STEPS_MAX = 1000
"""Fields of a message that are read. Bounds the time of a batch in which one record has very many."""
_VARINT_BYTES_MAX = 10
_UTF8 = (
    r"(?s)^(?:[\x00-\x7F]|[\xC2-\xDF][\x80-\xBF]|\xE0[\xA0-\xBF][\x80-\xBF]|[\xE1-\xEC\xEE\xEF][\x80-\xBF]{2}"
    r"|\xED[\x80-\x9F][\x80-\xBF]|\xF0[\x90-\xBF][\x80-\xBF]{2}|[\xF1-\xF3][\x80-\xBF]{3}|\xF4[\x80-\x8F][\x80-\xBF]{2})*$"
)
"""RFC 3629. Over `binary`, Arrow's regular expressions see bytes."""


class _Wire(enum.IntEnum):
    VARINT = 0
    FIXED64 = 1
    LENGTH = 2
    GROUP_START = 3
    GROUP_END = 4
    FIXED32 = 5


@dataclass(frozen=True, slots=True)
class _Cursors:
    """Where each message that is read continues.

    record: the record that it belongs to. message: its type. [position, end): its bytes.
    """

    record: Positions
    message: Positions
    position: Positions
    end: Positions

    def where(self, mask: Mask) -> _Cursors:
        return _Cursors(self.record[mask], self.message[mask], self.position[mask], self.end[mask])

    def and_also(self, other: _Cursors) -> _Cursors:
        return _Cursors(
            np.concatenate([self.record, other.record]),
            np.concatenate([self.message, other.message]),
            np.concatenate([self.position, other.position]),
            np.concatenate([self.end, other.end]),
        )


class WireScan:
    """Scans records of one message type."""

    def __init__(self, message: Descriptor) -> None:
        types = _types(message)
        numbers = {name: number for number, name in enumerate(types)}
        strings, nested = [], {}
        for name, found in types.items():
            proto3 = _is_proto3(found)
            for field in found.fields:
                key = numbers[name] << 32 | field.number
                if field.type == FieldDescriptor.TYPE_STRING and proto3:
                    strings.append(key)
                elif field.type == FieldDescriptor.TYPE_MESSAGE and field.message_type is not None:
                    nested[key] = numbers[field.message_type.full_name]
        self._strings = np.array(sorted(strings), np.int64)
        self._nested = np.array(sorted(nested), np.int64)
        self._nested_types = np.array([nested[key] for key in sorted(nested)], np.int64)

    def invalid(self, records: pa.BinaryArray) -> Mask:
        """Return which records are invalid for certain. Time is linear in the bytes."""
        data, offsets = _buffers(records)
        invalid = np.zeros(len(records), np.bool_)
        cursors = _Cursors(np.arange(len(records)), np.zeros(len(records), np.int64), offsets[:-1], offsets[1:])
        texts: list[_Cursors] = []
        for _ in range(STEPS_MAX):
            cursors = cursors.where((cursors.position < cursors.end) & ~invalid[cursors.record])
            if not len(cursors.record):
                break
            cursors = self._step(data, cursors, invalid, texts)
        for found in texts:
            _check_texts(data, found.where(~invalid[found.record]), invalid)
        return invalid

    def _step(self, data: npt.NDArray[np.uint8], cursors: _Cursors, invalid: Mask, texts: list[_Cursors]) -> _Cursors:
        """Read the next field of every message; return where they continue, and the messages nested in them."""
        tag, tag_end, valid = _varints(data, cursors.position, cursors.end)
        wire, number = tag & 7, tag >> 3
        # The scan does not read past the start of a group, so an end here has no start.
        valid &= (number > 0) & (wire <= _Wire.FIXED32) & (wire != _Wire.GROUP_END)
        group = valid & (wire == _Wire.GROUP_START)
        value, value_end, whole = _varints(data, tag_end, cursors.end)
        is_length, is_varint = wire == _Wire.LENGTH, wire == _Wire.VARINT
        valid &= whole | ~(is_length | is_varint)
        size = np.where(wire == _Wire.FIXED64, 8, np.where(wire == _Wire.FIXED32, 4, 0)).astype(np.int64)
        start = np.where(is_length | is_varint, value_end, tag_end)
        # A length over 2^63 would overflow. No record is that long.
        size = np.where(is_length, np.minimum(value, np.uint64(1 << 62)).astype(np.int64), size)
        stop = start + size
        valid &= group | (stop <= cursors.end)
        invalid[cursors.record[~valid]] = True
        keys = cursors.message << 32 | np.minimum(number, np.uint64(1 << 31)).astype(np.int64)
        inside = valid & is_length
        if (text := inside & _member(keys, self._strings)).any():
            texts.append(_Cursors(cursors.record[text], cursors.message[text], start[text], stop[text]))
        after = _Cursors(cursors.record, cursors.message, stop, cursors.end).where(valid & ~group)
        if (nested := inside & _member(keys, self._nested)).any():
            types = self._nested_types[np.searchsorted(self._nested, keys[nested])]
            after = after.and_also(_Cursors(cursors.record[nested], types, start[nested], stop[nested]))
        return after


def _varints(
    data: npt.NDArray[np.uint8], position: Positions, end: Positions
) -> tuple[npt.NDArray[np.uint64], Positions, Mask]:
    """Return the varint at each position, where it ends, and whether it is whole. data: ten bytes longer than it is."""
    first = data[np.minimum(position, len(data) - 1)]
    value, stop = (first & 0x7F).astype(np.uint64), position + 1
    valid = stop <= end
    (longer,) = np.nonzero(valid & (first >= 0x80))
    if len(longer):
        window = data[position[longer, None] + np.arange(_VARINT_BYTES_MAX)]
        last = window < 0x80
        count = np.argmax(last, axis=1) + 1
        used = np.arange(_VARINT_BYTES_MAX) < count[:, None]
        shifted = (window & 0x7F).astype(np.uint64) << (np.arange(_VARINT_BYTES_MAX, dtype=np.uint64) * np.uint64(7))
        value[longer] = (shifted * used).sum(axis=1, dtype=np.uint64)
        stop[longer] = position[longer] + count
        valid[longer] = last.any(axis=1) & (stop[longer] <= end[longer])
    return value, stop, valid


def _check_texts(data: npt.NDArray[np.uint8], texts: _Cursors, invalid: Mask) -> None:
    lengths = texts.end - texts.position
    offsets = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    gathered = data[np.repeat(texts.position - offsets[:-1], lengths) + np.arange(offsets[-1])]
    if len(gathered) and gathered.max() >= 0x80:
        buffers = [None, pa.py_buffer(offsets.astype(np.int32)), pa.py_buffer(gathered)]
        values = pa.Array.from_buffers(pa.binary(), len(lengths), buffers)
        valid = pc.match_substring_regex(values, _UTF8).to_numpy(zero_copy_only=False)
        invalid[texts.record[~valid]] = True


def _buffers(records: pa.BinaryArray) -> tuple[npt.NDArray[np.uint8], Positions]:
    """Return the bytes of all records, with ten more at the end, and where each record starts; the last ends there."""
    offsets = np.frombuffer(records.buffers()[1], np.int32, len(records) + 1, records.offset * 4).astype(np.int64)
    buffer = records.buffers()[2]
    whole = np.frombuffer(buffer, np.uint8) if buffer is not None else np.empty(0, np.uint8)
    data = np.concatenate([whole[offsets[0] : offsets[-1]], np.zeros(_VARINT_BYTES_MAX, np.uint8)])
    return data, offsets - offsets[0]


def _member(keys: Positions, known: Positions) -> Mask:
    if not len(known):
        return np.zeros(len(keys), np.bool_)
    place = np.minimum(np.searchsorted(known, keys), len(known) - 1)
    found: Mask = known[place] == keys
    return found


def _types(message: Descriptor) -> dict[str, Descriptor]:
    """Return a message's type, first, and all types nested in it, by full name."""
    found = {message.full_name: message}
    waiting = [message]
    while waiting:
        for field in waiting.pop().fields:
            if field.message_type is not None and field.message_type.full_name not in found:
                found[field.message_type.full_name] = field.message_type
                waiting.append(field.message_type)
    return found


def _is_proto3(message: Descriptor) -> bool:
    file = FileDescriptorProto()
    file_descriptor: Any = message.file
    file_descriptor.CopyToProto(file)
    return file.syntax == "proto3"
