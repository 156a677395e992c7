"""The relations between limits: each can be broken, and is then named; what they promise holds for every batch."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from bulkgrpc import limits
from bulkgrpc.client.config import ClientConfig
from bulkgrpc.errors import TooMuch
from bulkgrpc.ingest.messages import Batch, parse_header, parse_message
from bulkgrpc.kafka.message import from_headers, to_headers
from bulkgrpc.limits import RELATIONS, LimitError, Relation, check_limits
from bulkgrpc.model import JobKey, JobOptions, JobSpec, Kind, Message
from bulkgrpc.settings import ServerSettings, WorkerSettings, load
from bulkgrpc.v1 import ingest_pb2

SERVER, WORKER = dict(load(ServerSettings)), dict(load(WorkerSettings))


def numbers(values: dict[str, object]) -> dict[str, float]:
    return {name: value for name, value in values.items() if isinstance(value, int | float)}


def test_the_defaults_keep_every_relation() -> None:
    check_limits(**numbers(SERVER))
    check_limits(**numbers(WORKER))
    known = {*SERVER, *WORKER, *vars(limits)}
    assert {name for one in RELATIONS for name in (one.smaller, one.margin, one.larger) if name} <= known


@pytest.mark.parametrize("relation", RELATIONS, ids=lambda one: f"{one.smaller} <= {one.larger}")
def test_each_relation_that_is_broken_is_named_with_its_limit_and_the_way_out(
    relation: Relation, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = numbers({**SERVER, **WORKER})
    huge = 2**40
    if relation.smaller.islower():
        values[relation.smaller] = huge
    else:
        monkeypatch.setattr(limits, relation.smaller, huge)
    with pytest.raises(LimitError) as raised:
        check_limits(**values)
    found = [one for one in raised.value.broken if relation.larger in one.message and relation.why in one.message]
    assert len(found) == 1
    assert str(huge) in found[0].message
    assert found[0].setting == (relation.smaller if relation.smaller.islower() else "")
    assert "set it to" in found[0].message or "this build" in found[0].message


def test_the_way_out_is_one(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        load(ServerSettings, batch_records_max=2_000_000, batch_bytes_max=5_000_000)
    assert stop.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    assert all(line.startswith("error: BULKGRPC_BATCH_") for line in lines), lines
    assert any("2000000" in line and "set it to 1000000 or less" in line for line in lines)
    ways_out = [int(line.split("set it to ")[1].split()[0]) for line in lines if "BYTES_MAX" in line]
    load(ServerSettings, batch_records_max=1_000_000, batch_bytes_max=min(ways_out))


def test_a_setting_in_milliseconds_is_compared_in_seconds() -> None:
    check_limits(chunk_commit_ms=59_999)
    with pytest.raises(LimitError, match="chunk_commit_ms 60000 must be below STATEMENT_TIMEOUT_S 60000"):
        check_limits(chunk_commit_ms=60_000)


def test_a_client_waits_longer_than_a_server() -> None:
    config = ClientConfig()
    assert config.acknowledge_deadline_s > limits.SEAL_TIMEOUT_S > limits.DELIVERY_TIMEOUT_S
    assert config.open_deadline_s > limits.STREAM_DEADLINE_S


@st.composite
def servers(draw: st.DrawFn) -> ServerSettings:
    """Settings that may be accepted, often at a limit."""
    at_most = limits.KAFKA_MESSAGE_BYTES_MAX - limits.MESSAGE_OVERHEAD_BYTES
    bytes_max = st.one_of(st.integers(1024, at_most + 5000), st.sampled_from([at_most - 1, at_most, at_most + 1]))
    records_max = st.one_of(st.integers(1, 3_000_000), st.sampled_from([1_000_000, 1_000_001]))
    values = {
        "batch_bytes_max": draw(bytes_max),
        "batch_records_max": draw(records_max),
        "in_flight_bytes_max": draw(st.sampled_from([1024 * 1024, 4 * 1024 * 1024, 32 * 1024 * 1024])),
    }
    return ServerSettings.model_validate(values)


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.filter_too_much])
@given(made=servers(), data=st.data(), char=st.sampled_from(["", "v", "\U0001f600"]), lanes=st.sampled_from([1, 16]))
def test_a_batch_that_is_accepted_under_accepted_settings_is_stored_and_read(
    made: ServerSettings, data: st.DataObject, char: str, lanes: int
) -> None:
    try:
        check_limits(**numbers(dict(made)))
    except LimitError:
        assume(False)
    room = min(made.batch_records_max, made.batch_bytes_max // 2)
    records = data.draw(st.one_of(st.integers(0, room + 2), st.just(room)), "empty records")
    left = max(made.batch_bytes_max - 2 * records, 0)
    filler = data.draw(st.one_of(st.integers(0, left), st.just(left), st.just(max(left - 5, 0))), "bytes of the last")
    payload = b"\x12\x00" * records + ingest_pb2.RecordBatch(records=[bytes(filler)]).SerializeToString()
    raw = b"\x12" + _varint(len(payload)) + payload
    try:
        accepted = parse_message(raw, made.batch_bytes_max, made.batch_records_max)
    except TooMuch:
        return
    assert len(raw) <= limits.GRPC_MESSAGE_BYTES_MAX
    assert isinstance(accepted, Batch)
    message = stored_as(accepted, char, tuple(range(10_000, 10_000 + lanes)) if lanes > 1 else ())
    headers = [(name, value) for name, value in to_headers(message) if isinstance(value, bytes)]
    assert from_headers(headers) == message
    stored = len(accepted.payload) + sum(len(name) + len(value) for name, value in headers)
    assert stored <= limits.KAFKA_MESSAGE_BYTES_MAX
    assert stored <= 2 * made.in_flight_bytes_max, "the producer's queue takes it"


def stored_as(batch: Batch, char: str, partitions: tuple[int, ...]) -> Message:
    """The first message of a job whose header is as large as a server accepts, with labels of one character."""
    labels = {
        f"{number:02}" + char * (limits.LABEL_KEY_CHARS_MAX - 2): char * limits.LABEL_VALUE_CHARS_MAX
        for number in range(limits.LABELS_MAX)
    }
    header = ingest_pb2.JobHeader(dataset="datasets/" + "d" * 63, idempotency_key="k" * 128, labels=labels)
    found = parse_header(ingest_pb2.StreamRecordsRequest(header=header).SerializeToString())
    key = JobKey.derive("t" * 63, found.idempotency_key)
    spec = JobSpec(key, found.idempotency_key, found.dataset, 2**31 - 1, found.labels, JobOptions(True, 2**63 - 1, 3e7))
    return Message(
        kind=Kind.BATCH,
        spec=spec,
        lane=0,
        sequence=0,
        records=batch.records,
        job_records=0,
        sent_at=datetime.now(UTC),
        trace_context=f"00-{'a' * 32}-{'b' * 16}-01",
        digest=batch.digest,
        expires_at=datetime.now(UTC),
        partitions=partitions,
    )


def _varint(number: int) -> bytes:
    out = b""
    while number > 127:
        out += bytes([number & 127 | 128])
        number >>= 7
    return out + bytes([number])
