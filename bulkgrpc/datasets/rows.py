"""From batches to the rows of a dataset's table: decoded, flattened, checked, sorted by key, each row's place kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from google.protobuf.message import DecodeError

from bulkgrpc.datasets.checks import Faults, check, refuse
from bulkgrpc.datasets.codec import BatchCodec, BrokenRule, UndecodablePayload
from bulkgrpc.datasets.columns import TENANT, Kind
from bulkgrpc.datasets.definition import Dataset
from bulkgrpc.datasets.hashes import RecordHashes
from bulkgrpc.datasets.values import convert, filled
from bulkgrpc.rejections import RejectionCode
from bulkgrpc.v1.ingest_pb2 import RecordBatch

Integers = npt.NDArray[np.int32]
JSONB = {b"bulkgrpc": b"jsonb"}
"""Metadata of an Arrow field whose texts are of a jsonb column."""


@dataclass(frozen=True, slots=True)
class Payload:
    """A batch to decode: whose it is, how many records the server counted, its bytes."""

    tenant: str
    records: int
    data: bytes


@dataclass(frozen=True, slots=True)
class RejectedRecord:
    """A record that cannot be a row: its place (payload, index in it), why, its bytes."""

    payload: int
    record_index: int
    code: RejectionCode
    field: str
    reason: str
    record: bytes


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows of one dataset's table, sorted by its key, equal keys in the order in which they came.

    table: a column each of `dataset.columns`. payload, record_index: where each row came from, same length as table.
    rejected: the records that are no rows. hashes: of the rows' records, if the dataset remembers them.
    """

    dataset: Dataset
    table: pa.RecordBatch
    payload: Integers
    record_index: Integers
    rejected: tuple[RejectedRecord, ...]
    hashes: RecordHashes | None = None

    def keep(self, mask: npt.NDArray[np.bool_]) -> Rows:
        """Return the rows for which the mask is true; rejections stay."""
        if mask.all():
            return self
        return Rows(
            self.dataset,
            self.table.filter(pa.array(mask)),
            self.payload[mask],
            self.record_index[mask],
            self.rejected,
            None if self.hashes is None else self.hashes.keep(mask),
        )

    def of_payloads(self, wanted: npt.NDArray[np.bool_]) -> Rows:
        """Return the rows and rejections of the payloads for which `wanted` is true."""
        rejected = tuple(record for record in self.rejected if wanted[record.payload])
        return replace(self.keep(wanted[self.payload]), rejected=rejected)

    def per_payload(self, payloads: int) -> Integers:
        """Return how many rows each payload has."""
        return np.bincount(self.payload, minlength=payloads).astype(np.int32)


def to_rows(codec: BatchCodec, payloads: Sequence[Payload]) -> Rows:
    """Decode, flatten, check and sort batches of one dataset.

    A record that is no valid message, or that the table could not hold, becomes a rejection; its neighbours become
    rows. No Python per record, unless a payload is not valid: then that payload is split in halves until the records
    at fault are found.
    """
    rejected: list[RejectedRecord] = []
    payload, record_index, records, broken = _decode(codec, payloads, rejected)
    bad = _broken_rules(payload, record_index, broken)
    table = _table(codec, records, _tenants(payloads, payload), bad)
    if bad:
        keep = np.ones(table.num_rows, dtype=np.bool_)
        for row, (code, field, reason) in bad.items():
            place = int(payload[row]), int(record_index[row])
            rejected.append(
                RejectedRecord(*place, code, field, reason, record_bytes(payloads[place[0]].data, place[1]))
            )
            keep[row] = False
        table, payload, record_index = table.filter(pa.array(keep)), payload[keep], record_index[keep]
    order = pc.sort_indices(table, sort_keys=[(name, "ascending") for name in codec.dataset.primary_key])
    positions = order.to_numpy()
    payload, record_index = payload[positions], record_index[positions]
    hashes = _hashes(codec, payloads, payload, record_index) if codec.dataset.dedupe_window_s else None
    return Rows(codec.dataset, table.take(order), payload, record_index, tuple(rejected), hashes)


def record_bytes(payload: bytes, record_index: int) -> bytes:
    """Return the bytes of one record of a serialized RecordBatch."""
    return RecordBatch.FromString(payload).records[record_index]


Records = tuple[Integers, Integers, pa.StructArray, list[BrokenRule]]
"""Of each record its payload, its index in it, and itself; and the rules that some of them break."""


def _decode(codec: BatchCodec, payloads: Sequence[Payload], rejected: list[RejectedRecord]) -> Records:
    """Decode records; append those that are no messages to `rejected`."""
    counts = np.fromiter((payload.records for payload in payloads), np.int64, len(payloads))
    try:
        lists, broken = codec.decode_checked([payload.data for payload in payloads])
        if np.array_equal(np.diff(lists.offsets.to_numpy()), counts):
            return *_places(counts), lists.flatten(), broken
    except UndecodablePayload:
        pass
    pieces: list[Records] = []
    for number, payload in enumerate(payloads):
        try:
            records = list(RecordBatch.FromString(payload.data).records)
        except DecodeError:
            records = []
        if len(records) == payload.records:
            pieces += _split(codec, number, 0, records, rejected)
        else:
            rejected += _unreadable(number, payload)
    if not pieces:
        return *_places(counts[:0]), codec.decode([]).flatten(), []
    return (
        np.concatenate([piece[0] for piece in pieces]),
        np.concatenate([piece[1] for piece in pieces]),
        pa.concat_arrays([piece[2] for piece in pieces]),
        [broken for piece in pieces for broken in piece[3]],
    )


def _unreadable(number: int, payload: Payload) -> list[RejectedRecord]:
    """Return rejections for a batch that is not what its server counted; the first has the batch's bytes."""
    reason = f"the batch cannot be read as {payload.records} records"
    return [
        RejectedRecord(number, index, RejectionCode.MALFORMED_RECORD, "", reason, payload.data if index == 0 else b"")
        for index in range(payload.records)
    ]


def _split(
    codec: BatchCodec, number: int, start: int, records: list[bytes], rejected: list[RejectedRecord]
) -> list[Records]:
    """Decode `records`, which stand at `start` of payload `number`; where that fails, its halves."""
    if not records:
        return []
    try:
        lists, broken = codec.decode_checked([RecordBatch(records=records).SerializeToString()])
        if lists.offsets[1].as_py() == len(records):
            index = np.arange(start, start + len(records), dtype=np.int32)
            moved = [(number, replace(found, record_index=start + found.record_index)) for _, found in broken]
            return [(np.full(len(records), number, np.int32), index, lists.flatten(), moved)]
        cause = "the record is not one message"
    except UndecodablePayload as error:
        cause = str(error)
    if len(records) == 1:
        reason = f"no valid {codec.dataset.message_type}: {cause}"
        rejected.append(RejectedRecord(number, start, RejectionCode.MALFORMED_RECORD, "", reason, records[0]))
        return []
    half = len(records) // 2
    return _split(codec, number, start, records[:half], rejected) + _split(
        codec, number, start + half, records[half:], rejected
    )


def _places(counts: npt.NDArray[np.int64]) -> tuple[Integers, Integers]:
    payload = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
    starts = np.cumsum(counts) - counts
    record_index = np.arange(len(payload), dtype=np.int64) - np.repeat(starts, counts)
    return payload, record_index.astype(np.int32)


def _table(codec: BatchCodec, records: pa.StructArray, tenants: pa.Array, faults: Faults) -> pa.RecordBatch:
    """Return the columns of the dataset's table; note in `faults` the rows that it could not hold."""
    found = _flatten(records, codec.leaves)
    arrays = [tenants]
    fields = [pa.field(TENANT, pa.string())]
    for column in codec.dataset.columns[1:]:
        values = found[column.field]
        metadata = None
        if column.kind is Kind.JSON:
            values = codec.documents.texts(column.field, values)
        elif column.kind is not Kind.PLAIN:
            converted = convert(column, values)
            values = converted.values
            if converted.unfit.any():
                reason = f"field {column.field} is not {converted.needed}"
                refuse(faults, converted.unfit, RejectionCode.INVALID_VALUE, column, reason)
        if column.type == "jsonb":
            metadata = JSONB
        if column.default:
            values = filled(column, values)
        check(column, values, faults, key=column.name in codec.dataset.key)
        arrays.append(values)
        fields.append(pa.field(column.name, values.type, metadata=metadata))
    return pa.record_batch(arrays, schema=pa.schema(fields))


def _flatten(records: pa.StructArray, leaves: frozenset[str]) -> dict[str, pa.Array]:
    """Return the values of each leaf; unset nested messages make theirs null."""
    found: dict[str, pa.Array] = {}

    def walk(prefix: str, struct: pa.StructArray) -> None:
        for field, child in zip(struct.type, struct.flatten(), strict=True):
            path = f"{prefix}{field.name}"
            if path in leaves or not pa.types.is_struct(field.type):
                found[path] = child
            else:
                walk(f"{path}.", child)

    walk("", records)
    return found


def _hashes(codec: BatchCodec, payloads: Sequence[Payload], payload: Integers, record_index: Integers) -> RecordHashes:
    """Return the hashes of the records at these places."""
    # A payload without rows may be one that cannot be read at all.
    numbers = np.flatnonzero(np.bincount(payload, minlength=len(payloads))).tolist()
    read = [payloads[number] for number in numbers]
    counts = np.fromiter((item.records for item in read), np.int32, len(read))
    starts = np.zeros(len(payloads), np.int32)
    starts[numbers] = np.cumsum(counts) - counts
    words = codec.hasher.hashes([item.data for item in read], [item.tenant for item in read], counts)
    return RecordHashes.of(words[starts[payload] + record_index])


def _tenants(payloads: Sequence[Payload], payload: Integers) -> pa.Array:
    names = pa.array([item.tenant for item in payloads], pa.string())
    return names.take(pa.array(payload))


def _broken_rules(payload: Integers, record_index: Integers, broken: Sequence[BrokenRule]) -> Faults:
    """Return the rows that break rules, with code, field and reason; the first rule that each breaks."""
    bad: Faults = {}
    places = payload.astype(np.int64) << 32 | record_index
    for number, violation in broken:
        row = int(np.searchsorted(places, number << 32 | violation.record_index))
        bad.setdefault(row, (RejectionCode.RULE_VIOLATION, violation.field, violation.reason))
    return bad
