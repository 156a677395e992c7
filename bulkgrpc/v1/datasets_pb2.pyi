import datetime

from bulkgrpc.v1 import options_pb2 as _options_pb2
from google.protobuf import descriptor_pb2 as _descriptor_pb2
from google.protobuf import duration_pb2 as _duration_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class DatasetState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    DATASET_STATE_UNSPECIFIED: _ClassVar[DatasetState]
    DATASET_STATE_WRITABLE: _ClassVar[DatasetState]
    DATASET_STATE_BLOCKED: _ClassVar[DatasetState]
    DATASET_STATE_ISOLATING: _ClassVar[DatasetState]
    DATASET_STATE_PAUSED: _ClassVar[DatasetState]
    DATASET_STATE_DISCARDING: _ClassVar[DatasetState]
DATASET_STATE_UNSPECIFIED: DatasetState
DATASET_STATE_WRITABLE: DatasetState
DATASET_STATE_BLOCKED: DatasetState
DATASET_STATE_ISOLATING: DatasetState
DATASET_STATE_PAUSED: DatasetState
DATASET_STATE_DISCARDING: DatasetState

class ParkedMessages(_message.Message):
    __slots__ = ("messages", "records", "payload_bytes", "jobs", "oldest_time")
    MESSAGES_FIELD_NUMBER: _ClassVar[int]
    RECORDS_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_BYTES_FIELD_NUMBER: _ClassVar[int]
    JOBS_FIELD_NUMBER: _ClassVar[int]
    OLDEST_TIME_FIELD_NUMBER: _ClassVar[int]
    messages: int
    records: int
    payload_bytes: int
    jobs: int
    oldest_time: _timestamp_pb2.Timestamp
    def __init__(self, messages: _Optional[int] = ..., records: _Optional[int] = ..., payload_bytes: _Optional[int] = ..., jobs: _Optional[int] = ..., oldest_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class TenantParkedMessages(_message.Message):
    __slots__ = ("tenant", "parked")
    TENANT_FIELD_NUMBER: _ClassVar[int]
    PARKED_FIELD_NUMBER: _ClassVar[int]
    tenant: str
    parked: ParkedMessages
    def __init__(self, tenant: _Optional[str] = ..., parked: _Optional[_Union[ParkedMessages, _Mapping]] = ...) -> None: ...

class DatasetStatus(_message.Message):
    __slots__ = ("dataset", "state", "reason", "sqlstate", "block_time", "trials", "next_trial_time", "parked")
    DATASET_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    SQLSTATE_FIELD_NUMBER: _ClassVar[int]
    BLOCK_TIME_FIELD_NUMBER: _ClassVar[int]
    TRIALS_FIELD_NUMBER: _ClassVar[int]
    NEXT_TRIAL_TIME_FIELD_NUMBER: _ClassVar[int]
    PARKED_FIELD_NUMBER: _ClassVar[int]
    dataset: str
    state: DatasetState
    reason: str
    sqlstate: str
    block_time: _timestamp_pb2.Timestamp
    trials: int
    next_trial_time: _timestamp_pb2.Timestamp
    parked: ParkedMessages
    def __init__(self, dataset: _Optional[str] = ..., state: _Optional[_Union[DatasetState, str]] = ..., reason: _Optional[str] = ..., sqlstate: _Optional[str] = ..., block_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., trials: _Optional[int] = ..., next_trial_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., parked: _Optional[_Union[ParkedMessages, _Mapping]] = ...) -> None: ...

class Dataset(_message.Message):
    __slots__ = ("name", "version", "message_type", "table", "key", "conflict_policy", "columns", "descriptors", "create_time", "dedupe_window", "lanes", "time_to_live", "hash_partitions", "time_partition_column", "time_partition_period", "operation", "provenance", "existing_table")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_TYPE_FIELD_NUMBER: _ClassVar[int]
    TABLE_FIELD_NUMBER: _ClassVar[int]
    KEY_FIELD_NUMBER: _ClassVar[int]
    CONFLICT_POLICY_FIELD_NUMBER: _ClassVar[int]
    COLUMNS_FIELD_NUMBER: _ClassVar[int]
    DESCRIPTORS_FIELD_NUMBER: _ClassVar[int]
    CREATE_TIME_FIELD_NUMBER: _ClassVar[int]
    DEDUPE_WINDOW_FIELD_NUMBER: _ClassVar[int]
    LANES_FIELD_NUMBER: _ClassVar[int]
    TIME_TO_LIVE_FIELD_NUMBER: _ClassVar[int]
    HASH_PARTITIONS_FIELD_NUMBER: _ClassVar[int]
    TIME_PARTITION_COLUMN_FIELD_NUMBER: _ClassVar[int]
    TIME_PARTITION_PERIOD_FIELD_NUMBER: _ClassVar[int]
    OPERATION_FIELD_NUMBER: _ClassVar[int]
    PROVENANCE_FIELD_NUMBER: _ClassVar[int]
    EXISTING_TABLE_FIELD_NUMBER: _ClassVar[int]
    name: str
    version: int
    message_type: str
    table: str
    key: _containers.RepeatedScalarFieldContainer[str]
    conflict_policy: _options_pb2.ConflictPolicy
    columns: _containers.RepeatedCompositeFieldContainer[Column]
    descriptors: _descriptor_pb2.FileDescriptorSet
    create_time: _timestamp_pb2.Timestamp
    dedupe_window: _duration_pb2.Duration
    lanes: int
    time_to_live: _duration_pb2.Duration
    hash_partitions: int
    time_partition_column: str
    time_partition_period: _options_pb2.PartitionPeriod
    operation: _options_pb2.Operation
    provenance: _options_pb2.Provenance
    existing_table: _options_pb2.ExistingTable
    def __init__(self, name: _Optional[str] = ..., version: _Optional[int] = ..., message_type: _Optional[str] = ..., table: _Optional[str] = ..., key: _Optional[_Iterable[str]] = ..., conflict_policy: _Optional[_Union[_options_pb2.ConflictPolicy, str]] = ..., columns: _Optional[_Iterable[_Union[Column, _Mapping]]] = ..., descriptors: _Optional[_Union[_descriptor_pb2.FileDescriptorSet, _Mapping]] = ..., create_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., dedupe_window: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., lanes: _Optional[int] = ..., time_to_live: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., hash_partitions: _Optional[int] = ..., time_partition_column: _Optional[str] = ..., time_partition_period: _Optional[_Union[_options_pb2.PartitionPeriod, str]] = ..., operation: _Optional[_Union[_options_pb2.Operation, _Mapping]] = ..., provenance: _Optional[_Union[_options_pb2.Provenance, _Mapping]] = ..., existing_table: _Optional[_Union[_options_pb2.ExistingTable, _Mapping]] = ...) -> None: ...

class ColumnFit(_message.Message):
    __slots__ = ("column", "field", "written_type", "table_type", "verdict", "note")
    class Verdict(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        VERDICT_UNSPECIFIED: _ClassVar[ColumnFit.Verdict]
        VERDICT_FITS: _ClassVar[ColumnFit.Verdict]
        VERDICT_CONVERTED: _ClassVar[ColumnFit.Verdict]
        VERDICT_REFUSED: _ClassVar[ColumnFit.Verdict]
        VERDICT_LEFT_TO_POSTGRES: _ClassVar[ColumnFit.Verdict]
    VERDICT_UNSPECIFIED: ColumnFit.Verdict
    VERDICT_FITS: ColumnFit.Verdict
    VERDICT_CONVERTED: ColumnFit.Verdict
    VERDICT_REFUSED: ColumnFit.Verdict
    VERDICT_LEFT_TO_POSTGRES: ColumnFit.Verdict
    COLUMN_FIELD_NUMBER: _ClassVar[int]
    FIELD_FIELD_NUMBER: _ClassVar[int]
    WRITTEN_TYPE_FIELD_NUMBER: _ClassVar[int]
    TABLE_TYPE_FIELD_NUMBER: _ClassVar[int]
    VERDICT_FIELD_NUMBER: _ClassVar[int]
    NOTE_FIELD_NUMBER: _ClassVar[int]
    column: str
    field: str
    written_type: str
    table_type: str
    verdict: ColumnFit.Verdict
    note: str
    def __init__(self, column: _Optional[str] = ..., field: _Optional[str] = ..., written_type: _Optional[str] = ..., table_type: _Optional[str] = ..., verdict: _Optional[_Union[ColumnFit.Verdict, str]] = ..., note: _Optional[str] = ...) -> None: ...

class Column(_message.Message):
    __slots__ = ("name", "field", "type", "nullable")
    NAME_FIELD_NUMBER: _ClassVar[int]
    FIELD_FIELD_NUMBER: _ClassVar[int]
    TYPE_FIELD_NUMBER: _ClassVar[int]
    NULLABLE_FIELD_NUMBER: _ClassVar[int]
    name: str
    field: str
    type: str
    nullable: bool
    def __init__(self, name: _Optional[str] = ..., field: _Optional[str] = ..., type: _Optional[str] = ..., nullable: _Optional[bool] = ...) -> None: ...

class RegisterDatasetRequest(_message.Message):
    __slots__ = ("descriptors", "message_type", "validate_only")
    DESCRIPTORS_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_TYPE_FIELD_NUMBER: _ClassVar[int]
    VALIDATE_ONLY_FIELD_NUMBER: _ClassVar[int]
    descriptors: _descriptor_pb2.FileDescriptorSet
    message_type: str
    validate_only: bool
    def __init__(self, descriptors: _Optional[_Union[_descriptor_pb2.FileDescriptorSet, _Mapping]] = ..., message_type: _Optional[str] = ..., validate_only: _Optional[bool] = ...) -> None: ...

class RegisterDatasetResponse(_message.Message):
    __slots__ = ("dataset", "statements", "new_version", "column_fits", "refusals")
    DATASET_FIELD_NUMBER: _ClassVar[int]
    STATEMENTS_FIELD_NUMBER: _ClassVar[int]
    NEW_VERSION_FIELD_NUMBER: _ClassVar[int]
    COLUMN_FITS_FIELD_NUMBER: _ClassVar[int]
    REFUSALS_FIELD_NUMBER: _ClassVar[int]
    dataset: Dataset
    statements: _containers.RepeatedScalarFieldContainer[str]
    new_version: bool
    column_fits: _containers.RepeatedCompositeFieldContainer[ColumnFit]
    refusals: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, dataset: _Optional[_Union[Dataset, _Mapping]] = ..., statements: _Optional[_Iterable[str]] = ..., new_version: _Optional[bool] = ..., column_fits: _Optional[_Iterable[_Union[ColumnFit, _Mapping]]] = ..., refusals: _Optional[_Iterable[str]] = ...) -> None: ...

class GetDatasetRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class GetDatasetResponse(_message.Message):
    __slots__ = ("dataset",)
    DATASET_FIELD_NUMBER: _ClassVar[int]
    dataset: Dataset
    def __init__(self, dataset: _Optional[_Union[Dataset, _Mapping]] = ...) -> None: ...

class DeleteDatasetRequest(_message.Message):
    __slots__ = ("name", "drop_table")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DROP_TABLE_FIELD_NUMBER: _ClassVar[int]
    name: str
    drop_table: bool
    def __init__(self, name: _Optional[str] = ..., drop_table: _Optional[bool] = ...) -> None: ...

class DeleteDatasetResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetDatasetStatusRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class GetDatasetStatusResponse(_message.Message):
    __slots__ = ("status",)
    STATUS_FIELD_NUMBER: _ClassVar[int]
    status: DatasetStatus
    def __init__(self, status: _Optional[_Union[DatasetStatus, _Mapping]] = ...) -> None: ...

class PauseDatasetRequest(_message.Message):
    __slots__ = ("name", "reason")
    NAME_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    name: str
    reason: str
    def __init__(self, name: _Optional[str] = ..., reason: _Optional[str] = ...) -> None: ...

class PauseDatasetResponse(_message.Message):
    __slots__ = ("status",)
    STATUS_FIELD_NUMBER: _ClassVar[int]
    status: DatasetStatus
    def __init__(self, status: _Optional[_Union[DatasetStatus, _Mapping]] = ...) -> None: ...

class ResumeDatasetRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class ResumeDatasetResponse(_message.Message):
    __slots__ = ("status",)
    STATUS_FIELD_NUMBER: _ClassVar[int]
    status: DatasetStatus
    def __init__(self, status: _Optional[_Union[DatasetStatus, _Mapping]] = ...) -> None: ...

class DiscardParkedRequest(_message.Message):
    __slots__ = ("name", "validate_only")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VALIDATE_ONLY_FIELD_NUMBER: _ClassVar[int]
    name: str
    validate_only: bool
    def __init__(self, name: _Optional[str] = ..., validate_only: _Optional[bool] = ...) -> None: ...

class DiscardParkedResponse(_message.Message):
    __slots__ = ("status", "discarded", "tenants")
    STATUS_FIELD_NUMBER: _ClassVar[int]
    DISCARDED_FIELD_NUMBER: _ClassVar[int]
    TENANTS_FIELD_NUMBER: _ClassVar[int]
    status: DatasetStatus
    discarded: ParkedMessages
    tenants: _containers.RepeatedCompositeFieldContainer[TenantParkedMessages]
    def __init__(self, status: _Optional[_Union[DatasetStatus, _Mapping]] = ..., discarded: _Optional[_Union[ParkedMessages, _Mapping]] = ..., tenants: _Optional[_Iterable[_Union[TenantParkedMessages, _Mapping]]] = ...) -> None: ...

class ListDatasetsRequest(_message.Message):
    __slots__ = ("page_size", "page_token")
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    page_size: int
    page_token: str
    def __init__(self, page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class ListDatasetsResponse(_message.Message):
    __slots__ = ("datasets", "next_page_token")
    DATASETS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    datasets: _containers.RepeatedCompositeFieldContainer[Dataset]
    next_page_token: str
    def __init__(self, datasets: _Optional[_Iterable[_Union[Dataset, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class ListDatasetVersionsRequest(_message.Message):
    __slots__ = ("parent", "page_size", "page_token")
    PARENT_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    parent: str
    page_size: int
    page_token: str
    def __init__(self, parent: _Optional[str] = ..., page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class ListDatasetVersionsResponse(_message.Message):
    __slots__ = ("datasets", "next_page_token")
    DATASETS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    datasets: _containers.RepeatedCompositeFieldContainer[Dataset]
    next_page_token: str
    def __init__(self, datasets: _Optional[_Iterable[_Union[Dataset, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...
