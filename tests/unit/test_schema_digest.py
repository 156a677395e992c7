"""A registry that was restored may give the number of a version to another definition: batches are not misread."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorSet

from bulkgrpc.consume.assembly import Chunk, Received, Span
from bulkgrpc.consume.decode import prepare
from bulkgrpc.datasets.codec import BatchCodec
from bulkgrpc.datasets.evolution import same
from bulkgrpc.datasets.meaning import digest_of_schema
from bulkgrpc.model import JobKey, JobSpec, Kind, Message
from tests.support import examples
from tests.support.worker_ports import FakeRegistry

SPEC = JobSpec(JobKey.derive("acme", "k"), "k", "sensor_readings", 1)


@pytest.mark.parametrize(
    ("registered", "accepted_for", "decoded"),
    [(b"one", b"one", True), (b"", b"one", True), (b"one", b"", True), (b"two", b"one", False)],
)
def test_a_batch_is_decoded_by_the_definition_that_its_server_knew_or_not_at_all(
    registered: bytes, accepted_for: bytes, decoded: bool
) -> None:
    codec = BatchCodec(replace(examples.readings(), schema_digest=registered))
    registry = FakeRegistry({("sensor_readings", 1): codec})
    message = Message(Kind.BATCH, SPEC, 0, 0, 1, 0, datetime.now(UTC), schema=accepted_for)
    chunk = Chunk((Span(0, 0, 1, 1),), (Received(0, 0, message, examples.reading_batch(0, 1)),), 1)
    prepared = prepare(chunk, registry.codec)
    assert len(prepared.groups) == decoded
    unreadable = [failure.message for failure in prepared.unreadable.values()]
    assert ["the number was given again" in reason for reason in unreadable] == [True] * (not decoded)
    assert not prepared.undecodable


def test_options_for_other_languages_are_no_other_definition() -> None:
    readings = examples.readings()
    files = FileDescriptorSet.FromString(readings.descriptors)
    for file in files.file:
        file.ClearField("options")
    before = replace(readings, descriptors=files.SerializeToString())
    assert before.descriptors != readings.descriptors
    assert same(before, readings)
    assert digest_of_schema(before) == digest_of_schema(readings)
