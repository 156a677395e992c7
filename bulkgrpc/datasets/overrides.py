"""The types of columns: what each field's type becomes, and what its `(bulkgrpc.v1.column)` option makes of it."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.descriptor_pb2 import FieldOptions

from bulkgrpc.v1 import options_pb2

_OPTION: Any = options_pb2.column  # protoc types its extensions more loosely than the runtime
DECIMAL_DIGITS_MAX = 38

SCALARS = {
    FieldDescriptor.TYPE_DOUBLE: "double precision",
    FieldDescriptor.TYPE_FLOAT: "real",
    FieldDescriptor.TYPE_INT32: "integer",
    FieldDescriptor.TYPE_SINT32: "integer",
    FieldDescriptor.TYPE_SFIXED32: "integer",
    FieldDescriptor.TYPE_INT64: "bigint",
    FieldDescriptor.TYPE_SINT64: "bigint",
    FieldDescriptor.TYPE_SFIXED64: "bigint",
    FieldDescriptor.TYPE_UINT32: "bigint",
    FieldDescriptor.TYPE_FIXED32: "bigint",
    FieldDescriptor.TYPE_UINT64: "numeric",
    FieldDescriptor.TYPE_FIXED64: "numeric",
    FieldDescriptor.TYPE_BOOL: "boolean",
    FieldDescriptor.TYPE_STRING: "text",
    FieldDescriptor.TYPE_BYTES: "bytea",
    FieldDescriptor.TYPE_ENUM: "text",
}
"""PostgreSQL's type of each scalar."""


class InvalidDataset(ValueError):
    """A message cannot be a dataset.

    field: path of the message's field, or the name of the option or request field, at fault.
    """

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field = field


class Kind(enum.Enum):
    """How a column's values come from its field's."""

    PLAIN = enum.auto()
    """As they are."""
    JSON = enum.auto()
    """A message, a list or a map, as jsonb."""
    JSON_TEXT = enum.auto()
    """A text that is JSON already."""
    NUMERIC = enum.auto()
    """A text that is a decimal number."""
    DECIMAL = enum.auto()
    """A google.type.Decimal, as its text."""
    UUID_TEXT = enum.auto()
    """A text that is a UUID."""
    UUID_BYTES = enum.auto()
    """The 16 bytes of a UUID."""
    DATE = enum.auto()
    """A google.type.Date."""
    DATE_TEXT = enum.auto()
    """A text that is a date."""
    TIME = enum.auto()
    """A google.type.TimeOfDay."""
    TIMESTAMP_TEXT = enum.auto()
    """A text that is a time as in RFC 3339."""
    BIGINT = enum.auto()
    """A uint64 that must fit a bigint."""


@dataclass(frozen=True, slots=True)
class Stored:
    """What a field's values are stored as. digits: precision and scale of a NUMERIC."""

    type: str
    kind: Kind = Kind.PLAIN
    digits: tuple[int, int] = (0, 0)


_TEXT = FieldDescriptor.TYPE_STRING
_BYTES = FieldDescriptor.TYPE_BYTES
_UNSIGNED = (FieldDescriptor.TYPE_UINT64, FieldDescriptor.TYPE_FIXED64)
_OF_TYPE = {
    (options_pb2.COLUMN_TYPE_JSONB, _TEXT): Stored("jsonb", Kind.JSON_TEXT),
    (options_pb2.COLUMN_TYPE_UUID, _TEXT): Stored("uuid", Kind.UUID_TEXT),
    (options_pb2.COLUMN_TYPE_UUID, _BYTES): Stored("uuid", Kind.UUID_BYTES),
    (options_pb2.COLUMN_TYPE_DATE, _TEXT): Stored("date", Kind.DATE_TEXT),
    (options_pb2.COLUMN_TYPE_TIMESTAMPTZ, _TEXT): Stored("timestamp with time zone", Kind.TIMESTAMP_TEXT),
    (options_pb2.COLUMN_TYPE_BIGINT, _UNSIGNED[0]): Stored("bigint", Kind.BIGINT),
    (options_pb2.COLUMN_TYPE_BIGINT, _UNSIGNED[1]): Stored("bigint", Kind.BIGINT),
    # The codec reads such an enum as the int32 that it is on the wire.
    (options_pb2.COLUMN_TYPE_INTEGER, FieldDescriptor.TYPE_ENUM): Stored("integer"),
}
_WAYS_OUT = {
    options_pb2.COLUMN_TYPE_NUMERIC: "a string or a google.type.Decimal",
    options_pb2.COLUMN_TYPE_JSONB: "a string, a message, a repeated message or a map",
    options_pb2.COLUMN_TYPE_UUID: "a string or bytes",
    options_pb2.COLUMN_TYPE_DATE: "a string",
    options_pb2.COLUMN_TYPE_TIMESTAMPTZ: "a string",
    options_pb2.COLUMN_TYPE_BIGINT: "a uint64 or fixed64",
    options_pb2.COLUMN_TYPE_INTEGER: "an enum",
}


def message_of(field: FieldDescriptor) -> Descriptor:
    """Return the message type of a field that has one."""
    assert field.message_type is not None  # noqa: S101 — the callers ask of messages alone
    return field.message_type


def column_options(field: FieldDescriptor) -> options_pb2.ColumnOptions:
    """Return a field's column option, empty if it has none."""
    # The pool is not the generated code's: read the extension by parsing the options again with our class.
    options: options_pb2.ColumnOptions = FieldOptions.FromString(field.GetOptions().SerializeToString()).Extensions[
        _OPTION
    ]
    return options


def overridden(field: FieldDescriptor, options: options_pb2.ColumnOptions, where: str) -> Stored | None:
    """Return what a scalar field is stored as if its option gives it a type, else None.

    Raises InvalidDataset if that type is not for this field.
    """
    wanted = options.type
    if wanted == options_pb2.COLUMN_TYPE_UNSPECIFIED:
        if options.precision or options.scale:
            raise InvalidDataset(where, f"field {where}: precision and scale are of type COLUMN_TYPE_NUMERIC alone")
        return None
    decimal = field.message_type is not None and field.message_type.full_name == "google.type.Decimal"
    text = field.type == _TEXT or decimal
    if wanted == options_pb2.COLUMN_TYPE_NUMERIC and text and not field.is_repeated:
        return _numeric(options, where)
    stored = _OF_TYPE.get((wanted, field.type))
    if stored is None or (field.is_repeated and wanted != options_pb2.COLUMN_TYPE_INTEGER):
        name = options_pb2.ColumnType.Name(wanted) if wanted in _WAYS_OUT else str(wanted)
        raise InvalidDataset(
            where,
            f"field {where}: type {name} is not for this field, it is of {_WAYS_OUT.get(wanted, 'no field at all')}: "
            "leave the type out, or give the field another one",
        )
    return Stored(f"{stored.type}[]") if field.is_repeated else stored


def _numeric(options: options_pb2.ColumnOptions, where: str) -> Stored:
    precision, scale = options.precision or DECIMAL_DIGITS_MAX, options.scale
    if not (1 <= precision <= DECIMAL_DIGITS_MAX and 0 <= scale <= precision):
        raise InvalidDataset(
            where,
            f"field {where}: numeric({precision}, {scale}) is not possible: precision 1 to {DECIMAL_DIGITS_MAX}, "
            "scale 0 to precision",
        )
    return Stored(f"numeric({precision},{scale})", Kind.NUMERIC, (precision, scale))
