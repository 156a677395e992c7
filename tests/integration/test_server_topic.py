"""A server whose topic is missing or another one: it does not create it, and acknowledges nothing for it."""

from __future__ import annotations

import asyncio
import uuid

import grpc
import pytest

from bulkgrpc.errors import Reason
from bulkgrpc.ingest import topic_guard
from bulkgrpc.kafka.administration import KafkaAdministration
from bulkgrpc.kafka.topic_log import KafkaTopicLog
from bulkgrpc.kafka.topics import ensure_topic
from bulkgrpc.postgres.connection import connect
from bulkgrpc.rpc_status import from_rpc_error
from bulkgrpc.server import topic
from bulkgrpc.server.cannot_serve import CannotServe
from bulkgrpc.server.serving import serving
from bulkgrpc.settings import ServerSettings
from tests.integration.server_parts import serve_with, server_database, server_settings
from tests.integration.server_peer import Peer, ServeWith, a_key, batch, header, next_answer, refusal
from tests.support.waiting import eventually

__all__ = ["serve_with", "server_database", "server_settings"]


def recorded_id(settings: ServerSettings) -> uuid.UUID | None:
    with connect(settings.postgres, "tests") as connection:
        row = connection.execute("SELECT topic_id FROM bulk.topics WHERE topic = %s", [settings.topic]).fetchone()
    return None if row is None else row[0]


def recreate(settings: ServerSettings) -> uuid.UUID:
    """Delete the topic and create it again; return its ID."""
    before = KafkaTopicLog(settings).topic_id()
    KafkaAdministration(settings.kafka).delete_topics([settings.topic])
    while (found := KafkaTopicLog(settings).topic_id()) in (None, before):
        try:
            ensure_topic(settings)
        except KeyError:
            continue
    assert found is not None
    return found


async def outcome_once_it_is(client: Peer, *, refused: bool) -> tuple[grpc.StatusCode, Reason] | None:
    """Submit one job after the other until one is refused, or accepted; return the status and the reason."""
    for _ in range(300):
        outcome = None
        try:
            await client.whole(header(idempotency_key=a_key()), batch(0))
        except grpc.aio.AioRpcError as error:
            found = from_rpc_error(error)
            assert found is not None
            outcome = (error.code(), found.reason)
        if (outcome is not None) == refused:
            return outcome
        await asyncio.sleep(0.1)
    raise AssertionError(outcome)


async def test_a_server_records_the_id_of_the_topic_that_it_creates(
    server_settings: ServerSettings, serve_with: ServeWith
) -> None:
    async with serve_with():
        found = await asyncio.to_thread(KafkaTopicLog(server_settings).topic_id)
        assert found is not None
        assert recorded_id(server_settings) == found


async def test_a_server_does_not_create_a_topic_that_the_ledger_knows(
    server_settings: ServerSettings, serve_with: ServeWith, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(topic, "SERVER_STORES_S", 1.0)
    async with serve_with():
        pass
    await asyncio.to_thread(KafkaAdministration(server_settings.kafka).delete_topics, [server_settings.topic])
    with pytest.raises(CannotServe, match="adopt-topic"):
        async with serving(server_settings):
            pass
    assert await asyncio.to_thread(KafkaTopicLog(server_settings).topic_id) is None


async def test_a_server_creates_no_topic_while_postgresql_is_unavailable(
    server_settings: ServerSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(topic, "SERVER_STORES_S", 1.0)
    away = server_settings.model_copy(update={"postgres": "postgresql://nobody@127.0.0.1:1/none?connect_timeout=2"})
    with pytest.raises(CannotServe, match="BULKGRPC_POSTGRES"):
        async with serving(away):
            pass
    assert await asyncio.to_thread(KafkaTopicLog(server_settings).topic_id) is None


async def test_nothing_is_acknowledged_for_a_topic_that_was_created_again_until_it_is_adopted(
    server_settings: ServerSettings, serve_with: ServeWith, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(topic_guard, "LOOK_S", 0.2)
    key = a_key()
    async with serve_with() as (_, client):
        call = client.stream()
        await call.write(header(idempotency_key=key))
        await next_answer(call)
        await call.write(batch(0))
        assert (await next_answer(call)).acknowledged.next_sequence == 1
        found = await asyncio.to_thread(recreate, server_settings)
        assert recorded_id(server_settings) not in (None, found)

        assert await outcome_once_it_is(client, refused=True) == (grpc.StatusCode.UNAVAILABLE, Reason.TOPIC_REPLACED)
        await call.write(batch(1))
        code, stopped = await refusal(next_answer(call))
        assert (code, stopped.reason) == (grpc.StatusCode.UNAVAILABLE, Reason.TOPIC_REPLACED)
        assert stopped.retry_after_s == topic_guard.RETRY_AFTER_S
        with connect(server_settings.postgres, "tests") as connection:
            connection.execute("UPDATE bulk.topics SET topic_id = %s WHERE topic = %s", [found, server_settings.topic])
        assert await outcome_once_it_is(client, refused=False) is None


async def test_a_server_that_starts_on_another_topic_refuses_from_the_first_stream_on(
    server_settings: ServerSettings, serve_with: ServeWith
) -> None:
    async with serve_with():
        pass
    await asyncio.to_thread(recreate, server_settings)
    async with serve_with() as (_, client):
        code, refused = await refusal(client.whole(header(idempotency_key=a_key()), batch(0)))
        assert (code, refused.reason) == (grpc.StatusCode.UNAVAILABLE, Reason.TOPIC_REPLACED)
    assert await eventually(lambda: recorded_id(server_settings)) is not None
