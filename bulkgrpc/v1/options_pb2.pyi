from google.protobuf import descriptor_pb2 as _descriptor_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ConflictPolicy(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    CONFLICT_POLICY_UNSPECIFIED: _ClassVar[ConflictPolicy]
    CONFLICT_POLICY_IGNORE: _ClassVar[ConflictPolicy]
CONFLICT_POLICY_UNSPECIFIED: ConflictPolicy
CONFLICT_POLICY_IGNORE: ConflictPolicy
DATASET_FIELD_NUMBER: _ClassVar[int]
dataset: _descriptor.FieldDescriptor

class DatasetOptions(_message.Message):
    __slots__ = ("table", "key", "conflict")
    TABLE_FIELD_NUMBER: _ClassVar[int]
    KEY_FIELD_NUMBER: _ClassVar[int]
    CONFLICT_FIELD_NUMBER: _ClassVar[int]
    table: str
    key: _containers.RepeatedScalarFieldContainer[str]
    conflict: ConflictPolicy
    def __init__(self, table: _Optional[str] = ..., key: _Optional[_Iterable[str]] = ..., conflict: _Optional[_Union[ConflictPolicy, str]] = ...) -> None: ...
