"""Worker processes on real Kafka and PostgreSQL; the test produces to Kafka itself."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import signal
import threading
import uuid
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import ConsumerGroupTopicPartitions, KafkaError, Producer, TopicPartition
from confluent_kafka.admin import AdminClient
from google.protobuf import message_factory
from psycopg_pool import AsyncConnectionPool
from typer.testing import CliRunner

from bulkgrpc.cli.app import app
from bulkgrpc.consume import stall
from bulkgrpc.consume.assembly import Fetched
from bulkgrpc.datasets.definition import find_message
from bulkgrpc.kafka import consumer as kafka_consumer
from bulkgrpc.kafka.consumer import RecordsConsumer
from bulkgrpc.kafka.producer import RecordsProducer
from bulkgrpc.kafka.topics import ensure_topic
from bulkgrpc.model import JobKey, JobSpec, Kind, Message
from bulkgrpc.postgres import ledger
from bulkgrpc.postgres.catalog import Catalog
from bulkgrpc.postgres.connection import connect
from bulkgrpc.postgres.jobs import JobStore
from bulkgrpc.postgres.worker_ports import PostgresDatasetRegistry
from bulkgrpc.settings import ServerSettings, WorkerSettings, load
from bulkgrpc.stack import Addresses
from tests.support import examples
from tests.support.database import Connection, count, register
from tests.support.processes import Process
from tests.support.waiting import eventually
from workers.process import wire

PARTITIONS = 2


@dataclass(frozen=True, slots=True)
class Feed:
    """A topic and a database of the test's own, and a producer for them."""

    settings: ServerSettings
    environment: dict[str, str]
    logs: Path

    def worker(self, name: str = "worker") -> Process:
        return Process("workers.process", (), self.environment, self.logs / f"{name}.log")

    def worker_without_key_check(self, name: str) -> Process:
        """A worker that writes tables without a key."""
        arguments = ("none", "workers.process")
        return replace(self.worker(name), module="tests.chaos.mutants", arguments=arguments)

    @asynccontextmanager
    async def producer(self) -> AsyncIterator[RecordsProducer]:
        async with RecordsProducer(self.settings, 1 << 26) as producer:
            yield producer


@pytest.fixture
def feed(addresses: Addresses, database: str, connection: Connection, tmp_path: Path) -> Feed:
    register(connection, examples.readings())
    topic = f"records-{uuid.uuid4().hex[:12]}"
    environment = {
        **addresses.environment(),
        "BULKGRPC_POSTGRES": database,
        "BULKGRPC_TOPIC": topic,
        "BULKGRPC_GROUP": topic,
        "BULKGRPC_DEAD_LETTER_TOPIC": f"{topic}-dead",
        "BULKGRPC_PARTITIONS": str(PARTITIONS),
    }
    settings = load(ServerSettings, kafka=addresses.kafka, postgres=database, topic=topic, partitions=PARTITIONS)
    assert ensure_topic(settings) == PARTITIONS
    return Feed(settings, environment, tmp_path)


@pytest.fixture
def worker(feed: Feed) -> Iterator[Process]:
    process = feed.worker()
    process.start()
    yield process
    process.stop()


def spec(job: str, tenant: str = "acme") -> JobSpec:
    return JobSpec(JobKey.derive(tenant, job), job, "sensor_readings", 1)


def batch(job: JobSpec, sequence: int, records: int, payload: bytes) -> tuple[Message, bytes]:
    return Message(Kind.BATCH, job, 0, sequence, records, 0, datetime.now(UTC)), payload


def seal(job: JobSpec, sequence: int) -> tuple[Message, bytes]:
    return Message(Kind.SEAL, job, 0, sequence, 0, 0, datetime.now(UTC)), b""


async def send(feed: Feed, messages: Sequence[tuple[Message, bytes]], partition: int = 0) -> None:
    """Send messages and wait until Kafka has stored them."""
    done = asyncio.Event()
    errors: list[KafkaError | None] = []

    def delivered(error: KafkaError | None) -> None:
        errors.append(error)
        if len(errors) == len(messages):
            done.set()

    async with feed.producer() as producer:
        for message, payload in messages:
            producer.send(partition, message, payload, delivered)
        await asyncio.wait_for(done.wait(), 30)
    assert set(errors) == {None}


async def ended(connection: Connection, job: JobSpec, within_s: float = 30) -> tuple[object, ...]:
    """Wait until a job has ended; return its state and counts."""

    def found() -> tuple[object, ...] | None:
        return connection.execute(
            "SELECT state, accepted, written, duplicate, rejected FROM bulk.jobs WHERE job_id = %s AND state >= 3",
            [job.key.job_id],
        ).fetchone()

    return await eventually(found, within_s)


async def test_a_job_without_a_row_is_written(feed: Feed, worker: Process, connection: Connection) -> None:
    job = spec("k")
    batches = [batch(job, n, 100, examples.reading_batch(n * 100, 100)) for n in range(20)]
    await send(feed, [*batches, seal(job, 20)])
    assert await ended(connection, job) == (3, 2000, 2000, 0, 0)


async def test_a_hostile_batch_harms_no_neighbour(feed: Feed, worker: Process, connection: Connection) -> None:
    bad, good = spec("bad"), spec("good")
    hostile = examples.batch_of(
        [b"\x0a" + b"\xff" * 9 + b"\x01", b"\x0a\x02S1\x1a\x02\x08\x01", b"\x0a\x02\x00S\x1a\x00"]
    )
    await send(
        feed,
        [batch(bad, 0, 3, hostile), batch(good, 0, 10, examples.reading_batch(0, 10)), seal(bad, 1), seal(good, 1)],
    )
    assert await ended(connection, bad) == (4, 3, 1, 0, 2)
    assert await ended(connection, good) == (3, 10, 10, 0, 0)
    codes = connection.execute("SELECT record_index, code FROM bulk.rejections ORDER BY record_index").fetchall()
    assert codes == [(0, "MALFORMED_RECORD"), (2, "NUL_IN_TEXT")]


RULED = """syntax = "proto3";
import "buf/validate/validate.proto";
import "bulkgrpc/v1/options.proto";
message Ratio {
  option (bulkgrpc.v1.dataset) = {table: "ratios" key: "id"};
  string id = 1;
  int32 parts = 2 [(buf.validate.field).cel = {id: "ratio.parts" expression: "100 / this > 1"}];
  int32 share = 3 [(buf.validate.field).int32.gte = 0];
}
"""


async def test_a_record_for_which_a_rule_fails_is_rejected_with_the_rules_id(
    feed: Feed, worker: Process, connection: Connection, tmp_path: Path
) -> None:
    file = tmp_path / "ratio.proto"
    file.write_text(RULED)
    ratios = examples.compiled(file, "Ratio")
    register(connection, ratios)
    kind: Any = message_factory.GetMessageClass(find_message(ratios.descriptors, "Ratio"))
    records = [
        kind(id=f"{parts} {share}", parts=parts, share=share) for parts, share in ((2, 1), (0, 1), (2, -1), (4, 1))
    ]
    job = replace(spec("ratios"), dataset="ratios")
    payload = examples.batch_of([record.SerializeToString() for record in records])
    await send(feed, [batch(job, 0, 4, payload), seal(job, 1)])
    assert await ended(connection, job) == (4, 4, 2, 0, 2)
    found = connection.execute("SELECT record_index, code, field, reason FROM bulk.rejections ORDER BY 1").fetchall()
    assert found == [
        (1, "RULE_FAILED", "", "rule ratio.parts cannot be evaluated: divide by zero"),
        (2, "RULE_VIOLATION", "share", "must be greater than or equal to 0"),
    ]


async def test_a_message_of_no_job_goes_to_the_dead_letter_topic_and_the_partition_continues(
    feed: Feed, worker: Process, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    foreign = Producer({"bootstrap.servers": feed.settings.kafka})
    foreign.produce(feed.settings.topic, value=b"who am I?", key=b"x", partition=0, headers={"format": b"x"})
    foreign.flush(10)
    job = spec("k")
    await send(feed, [batch(job, 0, 10, examples.reading_batch(0, 10)), seal(job, 1)])
    assert await ended(connection, job) == (3, 10, 10, 0, 0)
    for name, value in feed.environment.items():
        monkeypatch.setenv(name, value)

    def dlq(*arguments: str) -> str:
        result = CliRunner().invoke(app, ["dlq", *arguments, "--json"])
        assert result.exit_code == 0, result.output
        return result.stdout

    letter = json.loads(dlq("list"))
    assert (letter["source_partition"], letter["source_offset"], letter["payload_bytes"]) == (0, 0, 9)
    assert letter["sha256"] == hashlib.sha256(b"who am I?").hexdigest()
    assert "unknown format" in letter["reason"]
    assert base64.b64decode(json.loads(dlq("show", "0"))["payload_base64"]) == b"who am I?"
    dlq("redrive", "0")
    found = await eventually(lambda: dlq("list") or None)
    again = json.loads(found)
    assert again["source_offset"] == 3
    dlq("discard", str(again["offset"]))
    assert dlq("list") == ""


async def test_batches_of_a_deleted_dataset_are_accounted_for_record_by_record(
    feed: Feed, database: str, connection: Connection
) -> None:
    cancelled, unknown, malformed = spec("cancelled"), spec("unknown"), spec("malformed")
    first = feed.worker()
    first.start()
    await send(feed, [batch(cancelled, 0, 10, examples.reading_batch(0, 10))])
    await eventually(lambda: count(connection, "sensor_readings") == 10)
    assert first.kill(signal.SIGTERM) == 0
    payload = examples.reading_batch(10, 10)
    left = [batch(cancelled, 1, 10, payload), batch(unknown, 0, 10, payload), seal(unknown, 1)]
    await send(feed, [*left, batch(malformed, 0, 3, b"\xff"), seal(malformed, 1)])
    async with AsyncConnectionPool(database, kwargs={"autocommit": True}) as pool:
        await JobStore(pool).cancel_job(cancelled.key)
        assert await Catalog(pool).delete("sensor_readings", drop_table=True)
        again = await Catalog(pool).register(examples.readings())
    assert again.dataset.version == 2
    # A worker that has seen neither the jobs nor the dataset.
    second = feed.worker("second")
    second.start()
    try:
        assert await ended(connection, unknown) == (5, 10, 0, 0, 10)
        assert await ended(connection, malformed) == (5, 3, 0, 0, 3)
        assert await ended(connection, cancelled) == (6, 20, 10, 0, 0)
        new = replace(spec("new"), dataset_version=2)
        await send(feed, [batch(new, 0, 10, payload), seal(new, 1)])
        assert await ended(connection, new) == (3, 10, 10, 0, 0)
    finally:
        second.stop()
    codes = connection.execute("SELECT DISTINCT code, reason LIKE '%%was deleted, version 1%%' FROM bulk.rejections")
    assert codes.fetchall() == [("DATASET_DELETED", True)]
    assert connection.execute("SELECT expired FROM bulk.jobs WHERE state = 6").fetchall() == [(10,)]


async def test_rows_of_another_period_are_written_and_the_maintenance_leader_creates_their_partition(
    feed: Feed, database: str, connection: Connection, tmp_path: Path
) -> None:
    file = tmp_path / "events.proto"
    file.write_text(
        'syntax = "proto3"; import "bulkgrpc/v1/options.proto"; message E { string day = 1 '
        '[(bulkgrpc.v1.column).type = COLUMN_TYPE_DATE]; option (bulkgrpc.v1.dataset) = {table: "events" key: "day" '
        'partition_by_time: {field: "day" period: PARTITION_PERIOD_WEEK}}; }'
    )
    async with AsyncConnectionPool(database, kwargs={"autocommit": True}) as pool:
        await Catalog(pool).register(examples.compiled(file, "E"))
    today = datetime.now(UTC).date()
    days = ["2001-01-01", "2001-01-07", "2001-01-08", today.isoformat()]
    payload = examples.batch_of([b"\x0a\x0a" + day.encode() for day in days])
    keeping = replace(feed.worker(), environment={**feed.environment, "BULKGRPC_MAINTENANCE_INTERVAL_S": "0.2"})
    keeping.start()
    try:
        for number, key in enumerate(("k", "again")):
            job = replace(spec(key), dataset="events")
            await send(feed, [batch(job, 0, 4, payload), seal(job, 1)])
            assert await ended(connection, job) == ((3, 4, 4, 0, 0), (3, 4, 0, 4, 0))[number]
            await eventually(
                lambda: connection.execute("SELECT count(DISTINCT tableoid), count(*) FROM events").fetchone() == (3, 4)
            )
    finally:
        keeping.stop()


async def test_a_batch_that_contradicts_its_headers_is_rejected_whole(
    feed: Feed, worker: Process, connection: Connection
) -> None:
    job = spec("k")
    payload = examples.reading_batch(0, 10)
    await send(feed, [batch(job, 0, 12, payload), batch(job, 1, 2, b"\xff"), batch(job, 2, 10, payload), seal(job, 3)])
    assert await ended(connection, job) == (4, 24, 10, 0, 14)


async def test_an_abandoned_job_ends_as_expired(feed: Feed, connection: Connection) -> None:
    patient = replace(
        feed.worker(),
        environment={**feed.environment, "BULKGRPC_MAINTENANCE_INTERVAL_S": "0.2", "BULKGRPC_ABANDONED_AFTER_S": "0.5"},
    )
    patient.start()
    try:
        job = spec("k")
        await send(feed, [batch(job, 0, 10, examples.reading_batch(0, 10))])
        assert await ended(connection, job) == (7, 10, 10, 0, 0)
    finally:
        patient.stop()


async def test_the_ledger_wins_over_kafkas_offsets(feed: Feed, connection: Connection) -> None:
    job = spec("k")
    first = feed.worker()
    first.start()
    await send(feed, [batch(job, 0, 10, examples.reading_batch(0, 10))])
    await eventually(lambda: count(connection, "sensor_readings") == 10)
    assert first.kill(signal.SIGTERM) == 0
    admin = AdminClient({"bootstrap.servers": feed.settings.kafka})
    start = ConsumerGroupTopicPartitions(feed.settings.topic, [TopicPartition(feed.settings.topic, 0, 0)])
    admin.alter_consumer_group_offsets([start])[feed.settings.topic].result(10)
    second = feed.worker("second")
    second.start()
    try:
        await send(feed, [seal(job, 1)])
        assert await ended(connection, job) == (3, 10, 10, 0, 0)
    finally:
        second.stop()


async def test_the_ledgers_position_is_committed_to_kafka(feed: Feed, worker: Process, connection: Connection) -> None:
    job = spec("k")
    await send(feed, [batch(job, 0, 10, examples.reading_batch(0, 10)), seal(job, 1)])
    await ended(connection, job)
    admin = AdminClient({"bootstrap.servers": feed.settings.kafka})
    asked = ConsumerGroupTopicPartitions(feed.settings.topic, [TopicPartition(feed.settings.topic, 0)])

    def committed() -> bool:
        answer = admin.list_consumer_group_offsets([asked])[feed.settings.topic].result(10)
        return [found.offset for found in answer.topic_partitions] == [2]

    await eventually(committed)


async def test_a_fenced_worker_writes_nothing_and_acquires_the_partition_again(
    feed: Feed, worker: Process, connection: Connection
) -> None:
    job = spec("k")
    await send(feed, [batch(job, 0, 10, examples.reading_batch(0, 10))])
    await eventually(lambda: count(connection, "sensor_readings") == 10)
    ledger.acquire(connection, feed.settings.topic, [0])
    await send(feed, [batch(job, 1, 10, examples.reading_batch(10, 10)), seal(job, 2)])
    await eventually(lambda: "partitions_fenced" in worker.log.read_text())
    assert count(connection, "sensor_readings") == 10
    assert await ended(connection, job) == (3, 20, 20, 0, 0)


async def test_sigterm_writes_pending_chunks_and_another_worker_continues(feed: Feed, connection: Connection) -> None:
    job = spec("k")
    batches = [batch(job, n, 1000, examples.reading_batch(n * 1000, 1000)) for n in range(100)]
    first = feed.worker()
    first.start()
    await send(feed, batches)
    await eventually(lambda: count(connection, "sensor_readings") > 0)
    assert first.kill(signal.SIGTERM) == 0
    second = feed.worker("second")
    second.start()
    try:
        await send(feed, [seal(job, 100)])
        assert await ended(connection, job) == (3, 100_000, 100_000, 0, 0)
    finally:
        second.stop()


async def test_partitions_move_to_workers_that_join(feed: Feed, worker: Process, connection: Connection) -> None:
    jobs = [spec("k", f"t{partition}") for partition in range(PARTITIONS)]
    joined = feed.worker("joined")
    joined.start()
    try:
        await eventually(lambda: "partitions_assigned" in joined.log.read_text())
        for partition, job in enumerate(jobs):
            batches = [batch(job, n, 100, examples.reading_batch(n * 100, 100)) for n in range(50)]
            await send(feed, [*batches, seal(job, 50)], partition)
        for job in jobs:
            assert await ended(connection, job) == (3, 5000, 5000, 0, 0)
    finally:
        joined.stop()


async def test_an_offset_that_kafka_does_not_have_stops_its_partition_and_no_worker(
    feed: Feed, connection: Connection
) -> None:
    connection.execute("INSERT INTO bulk.offsets VALUES (%s, 0, 1000, 1)", [feed.settings.topic])
    process = feed.worker()
    process.start()
    try:
        await eventually(lambda: "accept-loss --partition 0" in process.log.read_text())
        job = spec("k")
        await send(feed, [batch(job, 0, 10, examples.reading_batch(0, 10)), seal(job, 1)], 1)
        assert await ended(connection, job) == (3, 10, 10, 0, 0)
        assert process.ended is None
    finally:
        process.stop()


@pytest.mark.parametrize("site", ["mid_copy", "after_rows", "before_commit", "after_commit_before_kafka"])
async def test_a_deduplicated_record_is_written_once_whichever_workers_are_killed(
    feed: Feed, connection: Connection, site: str
) -> None:
    dataset = examples.remembered()
    register(connection, dataset)
    # Without a primary key only the dedupe window prevents duplicates.
    connection.execute("ALTER TABLE remembered_ignore DROP CONSTRAINT remembered_ignore_pkey")
    jobs = [replace(spec(f"k{number}"), dataset=dataset.name) for number in range(PARTITIONS)]
    killed = replace(
        feed.worker_without_key_check("killed"),
        environment={**feed.environment, "BULKGRPC_FAULT": f"{site}:kill:3", "BULKGRPC_CHUNK_ROWS_MAX": "1000"},
    )
    killed.start()
    batches = [examples.reading_batch(number * 500, 1000) for number in range(10)]
    for partition, job in enumerate(jobs):
        ordered = batches if partition else batches[::-1]
        messages = [batch(job, sequence, 1000, payload) for sequence, payload in enumerate(ordered)]
        await send(feed, [*messages, seal(job, 10)], partition)
    await asyncio.to_thread(killed.wait)
    fleet = [feed.worker_without_key_check(f"next-{number}") for number in range(2)]
    try:
        for process in fleet:
            process.start()
        found = [await ended(connection, job, 60) for job in jobs]
    finally:
        for process in fleet:
            process.stop()
    assert [row[1] for row in found] == [10_000, 10_000]
    assert sum(int(str(row[2])) for row in found) == count(connection, "remembered_ignore") == 5500
    assert all(row[4] == 0 for row in found)


async def test_a_missing_schema_stops_the_worker_with_a_remedy(feed: Feed, addresses: Addresses) -> None:
    empty = {**feed.environment, "BULKGRPC_POSTGRES": addresses.postgres.rsplit("/", 1)[0] + "/template1"}
    process = replace(feed.worker(), environment=empty)
    with pytest.raises(AssertionError, match="bulkgrpc migrate"):
        process.start()


async def test_a_job_is_written_under_the_classic_group_protocol(feed: Feed, connection: Connection) -> None:
    process = replace(feed.worker(), environment={**feed.environment, "BULKGRPC_GROUP_PROTOCOL": "classic"})
    process.start()
    try:
        job = spec("k")
        await send(feed, [batch(job, 0, 10, examples.reading_batch(0, 10)), seal(job, 1)])
        assert await ended(connection, job) == (3, 10, 10, 0, 0)
    finally:
        process.stop()


def test_connections_have_timeouts(addresses: Addresses) -> None:
    with connect(addresses.postgres, "tests") as connection:
        names = ["statement_timeout", "idle_in_transaction_session_timeout"]
        if connection.info.server_version >= 170_000:
            names.append("transaction_timeout")
        for name in names:
            row = connection.execute("SELECT current_setting(%s)", [name]).fetchone()
            assert row is not None
            assert row[0] not in ("0", "")


@pytest.mark.parametrize("answers", [True, False])
async def test_a_consumer_that_delivers_nothing_joins_its_group_again(
    feed: Feed, connection: Connection, monkeypatch: pytest.MonkeyPatch, answers: bool
) -> None:
    monkeypatch.setattr(stall, "SILENT_S", 1.0)
    monkeypatch.setattr(stall, "CHECK_EVERY_S", 0.2)
    stopping = threading.Event()
    settings = load(
        WorkerSettings,
        kafka=feed.settings.kafka,
        postgres=feed.settings.postgres,
        topic=feed.settings.topic,
        group=feed.settings.topic,
    )
    poller = wire(settings, PostgresDatasetRegistry(feed.settings.postgres), stopping)
    consumer = poller.ports.log
    assert isinstance(consumer, RecordsConsumer)
    fetch = consumer.fetch
    first = consumer._consumer
    end = kafka_consumer._end
    # A consumer that stalled may not even report the end of the log.
    monkeypatch.setattr(
        kafka_consumer, "_end", lambda asked, at: end(asked, at) if answers or asked is not first else None
    )

    def deaf(messages_max: int, timeout_s: float) -> Sequence[Fetched]:
        """As librdkafka sometimes is, without an error."""
        found = fetch(messages_max, timeout_s)
        return [] if consumer._consumer is first else found

    ends_reached = consumer.ends_reached
    monkeypatch.setattr(consumer, "fetch", deaf)
    monkeypatch.setattr(consumer, "ends_reached", lambda: [] if consumer._consumer is first else ends_reached())
    running = asyncio.create_task(asyncio.to_thread(poller.run))
    try:
        await eventually(lambda: len(poller.partitions.owned.owned) == PARTITIONS)
        job = spec("deaf")
        await send(feed, [batch(job, 0, 10, examples.reading_batch(0, 10)), seal(job, 1)])
        assert await ended(connection, job) == (3, 10, 10, 0, 0)
    finally:
        stopping.set()
        await running
