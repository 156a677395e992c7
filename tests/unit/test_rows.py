from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bulkgrpc.datasets.binding import ExistingTable
from bulkgrpc.datasets.codec import BatchCodec
from bulkgrpc.datasets.decoding import Payload
from bulkgrpc.datasets.rows import to_rows
from bulkgrpc.rejections import RejectionCode
from bulkgrpc.v1.ingest_pb2 import RecordBatch
from tests.support import examples
from tests.support.rejected import rejections

CODEC = BatchCodec(examples.readings())
GOOD = b"\x0a\x02S1\x1a\x02\x08\x01"
HOSTILE_LENGTH = b"\x0a" + b"\xff" * 9 + b"\x01"  # makes ptars panic
BAD = {
    b"\xff": RejectionCode.MALFORMED_RECORD,
    HOSTILE_LENGTH: RejectionCode.MALFORMED_RECORD,
    b"\x0a\x02\xff\xfe\x1a\x00": RejectionCode.MALFORMED_RECORD,
    b"\x0a\x01\x00\x1a\x00": RejectionCode.NUL_IN_TEXT,
    b"\x0a\x02S2": RejectionCode.NULL_IN_KEY,
    b"\x0a\x02S2\x1a\x0b\x08" + b"\x80\x80\x80\x80\x80\x80\x01" + b"\x10\x00": RejectionCode.MALFORMED_RECORD,
    b"\x0a\x02S2\x1a\x08\x08" + b"\x80\x80\x80\x80\x80\x80\x01": RejectionCode.OUT_OF_RANGE,
}


def _payload(records: list[bytes], tenant: str = "acme") -> Payload:
    return Payload(tenant, len(records), examples.batch_of(records))


def test_rows_come_sorted_by_key_with_their_places() -> None:
    payloads = [
        Payload("b", 30, examples.reading_batch(0, 30)),
        Payload("a", 20, examples.reading_batch(100, 20)),
        Payload("a", 0, b""),
    ]
    rows = to_rows(CODEC, payloads)
    keys = list(zip(*(rows.table.column(name).to_pylist() for name in rows.dataset.primary_key), strict=True))
    assert keys == sorted(keys)
    assert np.bincount(rows.payload, minlength=3).tolist() == [30, 20, 0]
    for row in range(rows.table.num_rows):
        number = rows.table.column("value")[row].as_py() * 2
        start = 0 if rows.payload[row] == 0 else 100
        assert number == start + rows.record_index[row]
        assert rows.table.column("tenant")[row].as_py() == payloads[rows.payload[row]].tenant


def test_records_of_another_tenant_than_the_tables_are_rejected_whatever_server_accepted_them() -> None:
    bound = ExistingTable("public", "readings", only_tenant="acme")
    readings = examples.readings()
    dataset = replace(readings, existing=bound, columns=readings.columns[1:])
    rows = to_rows(BatchCodec(dataset), [_payload([GOOD]), _payload([GOOD, GOOD], "other"), _payload([GOOD])])
    assert rows.payload.tolist() == [0, 2]
    reason = "the table has no column for the tenant, and takes records of tenant acme only"
    assert [(one[:3], one[4]) for one in rejections(rows)] == [
        ((1, index, RejectionCode.REJECTED_BY_TABLE), reason) for index in (0, 1)
    ]


@pytest.mark.parametrize(("record", "code"), BAD.items())
def test_a_bad_record_is_rejected_and_its_neighbours_become_rows(record: bytes, code: RejectionCode) -> None:
    rows = to_rows(CODEC, [_payload([GOOD, GOOD]), _payload([GOOD, record, GOOD])])
    assert rows.table.num_rows == 4
    (rejected,) = rejections(rows)
    assert rejected[:3] == (1, 1, code)
    assert rejected[4]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.lists(st.one_of(st.just(GOOD), st.sampled_from(list(BAD)), st.binary(max_size=12)), max_size=8), max_size=4
    )
)
def test_every_record_becomes_a_row_or_a_rejection(batches: list[list[bytes]]) -> None:
    rows = to_rows(CODEC, [_payload(records) for records in batches])
    places = list(zip(rows.payload.tolist(), rows.record_index.tolist(), strict=True))
    places += [rejected[:2] for rejected in rejections(rows)]
    assert sorted(places) == [(b, r) for b, records in enumerate(batches) for r in range(len(records))]


def test_nested_messages_become_columns_and_unset_ones_null() -> None:
    codec = BatchCodec(examples.trades())
    unset = b"\x08\x01"
    with_venue = b"\x08\x02\x3a\x06\x0a\x04XNYS"
    rows = to_rows(codec, [Payload("acme", 2, examples.batch_of([unset, with_venue]))])
    assert rows.table.column("venue_code").to_pylist() == [None, "XNYS"]
    assert rows.table.column("venue_country").to_pylist() == [None, ""]
    assert rows.table.column("venue_desk").to_pylist() == [None, None]
    assert rows.table.column("tags").to_pylist() == [[], []]
    assert rows.table.column("side").to_pylist() == ["SIDE_UNSPECIFIED"] * 2


def test_encoded_batches_decode_to_the_same_records() -> None:
    batches = [examples.reading_batch(0, 7), examples.reading_batch(7, 3)]
    records = CODEC.decode(batches).flatten()
    again = CODEC.encode(pa.RecordBatch.from_struct_array(records).cast(CODEC.record_schema), 4)
    assert [len(RecordBatch.FromString(batch).records) for batch in again] == [4, 4, 2]
    assert CODEC.decode(again).flatten().equals(records)
