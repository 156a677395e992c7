"""What distinguishes two definitions of a dataset, whatever their versions are. Pure."""

from __future__ import annotations

import hashlib

from google.protobuf.descriptor_pb2 import FileDescriptorSet

from bulkgrpc.datasets.definition import Dataset

_OURS = ("google/", "bulkgrpc/", "buf/")


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
    return sorted(file.SerializeToString(deterministic=True) for file in files.file if not file.name.startswith(_OURS))
