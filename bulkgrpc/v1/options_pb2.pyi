import datetime

from google.protobuf import descriptor_pb2 as _descriptor_pb2
from google.protobuf import duration_pb2 as _duration_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ConflictPolicy(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    CONFLICT_POLICY_UNSPECIFIED: _ClassVar[ConflictPolicy]
    CONFLICT_POLICY_IGNORE: _ClassVar[ConflictPolicy]
    CONFLICT_POLICY_UPDATE: _ClassVar[ConflictPolicy]
    CONFLICT_POLICY_REJECT: _ClassVar[ConflictPolicy]
    CONFLICT_POLICY_APPEND: _ClassVar[ConflictPolicy]

class PartitionPeriod(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    PARTITION_PERIOD_UNSPECIFIED: _ClassVar[PartitionPeriod]
    PARTITION_PERIOD_DAY: _ClassVar[PartitionPeriod]
    PARTITION_PERIOD_WEEK: _ClassVar[PartitionPeriod]
    PARTITION_PERIOD_MONTH: _ClassVar[PartitionPeriod]

class ColumnType(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    COLUMN_TYPE_UNSPECIFIED: _ClassVar[ColumnType]
    COLUMN_TYPE_NUMERIC: _ClassVar[ColumnType]
    COLUMN_TYPE_JSONB: _ClassVar[ColumnType]
    COLUMN_TYPE_UUID: _ClassVar[ColumnType]
    COLUMN_TYPE_DATE: _ClassVar[ColumnType]
    COLUMN_TYPE_TIMESTAMPTZ: _ClassVar[ColumnType]
    COLUMN_TYPE_BIGINT: _ClassVar[ColumnType]
    COLUMN_TYPE_INTEGER: _ClassVar[ColumnType]
CONFLICT_POLICY_UNSPECIFIED: ConflictPolicy
CONFLICT_POLICY_IGNORE: ConflictPolicy
CONFLICT_POLICY_UPDATE: ConflictPolicy
CONFLICT_POLICY_REJECT: ConflictPolicy
CONFLICT_POLICY_APPEND: ConflictPolicy
PARTITION_PERIOD_UNSPECIFIED: PartitionPeriod
PARTITION_PERIOD_DAY: PartitionPeriod
PARTITION_PERIOD_WEEK: PartitionPeriod
PARTITION_PERIOD_MONTH: PartitionPeriod
COLUMN_TYPE_UNSPECIFIED: ColumnType
COLUMN_TYPE_NUMERIC: ColumnType
COLUMN_TYPE_JSONB: ColumnType
COLUMN_TYPE_UUID: ColumnType
COLUMN_TYPE_DATE: ColumnType
COLUMN_TYPE_TIMESTAMPTZ: ColumnType
COLUMN_TYPE_BIGINT: ColumnType
COLUMN_TYPE_INTEGER: ColumnType
DATASET_FIELD_NUMBER: _ClassVar[int]
dataset: _descriptor.FieldDescriptor
COLUMN_FIELD_NUMBER: _ClassVar[int]
column: _descriptor.FieldDescriptor

class DatasetOptions(_message.Message):
    __slots__ = ("table", "key", "conflict_policy", "dedupe_window", "lanes", "time_to_live", "hash_partitions", "partition_by_time", "database_collation", "operation", "provenance", "existing_table")
    TABLE_FIELD_NUMBER: _ClassVar[int]
    KEY_FIELD_NUMBER: _ClassVar[int]
    CONFLICT_POLICY_FIELD_NUMBER: _ClassVar[int]
    DEDUPE_WINDOW_FIELD_NUMBER: _ClassVar[int]
    LANES_FIELD_NUMBER: _ClassVar[int]
    TIME_TO_LIVE_FIELD_NUMBER: _ClassVar[int]
    HASH_PARTITIONS_FIELD_NUMBER: _ClassVar[int]
    PARTITION_BY_TIME_FIELD_NUMBER: _ClassVar[int]
    DATABASE_COLLATION_FIELD_NUMBER: _ClassVar[int]
    OPERATION_FIELD_NUMBER: _ClassVar[int]
    PROVENANCE_FIELD_NUMBER: _ClassVar[int]
    EXISTING_TABLE_FIELD_NUMBER: _ClassVar[int]
    table: str
    key: _containers.RepeatedScalarFieldContainer[str]
    conflict_policy: ConflictPolicy
    dedupe_window: _duration_pb2.Duration
    lanes: int
    time_to_live: _duration_pb2.Duration
    hash_partitions: int
    partition_by_time: TimePartitions
    database_collation: bool
    operation: Operation
    provenance: Provenance
    existing_table: ExistingTable
    def __init__(self, table: _Optional[str] = ..., key: _Optional[_Iterable[str]] = ..., conflict_policy: _Optional[_Union[ConflictPolicy, str]] = ..., dedupe_window: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., lanes: _Optional[int] = ..., time_to_live: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., hash_partitions: _Optional[int] = ..., partition_by_time: _Optional[_Union[TimePartitions, _Mapping]] = ..., database_collation: _Optional[bool] = ..., operation: _Optional[_Union[Operation, _Mapping]] = ..., provenance: _Optional[_Union[Provenance, _Mapping]] = ..., existing_table: _Optional[_Union[ExistingTable, _Mapping]] = ...) -> None: ...

class Operation(_message.Message):
    __slots__ = ("field", "delete")
    FIELD_FIELD_NUMBER: _ClassVar[int]
    DELETE_FIELD_NUMBER: _ClassVar[int]
    field: str
    delete: str
    def __init__(self, field: _Optional[str] = ..., delete: _Optional[str] = ...) -> None: ...

class Provenance(_message.Message):
    __slots__ = ("job", "sequence", "write_time")
    JOB_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    WRITE_TIME_FIELD_NUMBER: _ClassVar[int]
    job: str
    sequence: str
    write_time: str
    def __init__(self, job: _Optional[str] = ..., sequence: _Optional[str] = ..., write_time: _Optional[str] = ...) -> None: ...

class ExistingTable(_message.Message):
    __slots__ = ("schema", "table", "tenant_column", "only_tenant", "tenant_not_stored", "key_without_tenant")
    SCHEMA_FIELD_NUMBER: _ClassVar[int]
    TABLE_FIELD_NUMBER: _ClassVar[int]
    TENANT_COLUMN_FIELD_NUMBER: _ClassVar[int]
    ONLY_TENANT_FIELD_NUMBER: _ClassVar[int]
    TENANT_NOT_STORED_FIELD_NUMBER: _ClassVar[int]
    KEY_WITHOUT_TENANT_FIELD_NUMBER: _ClassVar[int]
    schema: str
    table: str
    tenant_column: str
    only_tenant: str
    tenant_not_stored: bool
    key_without_tenant: bool
    def __init__(self, schema: _Optional[str] = ..., table: _Optional[str] = ..., tenant_column: _Optional[str] = ..., only_tenant: _Optional[str] = ..., tenant_not_stored: _Optional[bool] = ..., key_without_tenant: _Optional[bool] = ...) -> None: ...

class TimePartitions(_message.Message):
    __slots__ = ("field", "period")
    FIELD_FIELD_NUMBER: _ClassVar[int]
    PERIOD_FIELD_NUMBER: _ClassVar[int]
    field: str
    period: PartitionPeriod
    def __init__(self, field: _Optional[str] = ..., period: _Optional[_Union[PartitionPeriod, str]] = ...) -> None: ...

class ColumnOptions(_message.Message):
    __slots__ = ("name", "ignore", "type", "not_null", "index", "default_value", "precision", "scale", "brin_index")
    NAME_FIELD_NUMBER: _ClassVar[int]
    IGNORE_FIELD_NUMBER: _ClassVar[int]
    TYPE_FIELD_NUMBER: _ClassVar[int]
    NOT_NULL_FIELD_NUMBER: _ClassVar[int]
    INDEX_FIELD_NUMBER: _ClassVar[int]
    DEFAULT_VALUE_FIELD_NUMBER: _ClassVar[int]
    PRECISION_FIELD_NUMBER: _ClassVar[int]
    SCALE_FIELD_NUMBER: _ClassVar[int]
    BRIN_INDEX_FIELD_NUMBER: _ClassVar[int]
    name: str
    ignore: bool
    type: ColumnType
    not_null: bool
    index: bool
    default_value: str
    precision: int
    scale: int
    brin_index: bool
    def __init__(self, name: _Optional[str] = ..., ignore: _Optional[bool] = ..., type: _Optional[_Union[ColumnType, str]] = ..., not_null: _Optional[bool] = ..., index: _Optional[bool] = ..., default_value: _Optional[str] = ..., precision: _Optional[int] = ..., scale: _Optional[int] = ..., brin_index: _Optional[bool] = ...) -> None: ...
