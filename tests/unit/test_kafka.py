from __future__ import annotations

import contextlib
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from confluent_kafka import KafkaError
from hypothesis import given
from hypothesis import strategies as st

from bulkgrpc.consume.ports import NewerFormat
from bulkgrpc.kafka.consumer import OF_PARTITION, raise_if_permanent
from bulkgrpc.kafka.message import MalformedMessage, from_headers, message_of, to_headers
from bulkgrpc.kafka.partition import murmur2, partition_of, partitions_of
from bulkgrpc.model import JobKey, JobOptions, JobSpec, Kind, Message, digest_of
from bulkgrpc.v1.ingest_pb2 import RecordBatch


# Source: org.apache.kafka.common.utils.UtilsTest.testMurmur2
@pytest.mark.parametrize(
    ("text", "value"),
    [
        (b"21", -973932308),
        (b"foobar", -790332482),
        (b"a-little-bit-long-string", -985981536),
        (b"a-little-bit-longer-string", -1486304829),
        (b"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58897971),
        (b"abc", 479470107),
    ],
)
def test_murmur2_is_that_of_the_java_client(text: bytes, value: int) -> None:
    assert murmur2(text) == value & 0xFFFFFFFF


@given(st.text(min_size=1), st.integers(1, 1000))
def test_a_tenant_has_one_partition_in_range(tenant: str, partitions: int) -> None:
    assert 0 <= partition_of(tenant, partitions) < partitions


@given(st.text(min_size=1), st.integers(1, 40), st.integers(1, 16))
def test_the_lanes_of_a_job_have_partitions_of_their_own_the_first_its_tenants(
    tenant: str, partitions: int, lanes: int
) -> None:
    found = partitions_of(tenant, partitions, lanes)
    assert found[0] == partition_of(tenant, partitions)
    assert len(found) == len(set(found)) == min(lanes, partitions)
    assert set(found) <= set(range(partitions))


TIMES = st.datetimes(datetime(1990, 1, 1), datetime(2100, 1, 1), timezones=st.just(UTC))
TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]))
MESSAGES = st.builds(
    Message,
    kind=st.sampled_from(Kind),
    spec=st.builds(
        JobSpec,
        key=st.builds(JobKey, st.just("acme"), st.uuids()),
        idempotency_key=TEXT,
        dataset=st.just("d"),
        dataset_version=st.integers(1, 100),
        labels=st.dictionaries(TEXT, TEXT),
        options=st.builds(JobOptions, st.booleans(), st.integers(0, 9), st.floats(0, 1e6)),
    ),
    lane=st.integers(0, 7),
    sequence=st.just(0),
    records=st.integers(0, 10**6),
    job_records=st.just(0),
    sent_at=TIMES,
    trace_context=st.sampled_from(["", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"]),
    digest=st.sampled_from([b"", b"\x01" * 16]),
    expires_at=st.one_of(st.none(), TIMES),
    partitions=st.sampled_from([(), (1, 0), tuple(range(8))]),
    schema=st.sampled_from([b"", b"\x02" * 8]),
    stored_sequence=st.integers(0, 2**40),
    attempt=st.integers(0, 9),
).map(lambda message: replace(message, lane=message.lane % message.lanes))


def _bytes(message: Message) -> list[tuple[str, bytes]]:
    return [(name, value) for name, value in to_headers(message) if isinstance(value, bytes)]


@pytest.mark.parametrize(
    "code",
    [
        KafkaError._AUTO_OFFSET_RESET,
        KafkaError.OFFSET_OUT_OF_RANGE,
        KafkaError._BAD_MSG,
        KafkaError._NOT_IMPLEMENTED,
    ],
)
def test_messages_that_librdkafka_skips_because_of_an_error_stop_their_partition_only(code: int) -> None:
    raise_if_permanent(KafkaError(code))
    assert code in OF_PARTITION


@given(MESSAGES)
def test_headers_read_back(message: Message) -> None:
    assert from_headers(_bytes(message)) == message


def test_headers_say_what_is_wrong() -> None:
    with pytest.raises(MalformedMessage, match="'format' is missing"):
        from_headers(None)
    for text in (b"", b"0", b"x", b"-2", b"+2", b"2.0", b" 2", b"1_0", b"01", b"9" * 5000, "\u0662".encode()):
        with pytest.raises(MalformedMessage, match="unknown format"):
            from_headers([("format", text)])


@pytest.mark.parametrize("number", [2, 9, 999_999_999])
def test_a_newer_format_is_not_malformed_whatever_the_other_headers_are(number: int) -> None:
    with pytest.raises(NewerFormat, match="reads up to format 1") as raised:
        from_headers([("format", b"%d" % number), ("kind", b"\xff")])
    assert raised.value.format == number


@given(MESSAGES, st.data())
def test_a_missing_or_garbled_header_is_never_another_error(message: Message, data: st.DataObject) -> None:
    headers = _bytes(message)
    victim = data.draw(st.integers(0, len(headers) - 1))
    headers[victim] = (headers[victim][0], data.draw(st.binary()))
    with contextlib.suppress(MalformedMessage, NewerFormat):
        from_headers(headers)
    with contextlib.suppress(MalformedMessage, NewerFormat):
        message_of(headers, data.draw(st.binary()))


@pytest.mark.parametrize("lost", ["sequence", "records", "kind", "lane", "sent-at-us", "version", "format"])
@pytest.mark.parametrize("kind", list(Kind))
def test_a_message_with_damaged_headers_says_whose_it_is_and_its_payload_the_rest(lost: str, kind: Kind) -> None:
    spec = JobSpec(JobKey.derive("acme", "k"), "k", "readings", 3)
    payload = RecordBatch(sequence=7, records=[b"a", b"b"]).SerializeToString() if kind is Kind.BATCH else b""
    message = Message(kind, spec, 0, 7, 2, 0, datetime.now(UTC), digest=digest_of(payload) if payload else b"")
    found = message_of([pair for pair in _bytes(message) if pair[0] != lost], payload)
    assert (found.kind, found.spec.key, found.spec.dataset) == (kind, spec.key, "readings")
    assert (found.sequence, found.records) == ((7, 2) if payload else (0, 0))
    assert f"header '{lost}' is missing" in found.damage
    assert not found.opens


@pytest.mark.parametrize("lost", ["job", "tenant", "dataset"])
def test_a_message_that_does_not_say_whose_it_is_cannot_be_attributed(lost: str) -> None:
    message = Message(Kind.SEAL, JobSpec(JobKey.derive("acme", "k"), "k", "d", 1), 0, 0, 0, 0, datetime.now(UTC))
    with pytest.raises(MalformedMessage, match=lost):
        message_of([pair for pair in _bytes(message) if pair[0] != lost], b"")


def test_damaged_headers_with_a_payload_that_cannot_be_read_are_of_no_job() -> None:
    message = Message(Kind.BATCH, JobSpec(JobKey.derive("acme", "k"), "k", "d", 1), 0, 0, 1, 0, datetime.now(UTC))
    with pytest.raises(MalformedMessage, match="sequence"):
        message_of([pair for pair in _bytes(message) if pair[0] != "sequence"], b"\xff\xff")
