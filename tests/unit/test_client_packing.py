"""Packing of messages into batches."""

from __future__ import annotations

import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from google.protobuf.wrappers_pb2 import StringValue
from hypothesis import given
from hypothesis import strategies as st

from bulkgrpc.client import Batch, ClientConfig, WrongInput
from bulkgrpc.client.packing import Packer
from bulkgrpc.client.send_window import NumberedBatch
from bulkgrpc.client.submission import batch_message
from bulkgrpc.datasets.framing import varint
from bulkgrpc.v1.ingest_pb2 import RecordBatch, StreamRecordsRequest

texts = st.lists(st.text(max_size=40), max_size=50)


@given(texts, st.integers(1, 7), st.integers(1, 200))
def test_packed_messages_come_out_in_order_within_both_limits(items: list[str], records: int, size: int) -> None:
    packer = Packer(ClientConfig(batch_records=records, batch_bytes=size))
    batches = [batch for text in items for batch in packer.add(StringValue(value=text))] + packer.flush()
    parsed = [RecordBatch.FromString(batch.payload) for batch in batches]
    assert [StringValue.FromString(record).value for batch in parsed for record in batch.records] == items
    assert [len(batch.records) for batch in parsed] == [batch.records for batch in batches]
    assert all(batch.records <= records for batch in batches)
    assert all(len(batch.payload) <= size or batch.records == 1 for batch in batches)


@given(st.integers(0, 2**63 - 1), st.lists(st.binary(max_size=50), max_size=20))
def test_a_batch_goes_out_as_the_public_stream_message(sequence: int, records: list[bytes]) -> None:
    payload = RecordBatch(records=records).SerializeToString()
    request = StreamRecordsRequest.FromString(batch_message(NumberedBatch(sequence, Batch(payload, len(records)))))
    assert request.batch == RecordBatch(sequence=sequence, records=records)


@given(st.integers(0, 2**64 - 1))
def test_a_varint_is_protobufs(number: int) -> None:
    assert int.from_bytes(bytes(varint(number)), "little") >= 0
    value = shift = 0
    for byte in varint(number):
        value |= (byte & 0x7F) << shift
        shift += 7
    assert value == number


def test_bytes_of_a_batch_go_through_as_they_are_and_are_counted() -> None:
    payload = RecordBatch(records=[b"a", b"b", b""]).SerializeToString()
    assert Packer(ClientConfig()).add(payload) == [Batch(payload, 3)]


@pytest.mark.parametrize("item", [b"\xff\xff", "text", 7])
def test_what_is_no_batch_is_refused(item: object) -> None:
    with pytest.raises(WrongInput):
        Packer(ClientConfig()).add(item)  # type: ignore[arg-type]


def test_messages_of_two_types_do_not_go_into_one_job() -> None:
    packer = Packer(ClientConfig())
    packer.add(StringValue(value="a"))
    with pytest.raises(WrongInput, match="one type"):
        packer.add(Timestamp())
