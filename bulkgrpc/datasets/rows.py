"""Makes the rows of a dataset's table from batches: decoded, flattened, checked, sorted by key."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from bulkgrpc.datasets.checks import check
from bulkgrpc.datasets.codec import BatchCodec
from bulkgrpc.datasets.columns import Kind
from bulkgrpc.datasets.decoding import Payload, decode
from bulkgrpc.datasets.definition import Dataset
from bulkgrpc.datasets.hashes import RecordHashes
from bulkgrpc.datasets.operations import Operation
from bulkgrpc.datasets.provenance import Provenance
from bulkgrpc.datasets.values import convert, filled
from bulkgrpc.rejections import Integers, Mask, RejectionBuilder, RejectionCode, Rejections

JSONB = {b"bulkgrpc": b"jsonb"}
"""Metadata of an Arrow field whose values are texts for a jsonb column."""
_TIME = pa.timestamp("us", "UTC")


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows of one dataset's table, sorted by its key, equal keys in the order of their records.

    Without a key they are in the order of their records.

    table: one column for each of `dataset.columns`. payload, record_index: position of each row's record. rejections:
    the records that are no rows. hashes: of the rows' records, if the dataset remembers records. deletes: which rows
    are to be deleted, of which only the key counts; None if the dataset has no operation.
    """

    dataset: Dataset
    table: pa.RecordBatch
    payload: Integers
    record_index: Integers
    rejections: Rejections
    hashes: RecordHashes | None = None
    deletes: Mask | None = None

    def stamped(self, now: datetime) -> Rows:
        """Return the rows as written at a time, if their table stores that."""
        provenance = self.dataset.provenance
        if provenance is None or not provenance.write_time:
            return self
        position = self.table.schema.get_field_index(provenance.write_time)
        times = pa.repeat(pa.scalar(now, _TIME), self.table.num_rows)
        return replace(self, table=self.table.set_column(position, pa.field(provenance.write_time, _TIME), times))

    @property
    def has_deletes(self) -> bool:
        """Whether a row is to be deleted."""
        return self.deletes is not None and bool(self.deletes.any())

    def keep(self, mask: Mask) -> Rows:
        """Return the rows for which the mask is true; rejections stay."""
        if mask.all():
            return self
        return Rows(
            self.dataset,
            self.table.filter(pa.array(mask)),
            self.payload[mask],
            self.record_index[mask],
            self.rejections,
            None if self.hashes is None else self.hashes.keep(mask),
            None if self.deletes is None else self.deletes[mask],
        )

    def sorted_again(self) -> tuple[Rows, Integers]:
        """Return the rows sorted by the values that their key has now, and their positions in these rows."""
        by_record = np.lexsort((self.record_index, self.payload))
        keys = [(name, "ascending") for name in self.dataset.primary_key]
        by_key = pc.sort_indices(self.table.select(self.dataset.primary_key).take(pa.array(by_record)), sort_keys=keys)
        order = by_record[by_key.to_numpy()].astype(np.int32)
        return (
            replace(
                self,
                table=self.table.take(pa.array(order)),
                payload=self.payload[order],
                record_index=self.record_index[order],
                hashes=None if self.hashes is None else self.hashes.take(order),
                deletes=None if self.deletes is None else self.deletes[order],
            ),
            order,
        )

    def of_payloads(self, wanted: Mask) -> Rows:
        """Return the rows and rejections of the payloads for which `wanted` is true."""
        return replace(self.keep(wanted[self.payload]), rejections=self.rejections.of_payloads(wanted))


def to_rows(codec: BatchCodec, payloads: Sequence[Payload]) -> Rows:
    """Decode, flatten, check and sort batches of one dataset.

    A record that is not a valid message, or whose row the table cannot store, is rejected; its neighbours become rows.
    No Python per record, except for the kinds of invalid records that `datasets.decoding` names. Thread-safe: threads
    that share a codec take turns.
    """
    with codec.in_use:
        return _to_rows(codec, payloads)


def _to_rows(codec: BatchCodec, payloads: Sequence[Payload]) -> Rows:
    decoded = decode(codec, payloads)
    payload, record_index = decoded.payload, decoded.record_index
    rejected = RejectionBuilder(len(payload))
    rejected.add_rows(decoded.broken)
    if codec.dataset.existing is not None and codec.dataset.existing.only_tenant:
        _reject_others(codec.dataset.existing.only_tenant, payloads, payload, rejected)
    found = _flatten(decoded.records, codec.leaves)
    operation = codec.dataset.operation
    deletes = None if operation is None else _deletes(operation, found[operation.field], rejected)
    table = _table(codec, found, _tenants(payloads, payload), rejected, deletes)
    if codec.dataset.provenance is not None:
        table = _with_provenance(table, codec.dataset.provenance, payloads, payload)
    rejections = Rejections.concat([decoded.rejections, rejected.build().at(payload, record_index)])
    if rejected.rejected.any():
        keep = ~rejected.rejected
        table, payload, record_index = table.filter(pa.array(keep)), payload[keep], record_index[keep]
        deletes = None if deletes is None else deletes[keep]
    if codec.dataset.primary_key:
        order = pc.sort_indices(table, sort_keys=[(name, "ascending") for name in codec.dataset.primary_key])
        positions = order.to_numpy()
        table, payload, record_index = table.take(order), payload[positions], record_index[positions]
        deletes = None if deletes is None else deletes[positions]
    hashes = _hashes(codec, payloads, payload, record_index) if codec.dataset.dedupe_window_s else None
    return Rows(codec.dataset, table, payload, record_index, rejections, hashes, deletes)


def _table(
    codec: BatchCodec, found: dict[str, pa.Array], tenants: pa.Array, rejected: RejectionBuilder, deletes: Mask | None
) -> pa.RecordBatch:
    """Return the columns of the dataset's table; reject the rows that it cannot store.

    found: values by field. deletes: rows of which only the key is stored, all other columns being null.
    """
    tenant_column = codec.dataset.tenant_column
    arrays = [tenants] if tenant_column else []
    fields = [pa.field(tenant_column, pa.string())] if tenant_column else []
    for column in codec.dataset.field_columns:
        values, is_key = found[column.field], column.name in codec.dataset.key
        unchecked = None if is_key else deletes
        faults = rejected if unchecked is None else RejectionBuilder(len(unchecked))
        metadata = None
        if column.kind is Kind.JSON:
            values = codec.documents.texts(column.field, values)
        elif column.kind is not Kind.PLAIN:
            converted = convert(column, values)
            values = converted.values
            if converted.unfit.any():
                reason = f"field {column.field} is not {converted.needed}"
                faults.add(converted.unfit, RejectionCode.INVALID_VALUE, column.field, reason)
        if column.type == "jsonb":
            metadata = JSONB
        if column.default:
            values = filled(column, values)
        if unchecked is not None:
            values = _without(values, unchecked)
        check(column, values, faults, key=is_key)
        if unchecked is not None:
            rejected.add_rows(faults.build().without(unchecked))
        arrays.append(values)
        fields.append(pa.field(column.name, values.type, metadata=metadata))
    return pa.record_batch(arrays, schema=pa.schema(fields))


def _with_provenance(
    table: pa.RecordBatch, provenance: Provenance, payloads: Sequence[Payload], payload: Integers
) -> pa.RecordBatch:
    """Return the columns and those that say which job wrote a row. The time is null until the rows are written."""
    of_payload = pa.array(payload)
    table = table.append_column(
        provenance.job, pa.array([one.job_id for one in payloads], pa.binary(16)).take(of_payload)
    )
    if provenance.sequence:
        sequences = pa.array([one.sequence for one in payloads], pa.int64())
        table = table.append_column(provenance.sequence, sequences.take(of_payload))
    if provenance.write_time:
        table = table.append_column(provenance.write_time, pa.nulls(table.num_rows, _TIME))
    return table


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
    if len(payloads) == 1:
        return pa.repeat(pa.scalar(payloads[0].tenant, pa.string()), len(payload))
    names = pa.array([item.tenant for item in payloads], pa.string())
    return names.take(pa.array(payload))


def _reject_others(
    only_tenant: str, payloads: Sequence[Payload], payload: Integers, rejected: RejectionBuilder
) -> None:
    """Reject the records of other tenants: a server of an earlier release does not know that it has to refuse them."""
    others = np.array([item.tenant != only_tenant for item in payloads], np.bool_)
    reason = f"the table has no column for the tenant, and takes records of tenant {only_tenant} only"
    rejected.add(others[payload], RejectionCode.REJECTED_BY_TABLE, "", reason)


def _deletes(operation: Operation, values: pa.Array, rejected: RejectionBuilder) -> Mask:
    """Return which records delete their row; reject those with an operation that is not known.

    values: of the operation's field: names of enum values, numbers of those that have none, null if it is not set.
    """
    unknown = pc.invert(pc.is_in(values, value_set=pa.array([*operation.values, None], values.type)))
    found: Mask = unknown.to_numpy(zero_copy_only=False)
    reason = f"field {operation.field} is none of {', '.join(operation.values)}"
    rejected.add(found, RejectionCode.INVALID_VALUE, operation.field, reason)
    chosen: Mask = pc.fill_null(pc.equal(values, operation.delete), False).to_numpy(zero_copy_only=False)
    return chosen


def _without(values: pa.Array, chosen: Mask) -> pa.Array:
    """Return values with null for the chosen ones: of a record that deletes, only the key counts."""
    return pc.if_else(pa.array(~chosen), values, pa.scalar(None, values.type)) if chosen.any() else values
