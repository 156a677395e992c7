"""Which column each field of a message becomes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from google.protobuf.descriptor import Descriptor, FieldDescriptor

TENANT = "tenant"
TIMESTAMP = "google.protobuf.Timestamp"
NESTING_MAX = 8

_SCALARS = {
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
KEY_TYPES = frozenset(
    {"integer", "bigint", "numeric", "boolean", "text", "timestamp with time zone", "double precision", "real"}
)


class InvalidDataset(ValueError):
    """A message cannot be a dataset.

    field: path of the message's field, or the name of the option or request field, at fault.
    """

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field = field


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a dataset's table.

    field: path of the message's field, for instance `venue.code`; "" for `tenant`. type: PostgreSQL's name of the type.
    """

    name: str
    field: str
    type: str
    nullable: bool


def columns_of(descriptor: Descriptor) -> tuple[Column, ...]:
    """Return the columns of a message's fields, nested messages flattened with `_` between the names.

    Raises InvalidDataset for a field that has no column type, or two with the same name.
    """
    columns = tuple(_columns(descriptor, (), nullable=False))
    seen = {TENANT: ""}
    for column in columns:
        if column.name in seen:
            other = seen[column.name] or "the column of that name which every table has"
            raise InvalidDataset(column.field, f"field {column.field} and {other} would both be column {column.name}")
        seen[column.name] = column.field
    return columns


def _columns(descriptor: Descriptor, path: tuple[str, ...], *, nullable: bool) -> Iterator[Column]:
    if len(path) >= NESTING_MAX:
        raise InvalidDataset(".".join(path), f"field {'.'.join(path)}: nested deeper than {NESTING_MAX} messages")
    for field in descriptor.fields:
        steps = (*path, field.name)
        name, where = "_".join(steps).lower(), ".".join(steps)
        if field.type == FieldDescriptor.TYPE_GROUP or (field.message_type and field.is_repeated):
            raise InvalidDataset(where, f"field {where}: maps, groups and repeated messages have no column type")
        if field.message_type is None:
            scalar = _SCALARS[field.type]
            if field.is_repeated:
                yield Column(name, where, f"{scalar}[]", nullable=nullable)
            else:
                yield Column(name, where, scalar, nullable=nullable or field.has_presence)
        elif field.message_type.full_name == TIMESTAMP:
            yield Column(name, where, "timestamp with time zone", nullable=True)
        elif field.message_type.full_name.startswith("google.protobuf."):
            raise InvalidDataset(where, f"field {where}: {field.message_type.full_name} has no column type")
        else:
            yield from _columns(field.message_type, steps, nullable=True)
