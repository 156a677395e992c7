"""A Kafka that stops: nothing is acknowledged that is not stored, and the client resumes where it was."""

from __future__ import annotations

import asyncio
import os
import signal
import uuid

import grpc
import pytest

from bulkgrpc import limits
from bulkgrpc.errors import Reason
from bulkgrpc.model import Kind
from bulkgrpc.postgres import schema
from bulkgrpc.server.serving import serving
from bulkgrpc.settings import ServerSettings, load
from bulkgrpc.stack import Stack
from tests.integration.server_peer import a_key, batch, header, next_answer, peer, read_topic, refusal


async def test_a_kafka_that_stops_ends_the_stream_and_nothing_unstored_was_acknowledged(
    own_stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "DELIVERY_TIMEOUT_S", 3.0)
    addresses = own_stack.addresses
    schema.migrate(addresses.postgres)
    settings = load(
        ServerSettings,
        kafka=addresses.kafka,
        postgres=addresses.postgres,
        redis=addresses.redis,
        topic=f"server-{uuid.uuid4().hex[:8]}",
        partitions=1,
        listen="127.0.0.1:0",
        drain_s=0.0,
        in_flight_bytes_max=1024 * 1024,
    )
    kafka = own_stack.part("kafka").status().pid
    assert kafka is not None
    key, session = a_key(), a_key()
    async with serving(settings) as running, peer(running.address) as client:
        await client.register()
        call = client.stream()
        await call.write(header(idempotency_key=key, session_id=session))
        await next_answer(call)
        await call.write(batch(0))
        assert (await next_answer(call)).acknowledged.next_sequence == 1
        os.kill(kafka, signal.SIGSTOP)
        try:
            for sequence in range(1, 4):
                await call.write(batch(sequence))
            code, refused = await refusal(next_answer(call))
        finally:
            os.kill(kafka, signal.SIGCONT)
        assert (code, refused.reason) == (grpc.StatusCode.UNAVAILABLE, Reason.KAFKA_UNAVAILABLE)
        assert refused.retry_after_s > 0
        answers = await client.whole(
            header(idempotency_key=key, session_id=session, first_sequence=1), *map(batch, range(1, 5))
        )
        assert answers[0].opened.next_sequence == 1
        assert answers[-1].sealed.job.counts.accepted == 10
    found = await asyncio.to_thread(read_topic, settings.kafka, settings.topic)
    assert {message.sequence for message, _ in found if message.kind is Kind.BATCH} == set(range(5))
