"""Decodes a chunk: one native call per dataset version, before the transaction begins."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol

from bulkgrpc.consume.assembly import Chunk, Received
from bulkgrpc.consume.failures import DAMAGED_HEADERS, Failure, Where
from bulkgrpc.datasets.codec import BatchCodec
from bulkgrpc.datasets.decoding import Payload
from bulkgrpc.datasets.rows import Rows, to_rows
from bulkgrpc.model import Kind, Message


class DatasetNotFound(Exception):
    """A message names a dataset version that the registry does not have, or that cannot be decoded.

    missing_version: the version, if the registry does not have it; else 0.
    """

    def __init__(self, message: str, missing_version: int = 0) -> None:
        super().__init__(message)
        self.missing_version = missing_version


@dataclass(frozen=True, slots=True)
class Group:
    """The rows of one dataset version in a chunk. items: of each payload of `rows`, its index in the chunk's items."""

    rows: Rows
    items: tuple[int, ...]


class DecodableChunk(Protocol):
    """A chunk to be written. prepared: with its payloads decoded, now at the latest."""

    @property
    def chunk(self) -> Chunk: ...  # noqa: D102
    @property
    def prepared(self) -> PreparedChunk: ...  # noqa: D102


@dataclass(frozen=True, slots=True)
class PreparedChunk:
    """A chunk with its payloads decoded: all that takes processor time is done before its rows are written.

    undecodable: the datasets whose payloads could not be decoded, and why. unreadable: by index of the item, why no
    attempt can read a message before something else changes. The messages of both are in no group.
    """

    chunk: Chunk
    groups: tuple[Group, ...]
    undecodable: Mapping[str, Failure] = field(default_factory=dict)
    unreadable: Mapping[int, Failure] = field(default_factory=dict)

    @property
    def prepared(self) -> PreparedChunk:
        """See `DecodableChunk`."""
        return self

    @property
    def undecoded(self) -> Mapping[int, Failure]:
        """By index, the items that cannot be applied, and why. Seals of undecodable datasets are among them."""
        if not (self.undecodable or self.unreadable):
            return {}
        items = enumerate(self.chunk.items)
        names = {index: item.message.spec.dataset for index, item in items}
        failed = {index: self.undecodable[name] for index, name in names.items() if name in self.undecodable}
        return {**failed, **self.unreadable}


@dataclass(frozen=True)
class LoadedChunk:
    """A chunk whose datasets are loaded. codec_of: as for `prepare`."""

    chunk: Chunk
    codec_of: Callable[[str, int], BatchCodec]

    @cached_property
    def prepared(self) -> PreparedChunk:
        """See `DecodableChunk`: decoded when it is asked for first."""
        return prepare(self.chunk, self.codec_of)

    @property
    def waits(self) -> bool:
        """Whether decoding would wait for another thread, which decodes records of the same dataset version."""
        batches = (item.message for item in self.chunk.items if item.message.kind is Kind.BATCH)
        versions = {(message.spec.dataset, message.spec.dataset_version) for message in batches}
        return any(self._is_in_use(*version) for version in versions)

    def _is_in_use(self, name: str, version: int) -> bool:
        try:
            return self.codec_of(name, version).in_use.locked()
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException:  # noqa: BLE001 — `prepare` reports it for its dataset
            return False


def prepare(chunk: Chunk, codec_of: Callable[[str, int], BatchCodec]) -> PreparedChunk:
    """Decode a chunk's payloads, one native call per dataset version.

    codec_of: returns the codec of a dataset's name and version. If it raises DatasetNotFound, the messages of that
    version are unreadable. What else it raises, and what decoding raises beyond the records that it rejects, concerns
    that dataset only: see `PreparedChunk.undecodable`.
    """
    members: dict[tuple[str, int, bytes], list[int]] = {}
    unreadable = dict[int, Failure]()
    for index, item in enumerate(chunk.items):
        if item.message.damage:
            dataset = item.message.spec.dataset
            unreadable[index] = Failure(Where.DECODE, "", DAMAGED_HEADERS, item.message.damage, dataset=dataset)
        elif item.message.kind is Kind.BATCH:
            members.setdefault(version_of(item.message), []).append(index)
    groups, undecodable = [], dict[str, Failure]()
    # Sorted, as in every worker: those that write the same tables wait for each other in one order.
    for (name, version, schema), indices in sorted(members.items()):
        items = [chunk.items[index] for index in indices]
        payloads = [_payload(item) for item in items]
        try:
            codec = check_schema(codec_of(name, version), schema)
            groups.append(Group(to_rows(codec, payloads), tuple(indices)))
        except (KeyboardInterrupt, SystemExit):
            raise
        except DatasetNotFound as error:
            failure = Failure(
                Where.DECODE, "", type(error).__name__, str(error), dataset=name, missing_version=error.missing_version
            )
            unreadable |= dict.fromkeys(indices, failure)
        except BaseException as error:  # noqa: BLE001 — a panic of native code is an exception that is no Exception
            undecodable[name] = Failure(Where.DECODE, "", type(error).__name__, str(error), dataset=name)
    kept = tuple(group for group in groups if group.rows.dataset.name not in undecodable)
    return PreparedChunk(chunk, kept, undecodable, unreadable)


def _payload(item: Received) -> Payload:
    message, key = item.message, item.message.spec.key
    return Payload(key.tenant, message.records, item.payload, key.job_id.bytes, message.sequence)


def version_of(message: Message) -> tuple[str, int, bytes]:
    """Return the dataset version of a batch: name, version, and digest of the definition that its server knew."""
    return message.spec.dataset, message.spec.dataset_version, message.schema


def check_schema(codec: BatchCodec, schema: bytes) -> BatchCodec:
    """Return a codec if it is of the definition with this digest; one that is not known is empty.

    A registry that was restored gives version numbers again, perhaps to another message. Raises DatasetNotFound then.
    """
    dataset = codec.dataset
    if schema == dataset.schema_digest or not (schema and dataset.schema_digest):
        return codec
    raise DatasetNotFound(
        f"version {dataset.version} of dataset {dataset.name} is another definition than the one that the batch was "
        "accepted for: the registry was restored, and the number was given again"
    )
