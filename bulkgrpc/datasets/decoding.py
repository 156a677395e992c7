"""Decodes the batches of one dataset; invalid records are rejected, their neighbours decoded.

All payloads are decoded in one call. Only if that fails, each is decoded alone, and the invalid records of those that
fail are found without a call for each record:

1. protobuf's parser names the first invalid record of a payload. Up to RESUMES_MAX records are found so, each time
   parsing on from the next record.
2. `WireScan` finds the invalid records of the rest, all at once.
3. Of what the scan does not see (groups, packed fields) the parser names one after the other again: Python per invalid
   record of that kind, some 19 µs each, in time linear in the records.

A record that the parser reads and that still cannot be decoded, or for which a rule cannot be evaluated, is found by
halving; after SPLITS_MAX of them each record is decoded alone: Python per record, in time linear in the records.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from bulkgrpc.datasets.codec import BatchCodec, RuleFailed, UndecodablePayload
from bulkgrpc.datasets.records import joined, sliced, spans_in
from bulkgrpc.rejections import CAUSES, Integers, RejectedRows, RejectionBuilder, RejectionCode, Rejections

RESUMES_MAX = 32
SPLITS_MAX = 32
PARSED_RECORDS = 256
"""Records that the parser is given at once in step 3: what it read before a failure, it may have to copy again."""


@dataclass(frozen=True, slots=True)
class Payload:
    """A batch to decode: its tenant, how many records the server counted, its bytes; its job's ID and its sequence."""

    tenant: str
    records: int
    data: bytes
    job_id: bytes = bytes(16)
    sequence: int = 0


@dataclass(frozen=True, slots=True)
class Decoded:
    """Valid records, in the order of the payloads, and the rejections of all others.

    payload, record_index: position of each record. records: structs of `BatchCodec.record_schema`. broken: those of
    `records` that break a rule.
    """

    payload: Integers
    record_index: Integers
    records: pa.StructArray
    broken: RejectedRows
    rejections: Rejections


def decode(codec: BatchCodec, payloads: Sequence[Payload]) -> Decoded:
    """Decode payloads: a native call for all of them, if all of their records are valid."""
    counts = np.fromiter((payload.records for payload in payloads), np.int64, len(payloads))
    if (found := _decoded(codec, [payload.data for payload in payloads], counts)) is not None:
        records, broken = found
        return Decoded(*_positions(counts), records, broken, Rejections.none())
    return _concat(codec, [_decode_alone(codec, number, payload) for number, payload in enumerate(payloads)])


def _decoded(
    codec: BatchCodec, payloads: Sequence[bytes], counts: npt.NDArray[np.integer[Any]]
) -> tuple[pa.StructArray, RejectedRows] | None:
    """Return the records, and those that break a rule; None if one is invalid, or the counts are not the payloads'."""
    try:
        lists, broken = codec.decode_checked(payloads)
    except UndecodablePayload:
        return None
    return (lists.flatten(), broken) if np.array_equal(np.diff(lists.offsets.to_numpy()), counts) else None


def _positions(counts: npt.NDArray[np.int64]) -> tuple[Integers, Integers]:
    payload = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
    starts = np.cumsum(counts) - counts
    record_index = np.arange(len(payload), dtype=np.int64) - np.repeat(starts, counts)
    return payload, record_index.astype(np.int32)


def _decode_alone(codec: BatchCodec, number: int, payload: Payload) -> Decoded:
    count = np.array([payload.records])
    index = np.arange(payload.records, dtype=np.int32)
    if (found := _decoded(codec, [payload.data], count)) is not None:
        return Decoded(np.full(len(index), number, np.int32), index, *found, Rejections.none())
    records = sliced([payload.data], count)
    if records is None:
        reason = f"the batch cannot be read as {payload.records} records"
        rejections = Rejections.of_payload(number, payload.records, RejectionCode.MALFORMED_RECORD, reason)
        empty = np.empty(0, np.int32)
        return Decoded(empty, empty, codec.decode([]).flatten(), RejectedRows.none(), rejections)
    rejected = RejectionBuilder(len(records))
    _reject_invalid(codec, records, rejected)
    parts = _decode_valid(codec, records, rejected)
    kept = np.flatnonzero(~rejected.rejected).astype(np.int32)
    return Decoded(
        np.full(len(kept), number, np.int32),
        kept,
        pa.concat_arrays([part for part, _ in parts]) if parts else codec.decode([]).flatten(),
        RejectedRows.concat([broken for _, broken in parts if len(broken)]),
        rejected.build().at(np.full(len(index), number, np.int32), index),
    )


def _reject_invalid(codec: BatchCodec, records: pa.BinaryArray, rejected: RejectionBuilder) -> None:
    """Reject the records that protobuf's parser rejects."""
    checked = _resume(codec, records, rejected, len(records), RESUMES_MAX)
    if checked == len(records):
        return
    invalid = np.zeros(len(records), np.bool_)
    invalid[checked:] = codec.wire_scan.invalid(records[checked:])
    reason = _reason(codec, "Wire format was corrupt, or String field had bad UTF-8")
    rejected.add(invalid, RejectionCode.MALFORMED_RECORD, "", reason)
    rest = records.filter(pa.array(~rejected.rejected))
    unseen = RejectionBuilder(len(rest))
    if codec.first_invalid(joined(rest)) is not None:
        _resume(codec, rest, unseen, PARSED_RECORDS, len(rest))
    rejected.add_rows(unseen.build().moved(np.flatnonzero(~rejected.rejected)))


def _resume(
    codec: BatchCodec, records: pa.BinaryArray, rejected: RejectionBuilder, at_once: int, failures_max: int
) -> int:
    """Reject the first `failures_max` invalid records; return up to which index all are known.

    at_once: records that the parser is given at most.
    """
    data, spans = joined(records), spans_in(records)
    found: list[tuple[int, RejectionCode, str]] = []
    start = stop = 0
    while start < len(records) and len(found) < failures_max:
        if start == stop:
            stop = min(start + at_once, len(records))
        failure = codec.first_invalid(data[spans[start] : spans[stop]])
        if failure is None:
            start = stop
        else:
            found.append((start + failure[0], RejectionCode.MALFORMED_RECORD, failure[1]))
            start += failure[0] + 1
    rejected.add_rows(_failed(codec, found))
    return start


def _failed(codec: BatchCodec, found: Sequence[tuple[int, RejectionCode, str]]) -> RejectedRows:
    """Return records that were found one by one: positions, ascending, codes and causes."""
    reasons = [cause if code is RejectionCode.RULE_FAILED else _reason(codec, cause) for _, code, cause in found]
    texts = [[code.value for _, code, _ in found], [""] * len(found), reasons]
    return RejectedRows(
        np.array([row for row, _, _ in found], np.int32),
        pa.record_batch([pa.array(text, pa.string()) for text in texts], schema=CAUSES),
    )


def _reason(codec: BatchCodec, cause: str) -> str:
    return f"no valid {codec.dataset.message_type}: {cause}"


def _decode_valid(
    codec: BatchCodec, records: pa.BinaryArray, rejected: RejectionBuilder
) -> list[tuple[pa.StructArray, RejectedRows]]:
    """Decode the records that are not rejected, in order, span by span; reject those that fail alone.

    Broken rules are positions among the records that are decoded.
    """
    position = np.flatnonzero(~rejected.rejected)
    valid = records.filter(pa.array(~rejected.rejected))
    data, spans = joined(valid), spans_in(valid)
    parts: list[tuple[pa.StructArray, RejectedRows]] = []
    found: list[tuple[int, RejectionCode, str]] = []
    waiting, decoded = [(0, len(valid))], 0
    while waiting:
        start, stop = waiting.pop()
        if start == stop:
            continue
        code, cause = RejectionCode.MALFORMED_RECORD, "the record is not one message"
        try:
            lists, broken = codec.decode_checked([data[spans[start] : spans[stop]]])
            if lists.offsets[1].as_py() == stop - start:
                parts.append((lists.flatten(), RejectedRows((decoded + broken.row).astype(np.int32), broken.causes)))
                decoded += stop - start
                continue
        except RuleFailed as error:
            code, cause = RejectionCode.RULE_FAILED, str(error)
        except UndecodablePayload as error:
            cause = str(error)
        if stop - start == 1:
            found.append((int(position[start]), code, cause))
        elif len(found) < SPLITS_MAX:
            middle = (start + stop) // 2
            waiting += [(middle, stop), (start, middle)]
        else:
            waiting += [(row, row + 1) for row in range(stop - 1, start - 1, -1)]
    rejected.add_rows(_failed(codec, found))
    return parts


def _concat(codec: BatchCodec, parts: Sequence[Decoded]) -> Decoded:
    if not parts:
        empty = np.empty(0, np.int32)
        return Decoded(empty, empty, codec.decode([]).flatten(), RejectedRows.none(), Rejections.none())
    firsts = np.cumsum([0] + [len(part.payload) for part in parts[:-1]])
    broken = [
        RejectedRows((first + part.broken.row).astype(np.int32), part.broken.causes)
        for first, part in zip(firsts.tolist(), parts, strict=True)
        if len(part.broken)
    ]
    return Decoded(
        np.concatenate([part.payload for part in parts]),
        np.concatenate([part.record_index for part in parts]),
        pa.concat_arrays([part.records for part in parts]),
        RejectedRows.concat(broken),
        Rejections.concat([part.rejections for part in parts]),
    )
