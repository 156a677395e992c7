"""Jobs whose batches an earlier release stored as dead letters, and versions that are missing, on real Kafka."""

from __future__ import annotations

import json
import signal
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from confluent_kafka import TopicPartition
from confluent_kafka.admin import AdminClient
from psycopg_pool import AsyncConnectionPool
from typer.testing import CliRunner

from bulkgrpc.cli.app import app
from bulkgrpc.consume.assembly import Fetched
from bulkgrpc.kafka.dead_letters import DeadLetters
from bulkgrpc.kafka.message import to_headers
from bulkgrpc.kafka.topics import end_offsets
from bulkgrpc.model import JobKey, JobSpec, JobState, Message, digest_of
from bulkgrpc.postgres.jobs import JobStore
from bulkgrpc.postgres.maintenance import expire_abandoned
from tests.integration import test_worker
from tests.integration.test_set_aside import register_version
from tests.integration.test_worker import PARTITIONS, Feed, batch, ended, seal, send, spec
from tests.support import examples
from tests.support.database import Connection, count
from tests.support.processes import Process
from tests.support.waiting import eventually

feed = test_worker.feed
Sent = tuple[Message, bytes]
BATCHES = 3


@pytest.fixture
def start(feed: Feed) -> Iterator[Callable[[str], Process]]:
    """Starts workers, and stops them in the end."""
    started: list[Process] = []

    def worker(name: str = "worker") -> Process:
        started.append(feed.worker(name))
        started[-1].start()
        return started[-1]

    yield worker
    for process in started:
        process.stop()


@pytest.fixture
def dlq(feed: Feed, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, str]]:
    for name, value in feed.environment.items():
        monkeypatch.setenv(name, value)

    def run(*arguments: str) -> tuple[int, str]:
        result = CliRunner().invoke(app, ["dlq", *arguments])
        return result.exit_code, result.output

    return run


def job_of_version(version: int = 2) -> JobSpec:
    return replace(spec(f"k-{uuid.uuid4().hex[:8]}"), dataset_version=version)


def batches(job: JobSpec, *sequences: int) -> list[Sent]:
    found = []
    for sequence in sequences:
        payload = examples.reading_batch(sequence * 10, 10)
        message, _ = batch(job, sequence, 10, payload)
        found.append((replace(message, digest=digest_of(payload)), payload))
    return found


def dead_letters(feed: Feed) -> DeadLetters:
    return DeadLetters(feed.settings.model_copy(update={"dead_letter_topic": f"{feed.settings.topic}-dead"}))


async def set_aside(
    feed: Feed, connection: Connection, job: JobSpec, dead: Sequence[int], *, sealed: bool = True
) -> None:
    """Leave a job as an earlier release did: dead letters of some batches, and all that follows them passed over."""
    messages = [*batches(job, *range(BATCHES)), *([seal(job, BATCHES)] if sealed else [])]
    first = end_offsets(feed.settings)[0]
    await send(feed, messages)
    letters = dead_letters(feed)
    for offset, (message, payload) in enumerate(messages, first):
        if message.sequence in dead and payload:
            headers = [(name, value) for name, value in to_headers(message) if isinstance(value, bytes)]
            reason = "dataset sensor_readings version 2 is not in the registry"
            letters.add(Fetched(0, offset, headers, b"acme", payload, message), reason)
    async with AsyncConnectionPool(feed.settings.postgres, min_size=1, open=False, kwargs={"autocommit": True}) as pool:
        await JobStore(pool).open_job(job, [0], datetime.now(UTC))
        if sealed:
            await JobStore(pool).seal_job(job.key, datetime.now(UTC))
    connection.execute(
        "INSERT INTO bulk.offsets (topic, partition, next_offset, owner_epoch) VALUES (%s, 0, %s, 0) "
        "ON CONFLICT (topic, partition) DO UPDATE SET next_offset = excluded.next_offset",
        [feed.settings.topic, first + len(messages)],
    )


def delete_records(feed: Feed, before: int) -> None:
    admin = AdminClient({"bootstrap.servers": feed.settings.kafka})
    for future in admin.delete_records([TopicPartition(feed.settings.topic, 0, before)]).values():
        future.result(30)


@pytest.mark.parametrize("dead", [(0, 1, 2), (0,)], ids=["every batch", "the first batch"])
async def test_a_job_that_an_earlier_release_set_aside_is_restored_whole_and_in_order(
    feed: Feed,
    connection: Connection,
    start: Callable[..., Process],
    dlq: Callable[..., tuple[int, str]],
    dead: Sequence[int],
) -> None:
    job = job_of_version()
    await set_aside(feed, connection, job, dead)
    register_version(connection)
    start()
    assert [json.loads(line)["job"] for line in dlq("list", "--json")[1].splitlines()] == [job.key.name] * len(dead)
    code, said = dlq("redrive", "0", "--json")
    assert (code, json.loads(said)) == (
        0,
        {
            "job": job.key.name,
            "messages": BATCHES + 1,
            "settled": list(range(len(dead))),
            "complete": True,
            "missing": [],
        },
    )
    assert await ended(connection, job) == (3, 30, 30, 0, 0)
    assert dlq("list", "--json") == (0, "")
    assert dlq("redrive", "0")[0] == 1
    code, said = dlq("redrive", "--job", job.key.name)
    assert (code, "has ended as SUCCEEDED" in said) == (1, True)
    assert count(connection, "sensor_readings") == 30


async def test_a_redrive_that_was_interrupted_is_repeated_and_writes_nothing_twice(
    feed: Feed, connection: Connection, start: Callable[..., Process], dlq: Callable[..., tuple[int, str]]
) -> None:
    job = job_of_version()
    await set_aside(feed, connection, job, (0, 1, 2))
    # Stored before the command was killed, and settled by the earlier release's command, which sent no seal.
    await send(feed, batches(job, 0, 1))
    letters = dead_letters(feed)
    for letter in letters.unsettled():
        letters.settle_redriven(letter)
    register_version(connection)
    for _ in range(2):
        code, said = dlq("redrive", "--job", job.key.name, "--json")
        assert (code, json.loads(said)["messages"]) == (0, BATCHES + 1)
    start()
    assert await ended(connection, job) == (3, 30, 30, 0, 0)
    await eventually(lambda: connection.execute("SELECT 1 FROM bulk.offsets WHERE next_offset = 14").fetchone())
    assert count(connection, "sensor_readings") == 30
    assert count(connection, "bulk.late_batches") == 0


async def test_a_redrive_while_the_version_is_missing_blocks_the_job_until_it_is_back(
    feed: Feed, connection: Connection, start: Callable[..., Process], dlq: Callable[..., tuple[int, str]]
) -> None:
    job = job_of_version()
    await set_aside(feed, connection, job, (0, 1, 2))
    start()
    assert dlq("redrive", "2")[0] == 0
    await eventually(lambda: count(connection, "bulk.parked") == BATCHES + 1)
    assert dlq("list", "--json") == (0, "")
    register_version(connection)
    assert await ended(connection, job) == (3, 30, 30, 0, 0)


async def test_a_job_whose_batches_are_lost_says_so_and_does_not_stay_sealed(
    feed: Feed, connection: Connection, start: Callable[..., Process], dlq: Callable[..., tuple[int, str]]
) -> None:
    job = job_of_version()
    await set_aside(feed, connection, job, (0, 1))
    delete_records(feed, BATCHES + 1)
    register_version(connection)
    start()
    code, said = dlq("redrive", "0", "--json")
    found = json.loads(said.splitlines()[0])
    assert (code, found["messages"], found["complete"]) == (1, 2, False)
    assert found["missing"] == [{"lane": 0, "from_sequence": 2}]
    assert "lacks what follows from batch 2 on" in said
    await eventually(lambda: count(connection, "sensor_readings") == 20)
    await eventually(lambda: expire_abandoned(connection, feed.settings.topic, end_offsets(feed.settings), 0))
    row = connection.execute("SELECT state, failure_reason FROM bulk.jobs").fetchone()
    assert row is not None
    assert row[0] == JobState.FAILED
    assert row[1].startswith("INCOMPLETE: what was acknowledged from batch 2 on is neither written nor parked")


async def test_a_job_that_was_forgotten_is_not_redriven(
    feed: Feed, connection: Connection, dlq: Callable[..., tuple[int, str]]
) -> None:
    job = job_of_version()
    await set_aside(feed, connection, job, (0, 1, 2))
    connection.execute("DELETE FROM bulk.jobs")
    ends = end_offsets(feed.settings)
    code, said = dlq("redrive", "0")
    assert (code, "the ledger has no" in said) == (1, True)
    assert end_offsets(feed.settings) == ends
    assert len(dead_letters(feed).unsettled()) == BATCHES
    assert dlq("redrive")[0] == 1
    assert dlq("redrive", "--job", "nonsense")[0] == 1


async def test_an_open_job_is_redriven_and_its_client_seals_it(
    feed: Feed, connection: Connection, start: Callable[..., Process], dlq: Callable[..., tuple[int, str]]
) -> None:
    job = job_of_version()
    await set_aside(feed, connection, job, (0,), sealed=False)
    register_version(connection)
    start()
    assert dlq("redrive", "0")[0] == 0
    await send(feed, [seal(job, BATCHES)])
    assert await ended(connection, job) == (3, 30, 30, 0, 0)


async def test_a_missing_version_waits_through_the_death_of_its_worker_and_no_other_job_waits(
    feed: Feed, connection: Connection, start: Callable[..., Process], dlq: Callable[..., tuple[int, str]]
) -> None:
    job, other = job_of_version(), spec("other", "other")
    first = start("first")
    lanes = replace(job, key=JobKey.derive("acme", "lanes"), idempotency_key="lanes")
    await send(feed, [*batches(job, 0, 1), seal(job, 2), *batches(other, 0), seal(other, 1)])
    # A job with two lanes, both of which wait.
    both = tuple(range(PARTITIONS))
    for lane in both:
        messages = [*batches(lanes, lane, lane + PARTITIONS), seal(lanes, 2 * PARTITIONS)]
        of_lane = [(replace(message, lane=lane, partitions=both), payload) for message, payload in messages]
        await send(feed, of_lane, partition=lane)
    assert await ended(connection, other) == (3, 10, 10, 0, 0)
    await eventually(lambda: count(connection, "bulk.parked") == 9)
    assert first.kill(signal.SIGKILL) == -signal.SIGKILL
    start("second")
    register_version(connection)
    assert await ended(connection, job) == (3, 20, 20, 0, 0)
    assert (await ended(connection, lanes))[:2] == (3, 40)
    assert dlq("list", "--json") == (0, "")
    assert "job_blocked" in first.log.read_text()
