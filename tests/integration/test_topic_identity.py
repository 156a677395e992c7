"""A topic that is deleted, created again or truncated: its partitions stop, others continue, the worker stays up."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from confluent_kafka.admin import AdminClient
from psycopg_pool import AsyncConnectionPool
from typer.testing import CliRunner, Result

from bulkgrpc import limits
from bulkgrpc.cli.app import app
from bulkgrpc.consume import recovery
from bulkgrpc.errors import Reason
from bulkgrpc.ingest.refusals import job_closed
from bulkgrpc.kafka.administration import KafkaAdministration
from bulkgrpc.kafka.topic_log import KafkaTopicLog
from bulkgrpc.kafka.topics import TopicMissing, ensure_topic
from bulkgrpc.model import JobSpec
from bulkgrpc.postgres.blocks import Blocks
from bulkgrpc.postgres.jobs import JobStore
from bulkgrpc.postgres.statements import family
from bulkgrpc.postgres.topics import may_create
from bulkgrpc.stack import Addresses
from tests.integration.test_worker import Feed, batch, ended, feed, seal, send, spec
from tests.support import examples
from tests.support.database import Connection, count
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
        async with AsyncConnectionPool(feed.settings.postgres, kwargs={"autocommit": True}) as pool:
            shown = (await Blocks(pool, feed.settings.topic).ledger()).partitions
        assert [(one.partition, one.next_offset, one.stop_reason) for one in shown] == [
            (0, 11, "messages_deleted: Kafka lost [11, 21)"),
            (1, 11, ""),
        ]
        assert shown[0].stop_time is not None
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


def recover(feed: Feed, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> Result:
    """Run a command of `bulkgrpc ledger`."""
    for name, value in feed.environment.items():
        monkeypatch.setenv(name, value)
    return CliRunner().invoke(app, ["ledger", *arguments])


def job_of(connection: Connection, job: JobSpec) -> tuple[int, str]:
    """State and failure reason of a job."""
    rows = connection.execute("SELECT state, failure_reason FROM bulk.jobs WHERE job_id = %s", [job.key.job_id])
    state, reason = rows.fetchall()[0]
    return state, reason


@pytest.mark.parametrize("protocol", ["consumer", "classic"])
async def test_an_adopted_topic_is_read_from_its_start_and_jobs_that_lost_batches_fail(
    feed: Feed, connection: Connection, monkeypatch: pytest.MonkeyPatch, protocol: str
) -> None:
    worker = replace(feed.worker(), environment={**feed.environment, "BULKGRPC_GROUP_PROTOCOL": protocol})
    worker.start()
    try:
        await check_adoption(feed, connection, monkeypatch)
        assert worker.ended is None
    finally:
        worker.stop()


async def check_adoption(feed: Feed, connection: Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    done = await write(feed, connection, "done")
    cut = spec("cut", "t0")
    await send(feed, [batch(cut, 0, 1, examples.reading_batch(500, 1))])
    await eventually(lambda: count(connection, "sensor_readings") == 11)
    recreate(feed)
    after = spec("after", "t9")
    await send(feed, [*(batch(after, n, 1, examples.reading_batch(100 + n, 1)) for n in range(20)), seal(after, 20)])
    await eventually(lambda: stops(connection).get(0, ("",))[0] == "topic_replaced")
    refused = recover(feed, monkeypatch, "accept-loss", "--yes")
    assert (refused.exit_code, "adopt-topic" in refused.output) == (1, True)
    aborted = recover(feed, monkeypatch, "adopt-topic")
    assert aborted.exit_code == 1
    assert "fail 1 jobs?" in aborted.output
    assert job_of(connection, cut)[0] == 1
    adopted = recover(feed, monkeypatch, "adopt-topic", "--yes", "--json")
    assert adopted.exit_code == 0, adopted.output
    document = json.loads(adopted.stdout)
    assert [one["name"] for one in document["failed_jobs"]] == [cut.key.name]
    assert [(one["cause"], one["resume_at"]) for one in document["partitions"]] == [("topic_replaced", 0)] * 2
    # Above 12 if the worker read messages of the new topic before it noticed: they are read again.
    assert document["partitions"][0]["lost_from"] >= 12
    assert await ended(connection, after) == (3, 20, 20, 0, 0)
    assert (job_of(connection, done)[0], job_of(connection, cut)[0]) == (3, 5)
    assert job_of(connection, cut)[1].startswith("LOST_IN_KAFKA")
    await eventually(lambda: stops(connection) == {})
    assert connection.execute("SELECT topic_id FROM bulk.topics").fetchone() == (
        KafkaTopicLog(feed.settings).topic_id(),
    )
    async with AsyncConnectionPool(feed.settings.postgres, kwargs={"autocommit": True}) as pool:
        found = await JobStore(pool).open_job(cut, [0], datetime.now(UTC))
    refused_batch = job_closed(found)
    assert refused_batch.reason is Reason.JOB_ENDED
    assert "LOST_IN_KAFKA" in refused_batch.message
    assert "same idempotency key" in refused_batch.message
    assert "continues at batch 1" in refused_batch.message
    nothing = recover(feed, monkeypatch, "adopt-topic", "--yes")
    assert (nothing.exit_code, "nothing to adopt" in nothing.output) == (1, True)


async def test_an_accepted_loss_fails_the_jobs_that_it_may_have_hit_and_no_later_one(
    feed: Feed, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recovery, "CLOCK_SKEW_S", -limits.DELIVERY_TIMEOUT_S)
    first = feed.worker("first")
    first.start()
    hit, other = spec("hit", "t0"), spec("other", "t1")
    await send(feed, [batch(hit, 0, 1, examples.reading_batch(0, 1))], 0)
    await send(feed, [batch(other, 0, 1, examples.reading_batch(1, 1))], 1)
    await eventually(lambda: count(connection, "sensor_readings") == 2)
    first.stop()
    await send(feed, [batch(hit, 1, 1, examples.reading_batch(2, 1)), seal(hit, 2)], 0)
    KafkaAdministration(feed.settings.kafka).delete_records(feed.settings.topic, {0: 3})
    later = spec("later", "t2")
    await send(feed, [batch(later, 0, 1, examples.reading_batch(3, 1)), seal(later, 1)], 0)
    async with AsyncConnectionPool(feed.settings.postgres, kwargs={"autocommit": True}) as pool:
        await JobStore(pool).open_job(later, [0], datetime.now(UTC) + timedelta(seconds=1))
    second = feed.worker("second")
    second.start()
    try:
        await eventually(lambda: stops(connection) == {0: ("messages_deleted", 1, 3)})
        wrong = recover(feed, monkeypatch, "accept-loss", "--partition", "1", "--yes")
        assert (wrong.exit_code, "nothing to accept" in wrong.output) == (1, True)
        accepted = recover(feed, monkeypatch, "accept-loss", "--partition", "0", "--yes")
        assert accepted.exit_code == 0, accepted.output
        assert await ended(connection, later) == (3, 1, 1, 0, 0)
        assert (job_of(connection, hit)[0], job_of(connection, other)[0]) == (5, 1)
        assert "[1, 3) of partition 0" in job_of(connection, hit)[1]
        assert "partition_resumed" in second.log.read_text()
    finally:
        second.stop()


async def test_after_a_truncation_new_messages_with_old_offsets_are_applied_and_old_ones_are_not_applied_again(
    feed: Feed, worker: Process, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    await write(feed, connection, "k0", 0)
    connection.execute("UPDATE bulk.offsets SET next_offset = 30, owner_epoch = owner_epoch + 1 WHERE partition = 0")
    await eventually(lambda: stops(connection) == {0: ("log_truncated", 11, 30)})
    new = spec("new", "t5")
    await send(feed, [batch(new, 0, 1, examples.reading_batch(50, 1)), seal(new, 1)])
    async with AsyncConnectionPool(feed.settings.postgres, kwargs={"autocommit": True}) as pool:
        await JobStore(pool).open_job(new, [0], datetime.now(UTC) + timedelta(seconds=90))
    accepted = recover(feed, monkeypatch, "accept-loss", "--yes", "--json")
    assert accepted.exit_code == 0, accepted.output
    assert json.loads(accepted.stdout)["failed_jobs"] == []
    assert await ended(connection, new) == (3, 1, 1, 0, 0)
    assert count(connection, "sensor_readings") == 11


def test_parked_messages_keep_their_order_before_those_of_an_adopted_topic(connection: Connection) -> None:
    def park(offset: int) -> None:
        connection.execute(
            "INSERT INTO bulk.parked (topic, partition, message_offset, tenant, dataset, job_id, records, headers, "
            "payload) VALUES ('t', 0, %s, 'a', 'd', %s, 1, '[]', '')",
            [offset, uuid.uuid4()],
        )

    def shift() -> list[int]:
        connection.execute(family("recovery")["shift_parked"], {"topic": "t", "partition": 0})
        rows = connection.execute("SELECT message_offset FROM bulk.parked ORDER BY park_time").fetchall()
        return [offset for (offset,) in rows]

    connection.execute("INSERT INTO bulk.discards VALUES ('d', 't', 0, 9, 'r')")
    assert shift() == []
    assert connection.execute("SELECT count(*) FROM bulk.discards").fetchone() == (0,)
    connection.execute("INSERT INTO bulk.discards VALUES ('d', 't', 0, 9, 'r')")
    for offset in (7, 8, 11):
        park(offset)
    assert shift() == [-5, -4, -1]
    assert connection.execute("SELECT to_offset FROM bulk.discards").fetchone() == (-3,)
    park(0)
    park(3)
    found = shift()
    assert found == sorted(found)
    assert found[-1] < 0


@pytest.mark.parametrize("mirror", ["same-offsets", "other-offsets"])
async def test_a_mirror_is_adopted_and_no_job_fails(
    feed: Feed, worker: Process, connection: Connection, monkeypatch: pytest.MonkeyPatch, mirror: str
) -> None:
    await write(feed, connection, "done")
    begun = spec("begun", "t1")
    await send(feed, [batch(begun, 0, 1, examples.reading_batch(50, 1))])
    await eventually(lambda: count(connection, "sensor_readings") == 11)
    # To the ledger, the topic with the same messages is another one.
    connection.execute("UPDATE bulk.topics SET topic_id = gen_random_uuid()")
    await eventually(lambda: stops(connection).get(0, ("",))[0] == "topic_replaced")
    await send(feed, [batch(begun, 1, 1, examples.reading_batch(51, 1)), seal(begun, 2)])
    adopted = recover(feed, monkeypatch, "adopt-topic", "--mirror", mirror, "--yes", "--json")
    assert adopted.exit_code == 0, adopted.output
    document = json.loads(adopted.stdout)
    assert document["failed_jobs"] == []
    assert document["partitions"][0]["resume_at"] == (12 if mirror == "same-offsets" else 0)
    assert await ended(connection, begun) == (3, 2, 2, 0, 0)
    assert count(connection, "sensor_readings") == 12
