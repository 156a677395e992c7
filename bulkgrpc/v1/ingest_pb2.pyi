from bulkgrpc.v1 import jobs_pb2 as _jobs_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class JobHeader(_message.Message):
    __slots__ = ("dataset", "idempotency_key", "labels", "session_id", "first_sequence", "options", "dataset_version")
    class LabelsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    DATASET_FIELD_NUMBER: _ClassVar[int]
    IDEMPOTENCY_KEY_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    FIRST_SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    OPTIONS_FIELD_NUMBER: _ClassVar[int]
    DATASET_VERSION_FIELD_NUMBER: _ClassVar[int]
    dataset: str
    idempotency_key: str
    labels: _containers.ScalarMap[str, str]
    session_id: str
    first_sequence: int
    options: _jobs_pb2.JobOptions
    dataset_version: int
    def __init__(self, dataset: _Optional[str] = ..., idempotency_key: _Optional[str] = ..., labels: _Optional[_Mapping[str, str]] = ..., session_id: _Optional[str] = ..., first_sequence: _Optional[int] = ..., options: _Optional[_Union[_jobs_pb2.JobOptions, _Mapping]] = ..., dataset_version: _Optional[int] = ...) -> None: ...

class RecordBatch(_message.Message):
    __slots__ = ("sequence", "records")
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    RECORDS_FIELD_NUMBER: _ClassVar[int]
    sequence: int
    records: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, sequence: _Optional[int] = ..., records: _Optional[_Iterable[bytes]] = ...) -> None: ...

class Seal(_message.Message):
    __slots__ = ("batch_count",)
    BATCH_COUNT_FIELD_NUMBER: _ClassVar[int]
    batch_count: int
    def __init__(self, batch_count: _Optional[int] = ...) -> None: ...

class SubmitRecordsRequest(_message.Message):
    __slots__ = ("header", "batch", "seal")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    BATCH_FIELD_NUMBER: _ClassVar[int]
    SEAL_FIELD_NUMBER: _ClassVar[int]
    header: JobHeader
    batch: RecordBatch
    seal: Seal
    def __init__(self, header: _Optional[_Union[JobHeader, _Mapping]] = ..., batch: _Optional[_Union[RecordBatch, _Mapping]] = ..., seal: _Optional[_Union[Seal, _Mapping]] = ...) -> None: ...

class SubmitRecordsResponse(_message.Message):
    __slots__ = ("job", "replayed")
    JOB_FIELD_NUMBER: _ClassVar[int]
    REPLAYED_FIELD_NUMBER: _ClassVar[int]
    job: _jobs_pb2.Job
    replayed: bool
    def __init__(self, job: _Optional[_Union[_jobs_pb2.Job, _Mapping]] = ..., replayed: _Optional[bool] = ...) -> None: ...

class StreamRecordsRequest(_message.Message):
    __slots__ = ("header", "batch", "seal")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    BATCH_FIELD_NUMBER: _ClassVar[int]
    SEAL_FIELD_NUMBER: _ClassVar[int]
    header: JobHeader
    batch: RecordBatch
    seal: Seal
    def __init__(self, header: _Optional[_Union[JobHeader, _Mapping]] = ..., batch: _Optional[_Union[RecordBatch, _Mapping]] = ..., seal: _Optional[_Union[Seal, _Mapping]] = ...) -> None: ...

class StreamRecordsResponse(_message.Message):
    __slots__ = ("opened", "acknowledged", "sealed")
    OPENED_FIELD_NUMBER: _ClassVar[int]
    ACKNOWLEDGED_FIELD_NUMBER: _ClassVar[int]
    SEALED_FIELD_NUMBER: _ClassVar[int]
    opened: JobOpened
    acknowledged: BatchesAcknowledged
    sealed: JobSealed
    def __init__(self, opened: _Optional[_Union[JobOpened, _Mapping]] = ..., acknowledged: _Optional[_Union[BatchesAcknowledged, _Mapping]] = ..., sealed: _Optional[_Union[JobSealed, _Mapping]] = ...) -> None: ...

class JobOpened(_message.Message):
    __slots__ = ("job", "next_sequence", "replayed")
    JOB_FIELD_NUMBER: _ClassVar[int]
    NEXT_SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    REPLAYED_FIELD_NUMBER: _ClassVar[int]
    job: _jobs_pb2.Job
    next_sequence: int
    replayed: bool
    def __init__(self, job: _Optional[_Union[_jobs_pb2.Job, _Mapping]] = ..., next_sequence: _Optional[int] = ..., replayed: _Optional[bool] = ...) -> None: ...

class BatchesAcknowledged(_message.Message):
    __slots__ = ("next_sequence",)
    NEXT_SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    next_sequence: int
    def __init__(self, next_sequence: _Optional[int] = ...) -> None: ...

class JobSealed(_message.Message):
    __slots__ = ("job", "replayed")
    JOB_FIELD_NUMBER: _ClassVar[int]
    REPLAYED_FIELD_NUMBER: _ClassVar[int]
    job: _jobs_pb2.Job
    replayed: bool
    def __init__(self, job: _Optional[_Union[_jobs_pb2.Job, _Mapping]] = ..., replayed: _Optional[bool] = ...) -> None: ...
