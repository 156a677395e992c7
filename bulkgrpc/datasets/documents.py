"""From Arrow values of messages, lists and maps to JSON texts for `jsonb`: Arrow's kernels only, no Python per record.

The form is Protobuf's JSON with the fields' own names, unset optional fields omitted, 64-bit numbers as numbers.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import ptars
import pyarrow as pa
import pyarrow.compute as pc
from google.protobuf.descriptor import Descriptor, FieldDescriptor

from bulkgrpc.datasets.overrides import message_of

NUL: Final = "\0"
"""Marks a text that has U+0000, which jsonb cannot store. Valid JSON has no raw control characters."""
UNFIT: Final = "\1"
"""Marks a value that JSON cannot represent: a time outside the calendar, an infinite number of a Value."""

TIMESTAMP_US_MIN: Final = -62_135_596_800_000_000
TIMESTAMP_US_MAX: Final = 253_402_300_799_999_999
"""What `google.protobuf.Timestamp` and PostgreSQL's timestamptz can both represent: 0001-01-01 to 9999-12-31."""
DURATION_US_MAX: Final = 315_576_000_000_000_000
"""What `google.protobuf.Duration` may represent: 10,000 years, positive or negative."""

_ALPHABET = np.frombuffer(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/", np.uint8)
_TO_ESCAPE = r'["\\\x01-\x1f]'


class Documents:
    """Turns the values of one message's fields into JSON texts. Not thread-safe.

    message: from the pool that the values were decoded with. A field whose message type contains itself comes as the
    bytes of its messages, from the second on; they are decoded level by level.
    """

    def __init__(self, message: Descriptor, config: ptars.PtarsConfig) -> None:
        self._message = message
        self._config = config
        self._handlers: dict[str, Any] = {}

    def texts(self, path: str, values: pa.Array) -> pa.Array:
        """Return the JSON text of each value of the field at `path`, null where it is not set.

        A text contains NUL or UNFIT exactly where jsonb cannot represent the value.
        """
        *above, last = path.split(".")
        message = self._message
        for step in above:
            message = message_of(message.fields_by_name[step])
        return self._field(values, message.fields_by_name[last])

    def _field(self, values: pa.Array, field: FieldDescriptor) -> pa.Array:
        if pa.types.is_map(values.type):
            return self._map(values, message_of(field))
        if pa.types.is_list(values.type):
            return _in_lists(values, self._value(values.flatten(), field), "[", "]")
        return self._value(values, field)

    def _value(self, values: pa.Array, field: FieldDescriptor) -> pa.Array:
        kind = values.type
        if pa.types.is_struct(kind):
            return self._struct(values, message_of(field))
        if pa.types.is_binary(kind) and field.message_type is not None and not _is_wrapper(field.message_type):
            if values.null_count == len(values):
                return pa.nulls(len(values), pa.string())
            return self._struct(self._decoded(values, field.message_type), field.message_type)
        return _scalars(values)

    def _struct(self, values: pa.StructArray, message: Descriptor) -> pa.Array:
        children = dict(zip((field.name for field in values.type), values.flatten(), strict=True))
        match message.full_name:
            case "google.protobuf.Struct":
                return self._only_valid(self._field(children["fields"], message.fields_by_name["fields"]), values)
            case "google.protobuf.ListValue":
                return self._only_valid(self._field(children["values"], message.fields_by_name["values"]), values)
            case "google.protobuf.Value":
                return self._only_valid(self._any_value(children, message), values)
        if not children:
            return self._only_valid(pa.array(["{}"]).take(pa.array(np.zeros(len(values), np.int32))), values)
        # null_handling="skip" would omit a row whose members are all null (Arrow 26); members contain their commas.
        members = [
            pc.fill_null(
                pc.binary_join_element_wise(f',"{name}":', self._field(child, message.fields_by_name[name]), ""), ""
            )
            for name, child in children.items()
        ]
        joined = pc.ascii_ltrim(pc.binary_join_element_wise(*members, ""), ",")
        return self._only_valid(pc.binary_join_element_wise("{", joined, "}", ""), values)

    def _any_value(self, children: dict[str, pa.Array], message: Descriptor) -> pa.Array:
        number = children["number_value"]
        finite = pc.fill_null(pc.is_finite(number), True)
        texts = [
            pc.if_else(finite, self._field(child, message.fields_by_name[name]), UNFIT)
            if name == "number_value"
            else self._field(child, message.fields_by_name[name])
            for name, child in children.items()
            if name != "null_value"
        ]
        return pc.coalesce(*texts, "null")

    def _map(self, values: pa.MapArray, entry: Descriptor) -> pa.Array:
        # Arrow's list kernels do not accept maps.
        values = values.cast(pa.list_(pa.struct([values.type.key_field, values.type.item_field])))
        keys, items = values.flatten().flatten()
        names = keys if pa.types.is_string(keys.type) else keys.cast(pa.string())
        members = pc.binary_join_element_wise(_quoted(names), self._field(items, entry.fields_by_name["value"]), ":")
        return _in_lists(values, members, "{", "}")

    def _decoded(self, values: pa.Array, message: Descriptor) -> pa.StructArray:
        """Decode the bytes of messages; null where there is none."""
        handler = self._handlers.get(message.full_name)
        if handler is None:
            handler = ptars.HandlerPool([message.file], self._config).get_for_message(message)
            self._handlers[message.full_name] = handler
        found = handler.array_to_record_batch(values.drop_null()).to_struct_array()
        place = np.cumsum(values.is_valid().to_numpy(zero_copy_only=False)) - 1
        return found.take(pa.array(place, mask=values.is_null().to_numpy(zero_copy_only=False)))

    def _only_valid(self, texts: pa.Array, values: pa.Array) -> pa.Array:
        return texts if values.null_count == 0 else pc.if_else(values.is_valid(), texts, pa.scalar(None, pa.string()))


def _is_wrapper(message: Descriptor) -> bool:
    return message.full_name == "google.protobuf.BytesValue"


def _in_lists(values: pa.Array, elements: pa.Array, opening: str, closing: str) -> pa.Array:
    """Join the texts of the elements of lists or maps, which `values.flatten()` gave, with commas."""
    lengths = pc.fill_null(pc.list_value_length(values), 0).to_numpy()
    offsets = np.zeros(len(values) + 1, np.int32)
    np.cumsum(lengths, out=offsets[1:])
    mask = values.is_null() if values.null_count else None
    lists = pa.ListArray.from_arrays(pa.array(offsets), pc.fill_null(elements, "null"), mask=mask)
    return pc.binary_join_element_wise(opening, pc.binary_join(lists, ","), closing, "")


def _scalars(values: pa.Array) -> pa.Array:
    kind = values.type
    if pa.types.is_string(kind):
        return _quoted(values)
    if pa.types.is_binary(kind):
        return pc.binary_join_element_wise('"', base64_of(values), '"', "")
    if pa.types.is_floating(kind):
        return _numbers(values)
    if pa.types.is_timestamp(kind):
        return _times(values)
    if pa.types.is_duration(kind):
        return _durations(values)
    return values.cast(pa.string())


def _quoted(texts: pa.Array) -> pa.Array:
    if pc.any(pc.match_substring_regex(texts, _TO_ESCAPE)).as_py():
        texts = pc.replace_substring(texts, "\\", "\\\\")
        texts = pc.replace_substring(texts, '"', '\\"')
        for code in range(1, 32):
            texts = pc.replace_substring(texts, chr(code), f"\\u{code:04x}")
    return pc.binary_join_element_wise('"', texts, '"', "")


def _numbers(values: pa.Array) -> pa.Array:
    texts = values.cast(pa.string())
    if pc.all(pc.is_finite(values)).as_py() is not False:
        return texts
    names = pc.if_else(pc.is_nan(values), '"NaN"', pc.if_else(pc.greater(values, 0), '"Infinity"', '"-Infinity"'))
    return pc.if_else(pc.is_finite(values), texts, names)


def _times(values: pa.Array) -> pa.Array:
    us = values.cast(pa.int64())
    fits = pc.and_(pc.greater_equal(us, TIMESTAMP_US_MIN), pc.less_equal(us, TIMESTAMP_US_MAX))
    texts = pc.if_else(fits, us, pa.scalar(0, pa.int64())).cast(values.type).cast(pa.string())
    texts = pc.binary_join_element_wise('"', pc.replace_substring(texts, " ", "T"), '"', "")
    return pc.if_else(fits, texts, UNFIT)


def _durations(values: pa.Array) -> pa.Array:
    us = values.cast(pa.int64())
    fits = pc.and_(pc.greater_equal(us, -DURATION_US_MAX), pc.less_equal(us, DURATION_US_MAX))
    size = pc.abs(pc.if_else(fits, us, pa.scalar(0, pa.int64())))
    seconds = pc.divide(size, 1_000_000)
    rest = pc.subtract(size, pc.multiply(seconds, 1_000_000)).cast(pa.string())
    texts = pc.binary_join_element_wise(
        pc.if_else(pc.less(us, 0), '"-', '"'), seconds.cast(pa.string()), ".", pc.utf8_lpad(rest, 6, "0"), 's"', ""
    )
    return pc.if_else(fits, texts, UNFIT)


def base64_of(values: pa.Array) -> pa.Array:
    """Return the base64 of each value, null where it is null."""
    lengths = pc.fill_null(pc.binary_length(values), 0).to_numpy().astype(np.int64)
    data = np.frombuffer(pc.binary_join(_one_list(pc.fill_null(values, b"")), b"")[0].as_py(), np.uint8)
    groups = -(-lengths // 3)
    ends = np.cumsum(groups)
    padded = np.zeros(int(ends[-1]) * 3 if len(ends) else 0, np.uint8)
    shift = (ends - groups) * 3 - (np.cumsum(lengths) - lengths)
    padded[np.arange(len(data)) + np.repeat(shift, lengths)] = data
    first, second, third = padded.reshape(-1, 3).T
    sextets = np.stack(
        [first >> 2, (first & 3) << 4 | second >> 4, (second & 15) << 2 | third >> 6, third & 63], axis=1
    )
    text = _ALPHABET[sextets].reshape(-1)
    missing = groups * 3 - lengths
    text[ends[missing >= 1] * 4 - 1] = ord("=")
    text[ends[missing == 2] * 4 - 2] = ord("=")
    offsets = np.concatenate([[0], ends * 4]).astype(np.int32)
    made = pa.StringArray.from_buffers(len(values), pa.py_buffer(offsets), pa.py_buffer(text))
    return made if values.null_count == 0 else pc.if_else(values.is_valid(), made, pa.scalar(None, pa.string()))


def _one_list(values: pa.Array) -> pa.ListArray:
    return pa.ListArray.from_arrays(pa.array([0, len(values)], pa.int32()), values)
