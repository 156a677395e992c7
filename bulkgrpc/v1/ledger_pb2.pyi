import datetime

from bulkgrpc.v1 import datasets_pb2 as _datasets_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class PartitionPosition(_message.Message):
    __slots__ = ("partition", "next_offset", "owner_epoch", "stop_reason", "stop_time")
    PARTITION_FIELD_NUMBER: _ClassVar[int]
    NEXT_OFFSET_FIELD_NUMBER: _ClassVar[int]
    OWNER_EPOCH_FIELD_NUMBER: _ClassVar[int]
    STOP_REASON_FIELD_NUMBER: _ClassVar[int]
    STOP_TIME_FIELD_NUMBER: _ClassVar[int]
    partition: int
    next_offset: int
    owner_epoch: int
    stop_reason: str
    stop_time: _timestamp_pb2.Timestamp
    def __init__(self, partition: _Optional[int] = ..., next_offset: _Optional[int] = ..., owner_epoch: _Optional[int] = ..., stop_reason: _Optional[str] = ..., stop_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class ParkedQueue(_message.Message):
    __slots__ = ("partition", "tenant", "dataset", "parked", "reason", "trials")
    PARTITION_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    DATASET_FIELD_NUMBER: _ClassVar[int]
    PARKED_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    TRIALS_FIELD_NUMBER: _ClassVar[int]
    partition: int
    tenant: str
    dataset: str
    parked: _datasets_pb2.ParkedMessages
    reason: str
    trials: int
    def __init__(self, partition: _Optional[int] = ..., tenant: _Optional[str] = ..., dataset: _Optional[str] = ..., parked: _Optional[_Union[_datasets_pb2.ParkedMessages, _Mapping]] = ..., reason: _Optional[str] = ..., trials: _Optional[int] = ...) -> None: ...

class GetLedgerRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetLedgerResponse(_message.Message):
    __slots__ = ("topic", "partitions", "queues", "omitted_queues")
    TOPIC_FIELD_NUMBER: _ClassVar[int]
    PARTITIONS_FIELD_NUMBER: _ClassVar[int]
    QUEUES_FIELD_NUMBER: _ClassVar[int]
    OMITTED_QUEUES_FIELD_NUMBER: _ClassVar[int]
    topic: str
    partitions: _containers.RepeatedCompositeFieldContainer[PartitionPosition]
    queues: _containers.RepeatedCompositeFieldContainer[ParkedQueue]
    omitted_queues: int
    def __init__(self, topic: _Optional[str] = ..., partitions: _Optional[_Iterable[_Union[PartitionPosition, _Mapping]]] = ..., queues: _Optional[_Iterable[_Union[ParkedQueue, _Mapping]]] = ..., omitted_queues: _Optional[int] = ...) -> None: ...
