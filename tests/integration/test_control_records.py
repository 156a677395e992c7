"""Transactions of other programs in the records topic: what Kafka shows to no consumer stops no partition."""

from __future__ import annotations

import asyncio
import json
import signal
import threading
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

import pytest
from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import AdminClient
from confluent_kafka.admin._config import AlterConfigOpType, ConfigEntry, ConfigResource

from bulkgrpc.consume import stall
from bulkgrpc.kafka.administration import KafkaAdministration
from bulkgrpc.kafka.message import to_headers
from bulkgrpc.model import Message
from bulkgrpc.postgres.worker_ports import PostgresDatasetRegistry
from bulkgrpc.settings import WorkerSettings, load
from tests.integration import test_worker
from tests.integration.test_worker import PARTITIONS, Feed, batch, ended, seal, send, spec
from tests.support import examples
from tests.support.database import Connection, count
from tests.support.ends import end_offsets
from tests.support.processes import Process
from tests.support.waiting import eventually
from workers.poller import Poller
from workers.process import wire

feed, worker = test_worker.feed, test_worker.worker
SILENT_S, CHECK_EVERY_S = 1.0, 0.2
TIMEOUT_S = 20.0
COMPACTED_WITHIN_S = 60.0
MANY = 200


class Transactions:
    """Transactions of a producer in partition 0. Each ends with a control record."""

    def __init__(self, feed: Feed) -> None:
        self._topic = feed.settings.topic
        self._producer = Producer(
            {"bootstrap.servers": feed.settings.kafka, "transactional.id": uuid.uuid4().hex, "log_level": 0}
        )
        self._producer.init_transactions(TIMEOUT_S)

    def begin(self, messages: Sequence[tuple[Message, bytes]]) -> None:
        """Begin a transaction and store messages."""
        self._producer.begin_transaction()
        for message, payload in messages:
            self._producer.produce(self._topic, payload, b"acme", 0, headers=to_headers(message))
        self._producer.flush(TIMEOUT_S)

    def commit(self, messages: Sequence[tuple[Message, bytes]]) -> None:
        """Store messages and the control record of a commit."""
        self.begin(messages)
        self.end_commit()

    def end_commit(self) -> None:
        """Store the control record of a commit."""
        self._producer.commit_transaction(TIMEOUT_S)

    def abort(self, messages: Sequence[tuple[Message, bytes]]) -> None:
        """Store messages and the control record of an abort."""
        self.begin(messages)
        self._producer.abort_transaction(TIMEOUT_S)


def ten(number: int) -> bytes:
    """A payload of ten records that no other number has."""
    return examples.reading_batch(number * 10, 10)


async def at_the_end(feed: Feed, connection: Connection) -> None:
    """Wait until the ledger is at the end of partition 0."""
    end = end_offsets(feed.settings.kafka, feed.settings.topic, PARTITIONS)[0]

    def reached() -> bool:
        row = connection.execute("SELECT next_offset FROM bulk.offsets WHERE partition = 0").fetchone()
        return row == (end,)

    await eventually(reached)


def passed_over(process: Process) -> list[tuple[int, int]]:
    """Return the spans that a worker logged as passed over."""
    logged = [json.loads(line) for line in process.log.read_text().splitlines()]
    return [(one["from_offset"], one["to_offset"]) for one in logged if one["event"] == "offsets_passed_over"]


async def test_control_records_and_aborted_messages_between_batches_are_passed_over(
    feed: Feed, worker: Process, connection: Connection
) -> None:
    plain, committed, aborted = spec("plain"), spec("committed"), spec("aborted")
    transactions = Transactions(feed)
    await send(feed, [batch(plain, 0, 10, ten(0))])
    transactions.commit([batch(committed, 0, 10, ten(1)), seal(committed, 1)])  # 1, 2; marker 3
    await send(feed, [batch(plain, 1, 10, ten(2))])  # 4
    transactions.abort([batch(aborted, 0, 10, ten(3))])  # 5; marker 6
    transactions.abort([batch(aborted, 0, 10, ten(3)), seal(aborted, 1)])  # 7, 8; marker 9
    await send(feed, [batch(plain, 2, 10, ten(4)), seal(plain, 3)])  # 10, 11
    transactions.abort([batch(aborted, 0, 10, ten(3))])  # 12; marker 13
    assert await ended(connection, plain) == (3, 30, 30, 0, 0)
    assert await ended(connection, committed) == (3, 10, 10, 0, 0)
    await at_the_end(feed, connection)
    assert count(connection, "bulk.jobs") == 2
    assert count(connection, "sensor_readings") == 40
    skipped = {offset for start, end in passed_over(worker) for offset in range(start, end)}
    assert skipped == {3, 5, 6, 7, 8, 9, 12, 13}
    assert worker.ended is None
    assert "partitions_stalled" not in worker.log.read_text()


async def test_a_log_that_begins_with_an_aborted_transaction_is_read(
    feed: Feed, worker: Process, connection: Connection
) -> None:
    Transactions(feed).abort([batch(spec("aborted"), 0, 10, ten(0))])
    await at_the_end(feed, connection)
    job = spec("k")
    await send(feed, [batch(job, 0, 10, ten(1)), seal(job, 1)])
    assert await ended(connection, job) == (3, 10, 10, 0, 0)
    assert passed_over(worker) == [(0, 2)]


async def test_a_worker_starts_at_a_control_record(feed: Feed, connection: Connection) -> None:
    job, topic = spec("k"), feed.settings.topic
    transactions = Transactions(feed)
    transactions.commit([batch(job, 0, 10, ten(0))])  # 0; marker 1
    connection.execute("INSERT INTO bulk.offsets VALUES (%s, 0, 1, 1)", [topic])
    KafkaAdministration(feed.settings.kafka).delete_records(topic, {0: 1})
    again = spec("again")
    await send(feed, [batch(again, 0, 10, ten(1)), seal(again, 1)])
    process = feed.worker()
    process.start()
    try:
        assert await ended(connection, again) == (3, 10, 10, 0, 0)
        assert passed_over(process) == [(1, 2)]
    finally:
        process.stop()


async def test_a_restarted_worker_continues_after_what_was_passed_over(feed: Feed, connection: Connection) -> None:
    job, aborted = spec("k"), spec("aborted")
    transactions = Transactions(feed)
    first = feed.worker()
    first.start()
    await send(feed, [batch(job, 0, 10, ten(0))])
    transactions.abort([batch(aborted, 0, 10, ten(1))])
    await at_the_end(feed, connection)
    assert first.kill(signal.SIGKILL) != 0
    transactions.abort([batch(aborted, 0, 10, ten(1))])
    transactions.commit([batch(job, 1, 10, ten(2))])
    second = feed.worker("second")
    second.start()
    try:
        await at_the_end(feed, connection)
        transactions.commit([seal(job, 2)])
        assert await ended(connection, job) == (3, 20, 20, 0, 0)
        await at_the_end(feed, connection)
        assert passed_over(first) == [(1, 3)]
        assert passed_over(second)[0][0] == 3
    finally:
        second.stop()


async def test_a_span_that_kafka_deleted_before_a_control_record_is_lost(feed: Feed, connection: Connection) -> None:
    transactions = Transactions(feed)
    transactions.commit([batch(spec("k"), number, 10, ten(number)) for number in range(3)])  # 0 to 2; marker 3
    connection.execute("INSERT INTO bulk.offsets VALUES (%s, 0, 1, 1)", [feed.settings.topic])
    KafkaAdministration(feed.settings.kafka).delete_records(feed.settings.topic, {0: 3})
    process = feed.worker()
    process.start()
    try:
        stopped = "SELECT stop_cause, lost_from, lost_to FROM bulk.partition_logs WHERE stop_cause IS NOT NULL"
        assert await eventually(lambda: connection.execute(stopped).fetchone()) == ("messages_deleted", 1, 3)
        assert process.ended is None
    finally:
        process.stop()


@asynccontextmanager
async def polling(feed: Feed) -> AsyncIterator[Poller]:
    """Run a worker in this process."""
    stopping = threading.Event()
    topic = feed.settings.topic
    settings = load(
        WorkerSettings, kafka=feed.settings.kafka, postgres=feed.settings.postgres, topic=topic, group=topic
    )
    poller = wire(settings, PostgresDatasetRegistry(feed.settings.postgres), stopping)
    running = asyncio.create_task(asyncio.to_thread(poller.run))
    try:
        await eventually(lambda: len(poller.partitions.owned.owned) == PARTITIONS)
        yield poller
    finally:
        stopping.set()
        await running


@pytest.fixture
def rejoined(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The times at which a worker of this process joined its group again. It looks for stalls more often than usual."""
    monkeypatch.setattr(stall, "SILENT_S", SILENT_S)
    monkeypatch.setattr(stall, "CHECK_EVERY_S", CHECK_EVERY_S)
    return []


def watch(poller: Poller, rejoined: list[float], monkeypatch: pytest.MonkeyPatch) -> Callable[[float], bool]:
    """Note each rejoin. Returns a function that says whether some seconds have passed."""
    rejoin, clock = poller.ports.log.rejoin, poller.ports.clock
    begun_s = clock()

    def noted(timeout_s: float) -> None:
        rejoined.append(clock())
        rejoin(timeout_s)

    monkeypatch.setattr(poller.ports.log, "rejoin", noted)
    return lambda seconds: clock() - begun_s > seconds


async def test_a_log_that_ends_with_a_control_record_is_not_stalled(
    feed: Feed, connection: Connection, rejoined: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    job = spec("k")
    async with polling(feed) as poller:
        passed = watch(poller, rejoined, monkeypatch)
        Transactions(feed).commit([batch(job, 0, 10, ten(0)), seal(job, 1)])
        assert await ended(connection, job) == (3, 10, 10, 0, 0)
        await eventually(lambda: passed(3 * SILENT_S))
        await at_the_end(feed, connection)
    assert not rejoined


async def test_a_transaction_that_is_open_is_waited_for_and_is_not_a_stall(
    feed: Feed, connection: Connection, rejoined: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    job, behind = spec("k"), spec("behind")
    async with polling(feed) as poller:
        passed = watch(poller, rejoined, monkeypatch)
        transactions = Transactions(feed)
        transactions.begin([batch(job, 0, 10, ten(0)), seal(job, 1)])
        await send(feed, [batch(behind, 0, 10, ten(1)), seal(behind, 1)])
        await eventually(lambda: passed(3 * SILENT_S))
        assert count(connection, "bulk.jobs") == 0
        transactions.end_commit()
        assert await ended(connection, job) == (3, 10, 10, 0, 0)
        assert await ended(connection, behind) == (3, 10, 10, 0, 0)
    assert not rejoined


async def test_messages_that_compaction_deleted_are_reported_as_an_error(feed: Feed, connection: Connection) -> None:
    topic, admin = feed.settings.topic, AdminClient({"bootstrap.servers": feed.settings.kafka, "log_level": 0})
    configuration = {
        "cleanup.policy": "compact",
        "segment.ms": "1",
        "min.cleanable.dirty.ratio": "0.01",
        "max.compaction.lag.ms": "1",
    }
    resource = ConfigResource(
        ConfigResource.Type.TOPIC,
        topic,
        incremental_configs=[
            ConfigEntry(name, value, incremental_operation=AlterConfigOpType.SET)
            for name, value in configuration.items()
        ],
    )
    admin.incremental_alter_configs([resource])[resource].result(TIMEOUT_S)
    job = spec("k")
    consumer = Consumer({"bootstrap.servers": feed.settings.kafka, "group.id": topic + "-reader"})
    producer = Producer({"bootstrap.servers": feed.settings.kafka, "log_level": 0})

    def first_offset() -> int | None:
        """Send the batch again, always with the same key; return the first offset that Kafka has, if it is not 0."""
        message, payload = batch(job, 0, 10, ten(0))
        producer.produce(topic, payload, b"acme", 0, headers=to_headers(message))
        producer.flush(TIMEOUT_S)
        consumer.assign([TopicPartition(topic, 0, 0)])
        first = consumer.poll(TIMEOUT_S)
        return None if first is None else first.offset() or None

    try:
        found = await eventually(first_offset, COMPACTED_WITHIN_S)
    finally:
        consumer.close()
    process = feed.worker()
    process.start()
    try:
        await eventually(lambda: passed_over(process) or None)
    finally:
        process.stop()
    start, end = passed_over(process)[0]
    assert start == 0
    assert end >= found
    assert '"level": "error"' in next(line for line in process.log.read_text().splitlines() if "passed_over" in line)


async def test_many_transactions_are_passed_over_in_few_reads(feed: Feed, connection: Connection) -> None:
    job = spec("k")
    transactions = Transactions(feed)
    for number in range(MANY):
        transactions.commit([batch(job, number, 10, ten(number))])
    transactions.commit([seal(job, MANY)])
    process = feed.worker()
    process.start()
    try:
        assert await ended(connection, job) == (3, 10 * MANY, 10 * MANY, 0, 0)
        assert len(passed_over(process)) >= MANY
        assert process.log.read_text().count("offset_gap") < MANY // 4
    finally:
        process.stop()
