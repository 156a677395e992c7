"""The descriptors that the codec decodes with: types of the same wire form that keep every value for the checks."""

from __future__ import annotations

from typing import Any, Final

from google.protobuf.descriptor_pb2 import DescriptorProto, FieldDescriptorProto, FileDescriptorProto, FileDescriptorSet

from bulkgrpc.v1 import options_pb2

_OPTION: Any = options_pb2.column  # protoc types its extensions more loosely than the runtime
_FILE: Final = "bulkgrpc/synthesized_types.proto"
_PACKAGE: Final = "bulkgrpc.synthesized"
_FIELDS: Final = {
    "Date": ("year", "month", "day"),
    "TimeOfDay": ("hours", "minutes", "seconds", "nanos"),
}


def for_decoding(files: FileDescriptorSet) -> FileDescriptorSet:
    """Return the files with fields changed to types of the same wire form.

    An enum that is stored as its number becomes an int32. A google.type.Date or TimeOfDay becomes a message of our own.
    ptars would convert it to a date, decode a date that does not exist as 1970-01-01, and encode 1970-01-01 as unset.
    """
    changed = FileDescriptorSet()
    changed.CopyFrom(files)
    for file in changed.file:
        if sum(_change(field) for message in file.message_type for field in _fields(message)):
            file.dependency.append(_FILE)
    changed.file.insert(0, _types())
    return changed


def _fields(message: DescriptorProto) -> list[FieldDescriptorProto]:
    nested = [field for inner in message.nested_type for field in _fields(inner)]
    return [*message.field, *nested]


def _change(field: FieldDescriptorProto) -> bool:
    """Change a field if its type is one of these; return whether it now has a synthesized type."""
    if field.type == FieldDescriptorProto.TYPE_ENUM:
        if field.options.Extensions[_OPTION].type == options_pb2.COLUMN_TYPE_INTEGER:
            field.type = FieldDescriptorProto.TYPE_INT32
            field.ClearField("type_name")
            field.ClearField("default_value")
        return False
    name = field.type_name.removeprefix(".google.type.")
    if name == field.type_name or name not in _FIELDS:
        return False
    field.type_name = f".{_PACKAGE}.{name}"
    return True


def _types() -> FileDescriptorProto:
    file = FileDescriptorProto(name=_FILE, package=_PACKAGE, syntax="proto3")
    for name, fields in _FIELDS.items():
        message = file.message_type.add(name=name)
        for number, field in enumerate(fields, 1):
            message.field.add(
                name=field,
                number=number,
                type=FieldDescriptorProto.TYPE_INT32,
                label=FieldDescriptorProto.LABEL_OPTIONAL,
            )
    return file
