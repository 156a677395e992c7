"""Which records delete the row of their key: the option `operation` of datasets whose policy is update. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from google.protobuf.descriptor import Descriptor

from bulkgrpc.datasets.overrides import InvalidDataset, column_options
from bulkgrpc.v1 import options_pb2

DELETE = "bulkgrpc_delete"
"""Name of the column of staged rows that says whether the row is to be deleted."""


@dataclass(frozen=True, slots=True)
class Operation:
    """How a record says whether it writes or deletes its row.

    field: an enum field of the message, which has no column. delete: name of its value that deletes. values: names of
    all its values; empty in a client, which does not need them.
    """

    field: str
    delete: str
    values: tuple[str, ...]


def operation_of(options: options_pb2.DatasetOptions, descriptor: Descriptor) -> Operation | None:
    """Return what the option `operation` says, or None if it is not set. Raises InvalidDataset."""
    if not options.HasField("operation"):
        return None
    asked = options.operation
    if options.conflict_policy != options_pb2.CONFLICT_POLICY_UPDATE:
        raise InvalidDataset("operation", "operation is only of a dataset with CONFLICT_POLICY_UPDATE: set that, too")
    if options.HasField("dedupe_window"):
        raise InvalidDataset(
            "operation",
            "operation and dedupe_window: a record that is sent again, to write or delete its row once more, would be "
            "a duplicate: leave dedupe_window out",
        )
    field = descriptor.fields_by_name.get(asked.field)
    if field is None or field.enum_type is None or field.is_repeated:
        raise InvalidDataset(
            "operation.field", f"operation.field {asked.field!r} is no enum field of the message, or is repeated"
        )
    if asked.field in options.key:
        raise InvalidDataset("operation.field", f"operation.field {asked.field} has no column, so it cannot be a key")
    if column_options(field).SerializeToString():
        raise InvalidDataset(
            "operation.field", f"field {asked.field} is the operation and has no column: leave out its column options"
        )
    value = field.enum_type.values_by_name.get(asked.delete)
    if value is None or value.number == 0:
        raise InvalidDataset(
            "operation.delete",
            f"operation.delete {asked.delete!r} is no value of {field.enum_type.full_name}, or is 0, which a record "
            "has that does not set the field: name another one",
        )
    if len({value.number for value in field.enum_type.values}) < len(field.enum_type.values):
        raise InvalidDataset(
            "operation.field", f"{field.enum_type.full_name} has two names for a value (allow_alias): remove one"
        )
    return Operation(asked.field, asked.delete, tuple(value.name for value in field.enum_type.values))
