from bulkgrpc.v1 import ingest_pb2 as _ingest_pb2
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class StreamMessage(_message.Message):
    __slots__ = ("header", "batch", "seal")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    BATCH_FIELD_NUMBER: _ClassVar[int]
    SEAL_FIELD_NUMBER: _ClassVar[int]
    header: _ingest_pb2.JobHeader
    batch: bytes
    seal: _ingest_pb2.Seal
    def __init__(self, header: _Optional[_Union[_ingest_pb2.JobHeader, _Mapping]] = ..., batch: _Optional[bytes] = ..., seal: _Optional[_Union[_ingest_pb2.Seal, _Mapping]] = ...) -> None: ...
