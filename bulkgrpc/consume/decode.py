"""Decodes a chunk: one native call per dataset version, before the transaction begins."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from bulkgrpc.consume.assembly import Chunk
from bulkgrpc.datasets.codec import BatchCodec
from bulkgrpc.datasets.decoding import Payload
from bulkgrpc.datasets.rows import Rows, to_rows
from bulkgrpc.model import Kind


@dataclass(frozen=True, slots=True)
class Group:
    """The rows of one dataset version in a chunk. items: of each payload of `rows`, its index in the chunk's items."""

    rows: Rows
    items: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class PreparedChunk:
    """A chunk with its payloads decoded: all that takes processor time is done before the transaction begins."""

    chunk: Chunk
    groups: tuple[Group, ...]


def prepare(chunk: Chunk, codec_of: Callable[[str, int], BatchCodec]) -> PreparedChunk:
    """Decode a chunk's payloads, a native call a dataset version.

    codec_of: gives the codec of a dataset's name and version; what it raises comes through.
    """
    members: dict[tuple[str, int], list[int]] = {}
    for index, item in enumerate(chunk.items):
        if item.message.kind is Kind.BATCH:
            members.setdefault((item.message.spec.dataset, item.message.spec.dataset_version), []).append(index)
    groups = []
    # In the same order in every worker: those who write to the same tables wait for each other in one order.
    for (name, version), indices in sorted(members.items()):
        items = [chunk.items[index] for index in indices]
        payloads = [Payload(item.message.spec.key.tenant, item.message.records, item.payload) for item in items]
        groups.append(Group(to_rows(codec_of(name, version), payloads), tuple(indices)))
    return PreparedChunk(chunk, tuple(groups))
