"""Messages of a newer format: what follows them waits for a newer worker, and nothing is dropped."""

from __future__ import annotations

import json
import signal
from dataclasses import replace

import pytest
from confluent_kafka import Producer
from typer.testing import CliRunner

from bulkgrpc.cli.app import app
from bulkgrpc.consume.assembly import Fetched
from bulkgrpc.kafka.dead_letters import DeadLetters
from bulkgrpc.kafka.message import to_headers
from bulkgrpc.model import JobSpec, Message
from tests.integration import test_control_records, test_worker
from tests.integration.test_control_records import SILENT_S, polling, watch
from tests.integration.test_worker import PARTITIONS, Feed, batch, ended, seal, send, spec
from tests.support import examples
from tests.support.database import Connection, count
from tests.support.processes import Process
from tests.support.waiting import eventually

feed, worker, rejoined = test_worker.feed, test_worker.worker, test_control_records.rejoined


def newer(message: Message) -> list[tuple[str, str | bytes | None]]:
    """The headers of a message as a newer server writes them."""
    return [("format", b"2"), *to_headers(message)[1:]]


def send_newer(feed: Feed, *messages: tuple[Message, bytes]) -> None:
    """Send messages of format 2 to partition 0."""
    producer = Producer({"bootstrap.servers": feed.settings.kafka, "log_level": 0})
    for message, payload in messages:
        producer.produce(feed.settings.topic, payload, b"acme", 0, headers=newer(message))
    assert producer.flush(10) == 0


def newer_worker(feed: Feed) -> Process:
    """A worker of a later version."""
    return replace(feed.worker("newer"), module="tests.chaos.mutants", arguments=("newer_reader", "workers.process"))


def waits(process: Process) -> list[dict[str, object]]:
    """What a worker logged about partitions that wait."""
    logged = [json.loads(line) for line in process.log.read_text().splitlines()]
    return [one for one in logged if one["event"] == "partition_waits_for_upgrade"]


async def send_around_a_newer_message(feed: Feed, job: JobSpec) -> None:
    """Send three batches and the seal to partition 0; the second batch is of format 2."""
    await send(feed, [batch(job, 0, 10, examples.reading_batch(0, 10))])
    send_newer(feed, batch(job, 1, 10, examples.reading_batch(10, 10)))
    await send(feed, [batch(job, 2, 10, examples.reading_batch(20, 10)), seal(job, 3)])


async def test_a_newer_message_stops_its_partition_alone_until_a_newer_worker_takes_it(
    feed: Feed, worker: Process, connection: Connection
) -> None:
    job = spec("k")
    await send_around_a_newer_message(feed, job)
    await eventually(lambda: waits(worker) or None)
    for name in ("first", "second"):
        other = spec(name, "other")
        await send(feed, [batch(other, 0, 10, examples.reading_batch(0, 10)), seal(other, 1)], partition=1)
        assert (await ended(connection, other))[0] == 3
    applied = connection.execute("SELECT accepted FROM bulk.jobs WHERE job_id = %s", [job.key.job_id]).fetchone()
    assert applied == (10,)
    assert connection.execute("SELECT next_offset FROM bulk.offsets WHERE partition = 0").fetchone() == (1,)
    assert [(one["partition"], one["offset"], one["message_format"]) for one in waits(worker)] == [(0, 1, 2)]
    # A rolling upgrade: the newer worker joins, and the older one leaves.
    upgraded = newer_worker(feed)
    upgraded.start()
    try:
        await eventually(lambda: "partitions_assigned" in upgraded.log.read_text())
        assert worker.kill(signal.SIGTERM) == 0
        assert await ended(connection, job) == (3, 30, 30, 0, 0)
        assert not waits(upgraded)
    finally:
        upgraded.stop()
    assert not DeadLetters(
        feed.settings.model_copy(update={"dead_letter_topic": f"{feed.settings.topic}-dead"})
    ).unsettled()


async def test_a_waiting_partition_is_no_stall_and_an_older_worker_that_acquires_it_waits_too(
    feed: Feed, connection: Connection, rejoined: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    job = spec("k")
    await send_around_a_newer_message(feed, job)
    async with polling(feed) as poller:
        passed = watch(poller, rejoined, monkeypatch)
        await eventually(lambda: poller.partitions.owned.held == {0: 2})
        await eventually(lambda: passed(3 * SILENT_S))
        other = spec("k", "other")
        await send(feed, [batch(other, 0, 10, examples.reading_batch(0, 10)), seal(other, 1)], partition=1)
        assert (await ended(connection, other))[0] == 3
    assert not rejoined
    async with polling(feed) as poller:
        await eventually(lambda: poller.partitions.owned.held == {0: 2})
    assert count(connection, "sensor_readings") == 20


async def test_a_waiting_partition_is_read_again_with_the_others(feed: Feed, connection: Connection) -> None:
    await send_around_a_newer_message(feed, spec("k"))
    async with polling(feed) as poller:
        await eventually(lambda: poller.partitions.owned.held == {0: 2})
        # Another owner acquires every partition: the next chunk is fenced, and all are read again.
        connection.execute("UPDATE bulk.offsets SET owner_epoch = owner_epoch + 1 WHERE partition = 1")
        other = spec("k", "other")
        await send(feed, [batch(other, 0, 10, examples.reading_batch(0, 10)), seal(other, 1)], partition=1)
        assert (await ended(connection, other))[0] == 3
        await eventually(
            lambda: poller.partitions.owned.held == {0: 2} and len(poller.partitions.owned.owned) == PARTITIONS
        )
    assert count(connection, "sensor_readings") == 20


async def test_a_dead_letter_of_a_newer_format_is_not_redriven(feed: Feed, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in feed.environment.items():
        monkeypatch.setenv(name, value)
    message, payload = batch(spec("k"), 0, 10, examples.reading_batch(0, 10))
    headers = [(name, value) for name, value in newer(message) if isinstance(value, bytes)]
    settings = feed.settings.model_copy(update={"dead_letter_topic": f"{feed.settings.topic}-dead"})
    # As a worker before this rule did.
    DeadLetters(settings).add(
        Fetched(0, 0, headers, b"acme", payload, None, "unknown format b'2'"), "unknown format b'2'"
    )
    result = CliRunner().invoke(app, ["dlq", "redrive", "0"])
    assert result.exit_code == 1
    assert "format 2: this version reads up to format 1" in result.output
    assert "upgrade" in result.output
    assert len(DeadLetters(settings).unsettled()) == 1
