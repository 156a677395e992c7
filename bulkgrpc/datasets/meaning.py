"""What distinguishes two definitions of a dataset, whatever their versions are. Pure."""

from __future__ import annotations

import hashlib
from typing import Any

from google.protobuf.descriptor_pb2 import FileDescriptorSet, FileOptions

from bulkgrpc.datasets.definition import Dataset

_OURS = ("google/", "bulkgrpc/", "buf/")
_OF_LANGUAGES: list[Any] = [
    field.name for field in FileOptions.DESCRIPTOR.fields if field.name not in ("features", "deprecated")
]
"""`go_package` and its like change the code that is generated for clients, and no record."""


def meaning_of(dataset: Dataset) -> tuple[object, ...]:
    """Return what two definitions share if they are the same: files of Google and of bulkgrpc do not count."""
    return (dataset.message_type, dataset.key, dataset.columns, dataset.conflict_policy, _files(dataset))


def digest_of_schema(dataset: Dataset) -> bytes:
    """Return 8 bytes of the SHA-256 of a definition. Stored when it is registered, so that releases need not agree."""
    written = [dataset.message_type.encode(), *_files(dataset)]
    return hashlib.sha256(b"".join(hashlib.sha256(one).digest() for one in written)).digest()[:8]


def _files(dataset: Dataset) -> list[bytes]:
    files = FileDescriptorSet.FromString(dataset.descriptors)
    for file in files.file:
        file.ClearField("source_code_info")
        for name in _OF_LANGUAGES:
            file.options.ClearField(name)
        if not file.options.ByteSize():
            file.ClearField("options")
    return sorted(file.SerializeToString(deterministic=True) for file in files.file if not file.name.startswith(_OURS))
