"""A topic that is deleted, created again or truncated: its partitions stop, others continue, the worker stays up."""

from __future__ import annotations

import uuid
from collections.abc import Iterator

import pytest
from confluent_kafka.admin import AdminClient

from bulkgrpc.kafka.administration import KafkaAdministration
from bulkgrpc.kafka.topic_log import KafkaTopicLog
from bulkgrpc.kafka.topics import TopicMissing, ensure_topic
from bulkgrpc.model import JobSpec
from bulkgrpc.postgres.topics import may_create
from bulkgrpc.stack import Addresses
from tests.integration.test_worker import Feed, batch, ended, feed, seal, send, spec
from tests.support import examples
from tests.support.database import Connection
from tests.support.processes import Process
from tests.support.waiting import eventually

__all__ = ["feed"]


@pytest.fixture
def worker(feed: Feed) -> Iterator[Process]:
    process = feed.worker()
    process.start()
    yield process
    assert process.ended is None, process.log.read_text()
    process.stop()


def recreate(feed: Feed) -> None:
    """Delete the topic and create it again."""
    before = KafkaTopicLog(feed.settings).topic_id()
    KafkaAdministration(feed.settings.kafka).delete_topics([feed.settings.topic])
    # The name is free once the brokers have deleted it.
    created = False
    while not created:
        try:
            ensure_topic(feed.settings)
            created = KafkaTopicLog(feed.settings).topic_id() not in (None, before)
        except KeyError:
            continue


async def write(feed: Feed, connection: Connection, name: str, partition: int = 0, records: int = 10) -> JobSpec:
    """Have a job of a partition written, with several messages."""
    job = spec(name, f"t{partition}")
    base = records * partition
    await send(
        feed,
        [*(batch(job, n, 1, examples.reading_batch(base + n, 1)) for n in range(records)), seal(job, records)],
        partition,
    )
    assert await ended(connection, job) == (3, records, records, 0, 0)
    return job


def stops(connection: Connection) -> dict[int, tuple[str, int, int | None]]:
    """The stopped partitions in the ledger: cause and lost span."""
    rows = connection.execute(
        "SELECT partition, stop_cause, lost_from, lost_to FROM bulk.partition_logs WHERE stop_cause IS NOT NULL"
    )
    return {partition: (cause, lost_from, lost_to) for partition, cause, lost_from, lost_to in rows}


async def test_a_worker_records_the_id_of_the_topic(feed: Feed, worker: Process, connection: Connection) -> None:
    await write(feed, connection, "k")
    row = connection.execute("SELECT topic, topic_id FROM bulk.topics").fetchall()
    assert row == [(feed.settings.topic, KafkaTopicLog(feed.settings).topic_id())]
    row = connection.execute("SELECT log_start FROM bulk.partition_logs ORDER BY partition").fetchall()
    assert row == [(0,), (0,)]


async def test_a_topic_that_is_created_again_under_a_worker_stops_its_partitions(
    feed: Feed, worker: Process, connection: Connection
) -> None:
    await write(feed, connection, "before")
    recreate(feed)
    job = spec("after")
    await send(feed, [batch(job, n, 1, examples.reading_batch(100 + n, 1)) for n in range(20)])
    await eventually(lambda: stops(connection).get(0, ("",))[0] == "topic_replaced")
    assert stops(connection)[0][1] == 11
    await eventually(lambda: '"cause": "topic_replaced"' in worker.log.read_text())
    assert "adopt-topic" in worker.log.read_text()
    assert connection.execute("SELECT next_offset FROM bulk.offsets WHERE partition = 0").fetchall() == [(11,)]


async def test_a_topic_that_is_created_again_between_two_workers_stops_its_partitions(
    feed: Feed, connection: Connection
) -> None:
    first = feed.worker("first")
    first.start()
    await write(feed, connection, "before")
    first.stop()
    recreate(feed)
    await send(feed, [batch(spec("after"), n, 1, examples.reading_batch(100 + n, 1)) for n in range(20)])
    second = feed.worker("second")
    second.start()
    try:
        await eventually(lambda: second.log.read_text().count('"cause": "topic_replaced"') == 2)
        assert second.ended is None
        assert connection.execute("SELECT count(*) FROM sensor_readings").fetchall() == [(10,)]
    finally:
        second.stop()


async def test_a_topic_that_is_deleted_under_a_worker_is_reported_and_not_created(
    feed: Feed, worker: Process, connection: Connection
) -> None:
    await write(feed, connection, "before")
    KafkaAdministration(feed.settings.kafka).delete_topics([feed.settings.topic])
    await eventually(lambda: "topic_missing" in worker.log.read_text(), 30)
    await eventually(lambda: stops(connection).get(0, ("",))[0] == "topic_missing")
    second = feed.worker("second")
    second.start()
    try:
        assert "topic_missing" in second.log.read_text()
        assert KafkaTopicLog(feed.settings).topic_id() is None
        assert second.ended is None
    finally:
        second.stop()


async def test_messages_that_are_deleted_stop_one_partition_and_another_continues(
    feed: Feed, connection: Connection
) -> None:
    first = feed.worker("first")
    first.start()
    await write(feed, connection, "k0", 0)
    await write(feed, connection, "k1", 1)
    first.stop()
    await send(feed, [batch(spec("lost"), n, 1, examples.reading_batch(100 + n, 1)) for n in range(20)])
    KafkaAdministration(feed.settings.kafka).delete_records(feed.settings.topic, {0: 21})
    second = feed.worker("second")
    second.start()
    try:
        await eventually(lambda: stops(connection) == {0: ("messages_deleted", 11, 21)})
        more = spec("more", "t1")
        await send(feed, [batch(more, 0, 1, examples.reading_batch(200, 1)), seal(more, 1)], 1)
        assert await ended(connection, more) == (3, 1, 1, 0, 0)
        assert '"lost": "[11, 21)"' in second.log.read_text()
        assert second.ended is None
    finally:
        second.stop()


async def test_messages_that_are_deleted_under_a_worker_stop_their_partition(
    feed: Feed, worker: Process, connection: Connection
) -> None:
    await write(feed, connection, "k0", 0)
    connection.execute("UPDATE bulk.offsets SET next_offset = 3, owner_epoch = owner_epoch + 1 WHERE partition = 0")
    KafkaAdministration(feed.settings.kafka).delete_records(feed.settings.topic, {0: 5})
    await eventually(lambda: stops(connection) == {0: ("messages_deleted", 3, 5)})
    await write(feed, connection, "k1", 1)


async def test_a_ledger_that_is_ahead_of_the_log_stops_its_partition(
    feed: Feed, worker: Process, connection: Connection
) -> None:
    await write(feed, connection, "k0", 0)
    connection.execute("UPDATE bulk.offsets SET next_offset = 30, owner_epoch = owner_epoch + 1 WHERE partition = 0")
    await eventually(lambda: stops(connection) == {0: ("log_truncated", 11, 30)})
    await eventually(lambda: '"cause": "log_truncated"' in worker.log.read_text())
    await write(feed, connection, "k1", 1)
    # As it was: the partition continues by itself.
    connection.execute("UPDATE bulk.offsets SET next_offset = 11 WHERE partition = 0")
    more = spec("more", "t0")
    await send(feed, [batch(more, 0, 1, examples.reading_batch(200, 1)), seal(more, 1)], 0)
    assert await ended(connection, more) == (3, 1, 1, 0, 0)
    assert stops(connection) == {}


def test_a_topic_that_the_ledger_knows_is_not_created(addresses: Addresses, feed: Feed, connection: Connection) -> None:
    settings = feed.settings.model_copy(update={"topic": f"records-{uuid.uuid4().hex[:12]}"})
    assert may_create(settings.postgres, settings.topic)
    connection.execute("INSERT INTO bulk.offsets VALUES (%s, 0, 0, 1)", [settings.topic])
    assert not may_create(settings.postgres, settings.topic)
    with pytest.raises(TopicMissing, match="adopt-topic"):
        ensure_topic(settings, lambda: may_create(settings.postgres, settings.topic))
    assert settings.topic not in AdminClient({"bootstrap.servers": settings.kafka}).list_topics(timeout=10).topics
