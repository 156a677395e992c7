"""Blocked datasets and jobs: parked beside the main path, applied once their tables take them again."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace

import pytest
from psycopg_pool import AsyncConnectionPool

from bulkgrpc import limits
from bulkgrpc.consume.apply_tasks import TaskKind
from bulkgrpc.consume.assembly import Chunk, Received, Span
from bulkgrpc.consume.failures import BlockCause, Failure, Where
from bulkgrpc.consume.ports import Applied, Pace, SliceFailed
from bulkgrpc.datasets.codec import BatchCodec
from bulkgrpc.datasets.decoding import Payload
from bulkgrpc.datasets.rows import Rows, to_rows
from bulkgrpc.kafka.message import message_of, to_headers
from bulkgrpc.model import JobKey, JobOptions, JobState, Message
from bulkgrpc.postgres import ledger, parked
from bulkgrpc.postgres.apply_task_store import PostgresApplyTasks
from bulkgrpc.postgres.jobs import JobStore
from bulkgrpc.postgres.worker_ports import PostgresChunkWriter, PostgresDatasetRegistry, PostgresParkedMessages
from tests.integration.test_transaction import TOPIC, batch, job_row, seal
from tests.support import examples
from tests.support.database import Connection, count, register
from tests.support.waiting import wait_for
from tests.support.worker_ports import FakeDeadLetters
from workers.apply import ApplyThread
from workers.drain import LongestDrain, QuickDrain, SlowDrain, SlowQueues
from workers.writer import NotApplied, WriterThread


class Worker:
    """The writing thread and the drain of a worker, run by the test."""

    def __init__(self, postgres: str, connection: Connection) -> None:
        self.connection = connection
        self.registry = PostgresDatasetRegistry(postgres)
        self.dead_letters = FakeDeadLetters()
        self.thread = WriterThread(
            PostgresChunkWriter(postgres, TOPIC), self.registry, self.dead_letters, threading.Event()
        )
        self.parked = PostgresParkedMessages(postgres, TOPIC, self.registry, message_of)
        self.slow: SlowQueues = {}
        self.quick_drain = QuickDrain(self.parked, self.slow, threading.Event(), lambda: None)
        self.slow_drain = SlowDrain(self.parked, self.slow, threading.Event(), lambda: None)
        self.longest_drain = LongestDrain(self.parked, self.slow, threading.Event())
        self.tasks = PostgresApplyTasks(postgres)
        self.apply = [ApplyThread(self.tasks, kind, threading.Event()) for kind in TaskKind]
        self.next_offset = 0
        self.epoch = ledger.acquire(connection, TOPIC, [0])[0].owner_epoch
        self.thread.start()

    def write(self, *messages: tuple[Message, bytes]) -> Applied | NotApplied:
        self.thread.submit(self.chunk(*messages))
        result = self.thread.result(30)
        assert result is not None
        return result.outcome

    def settle(self) -> None:
        """Drain until nothing more happens, every trial being due at once."""
        for _ in range(200):
            self.connection.execute("UPDATE bulk.blocked_datasets SET next_trial_time = 'epoch' WHERE cause = 'table'")
            self.connection.execute("UPDATE bulk.apply_tasks SET next_attempt_time = 'epoch'")
            before = self._state()
            self.quick_drain.round()
            self.slow_drain.round()
            self.longest_drain.round()
            for thread in self.apply:
                thread.round()
            if self._state() == before:
                return
        raise AssertionError("the drain does not settle")

    def _state(self) -> object:
        return (
            count(self.connection, "bulk.parked"),
            self.connection.execute("SELECT dataset, cause, reason FROM bulk.blocked_datasets ORDER BY 1").fetchall(),
            count(self.connection, "bulk.blocked_jobs"),
            {queue: (slow.messages, slow.longest) for queue, slow in self.slow.items()},
            self.connection.execute(
                "SELECT job_id, slow, block_cause, reason FROM bulk.apply_tasks ORDER BY 1"
            ).fetchall(),
        )

    def stop(self) -> None:
        self.thread.stop(10)
        self.parked.close()
        self.tasks.close()

    def chunk(self, *messages: tuple[Message, bytes]) -> Chunk:
        start = self.next_offset
        self.next_offset += len(messages)
        items = tuple(Received(0, start + n, m, payload, _headers(m)) for n, (m, payload) in enumerate(messages))
        rows = sum(m.records for m, _ in messages)
        return Chunk((Span(0, start, self.next_offset, self.epoch),), items, rows)


@pytest.fixture
def worker(database: str, connection: Connection) -> Iterator[Worker]:
    register(connection, examples.readings())
    worker = Worker(database, connection)
    yield worker
    worker.stop()


async def cancel(database: str, job: str) -> None:
    async with AsyncConnectionPool(database, min_size=1, open=False, kwargs={"autocommit": True}) as pool:
        await JobStore(pool).cancel_job(JobKey.derive("acme", job))


def _headers(message: Message) -> list[tuple[str, bytes]]:
    lost = ("sequence", "records") if message.damage else ()
    return [(name, value) for name, value in to_headers(message) if isinstance(value, bytes) and name not in lost]


def blocked(connection: Connection) -> list[tuple[object, ...]]:
    return connection.execute("SELECT dataset, cause, sqlstate, reason FROM bulk.blocked_datasets").fetchall()


def test_a_renamed_column_parks_the_dataset_and_its_repair_applies_what_was_parked(
    connection: Connection, worker: Worker
) -> None:
    connection.execute("ALTER TABLE sensor_readings RENAME COLUMN value TO reading")
    outcome = worker.write(batch(0, 0, 100), batch(1, 100, 100), seal(2))
    assert isinstance(outcome, Applied)
    assert outcome.parked == 3
    assert count(connection, "sensor_readings") == 0
    ((dataset, cause, _, reason),) = blocked(connection)
    assert (dataset, cause) == ("sensor_readings", "table")
    assert "value" in str(reason)
    worker.settle()
    assert count(connection, "bulk.parked") == 3
    assert job_row(connection) == (JobState.OPEN, 0, 0, 0, 0, 0)

    connection.execute("ALTER TABLE sensor_readings RENAME COLUMN reading TO value")
    worker.settle()
    assert blocked(connection) == []
    assert count(connection, "bulk.parked") == 0
    assert count(connection, "sensor_readings") == 200
    assert job_row(connection) == (JobState.SUCCEEDED, 200, 200, 0, 0, 0)


def test_what_follows_parked_messages_is_parked_behind_them_and_applied_in_order(
    connection: Connection, worker: Worker
) -> None:
    connection.execute("ALTER TABLE sensor_readings RENAME TO elsewhere")
    worker.write(batch(0, 0, 10))
    connection.execute("ALTER TABLE elsewhere RENAME TO sensor_readings")
    connection.execute("DELETE FROM bulk.blocked_datasets")
    outcome = worker.write(batch(1, 10, 10), seal(2), batch(0, 100, 10, job="later"))
    assert isinstance(outcome, Applied)
    assert outcome.parked == 3
    worker.settle()
    assert count(connection, "sensor_readings") == 30
    assert job_row(connection) == (JobState.SUCCEEDED, 20, 20, 0, 0, 0)
    outcome = worker.write(batch(1, 110, 10, job="later"))
    assert isinstance(outcome, Applied)
    assert outcome.parked == 0
    assert count(connection, "sensor_readings") == 40


def test_a_batch_that_was_parked_twice_is_applied_once(connection: Connection, worker: Worker) -> None:
    connection.execute("ALTER TABLE sensor_readings RENAME TO elsewhere")
    worker.write(batch(0, 0, 10), batch(0, 0, 10), batch(1, 10, 10))
    connection.execute("ALTER TABLE elsewhere RENAME TO sensor_readings")
    worker.settle()
    assert count(connection, "sensor_readings") == 20
    assert job_row(connection)[:4] == (JobState.OPEN, 20, 20, 0)


def test_a_resent_batch_of_a_paused_dataset_is_parked_and_its_chunk_applied(
    connection: Connection, worker: Worker
) -> None:
    def other(sequence: int) -> tuple[Message, bytes]:
        message, payload = batch(sequence, sequence * 10, 10, job="other")
        return replace(message, spec=replace(message.spec, dataset="fleet_readings")), payload

    register(connection, examples.fleet())
    worker.write(batch(0, 0, 10), other(0))
    connection.execute(
        "INSERT INTO bulk.blocked_datasets (dataset, cause, reason, next_trial_time) "
        "VALUES ('sensor_readings', 'paused', 'because', 'infinity')"
    )
    outcome = worker.write(batch(0, 0, 10), other(1))
    assert isinstance(outcome, Applied)
    assert outcome.parked == 1
    assert count(connection, "fleet_readings") == 20


SLEEPING = """
CREATE FUNCTION sleep() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN IF new.value < 5 THEN PERFORM pg_sleep(30); END IF; RETURN new; END $$;
CREATE TRIGGER sleep BEFORE INSERT ON sensor_readings FOR EACH ROW EXECUTE FUNCTION sleep();
"""


def test_a_batch_that_takes_too_long_blocks_its_job_and_what_follows_in_its_queue_until_the_job_is_cancelled(
    database: str, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "ROWS_TIMEOUT_S", 0.5)
    monkeypatch.setattr(limits, "STATEMENT_TIMEOUT_S", 0.8)
    register(connection, examples.readings())
    connection.execute(SLEEPING)
    worker = Worker(database, connection)
    worker.write(batch(0, 500, 10, job="early"), batch(0, 0, 10, job="poison"), batch(0, 1000, 10, job="later"))
    worker.settle()
    assert count(connection, "bulk.blocked_jobs") == 1
    assert count(connection, "bulk.parked") == 2
    assert count(connection, "sensor_readings") == 10
    assert job_row(connection, "early")[:3] == (JobState.OPEN, 10, 10)

    asyncio.run(cancel(database, "poison"))
    worker.settle()
    assert count(connection, "bulk.parked") == 0
    assert job_row(connection, "poison") == (JobState.CANCELLED, 10, 0, 0, 0, 10)
    assert job_row(connection, "later")[:3] == (JobState.OPEN, 10, 10)
    worker.stop()


def test_while_messages_take_too_long_the_main_path_keeps_off_the_dataset_for_ever_longer(
    database: str, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "ROWS_TIMEOUT_S", 0.3)
    register(connection, examples.readings())
    connection.execute(SLEEPING.replace("pg_sleep(30)", "pg_sleep(0.1)"))
    worker = Worker(database, connection)

    def isolated_s() -> float:
        rows = connection.execute("SELECT extract(epoch FROM next_trial_time - now()) FROM bulk.blocked_datasets")
        return float(rows.fetchall()[0][0])

    worker.write(batch(0, 0, 10, job="slow"))
    assert isolated_s() < 1.1
    worker.quick_drain.round()
    assert [slow.messages for slow in worker.slow.values()] == [1]
    assert count(connection, "sensor_readings") == 0
    first_s = isolated_s()
    worker.slow_drain.round()
    assert count(connection, "sensor_readings") == 10
    assert isolated_s() > first_s > 1.1
    outcome = worker.write(batch(0, 0, 10, job="slow again"))
    assert isinstance(outcome, Applied)
    assert outcome.parked == 1
    assert not outcome.rows_s > 0.3
    worker.stop()


def test_a_job_is_cancelled_while_a_drain_tries_a_batch_of_it(
    database: str, connection: Connection, worker: Worker
) -> None:
    connection.execute(SLEEPING)
    worker.parked.block("sensor_readings", BlockCause.ISOLATING, Failure(Where.ROWS, "57014", "QueryCanceled", "slow"))
    worker.write(batch(0, 0, 1))
    (queue,) = worker.parked.queues()
    failed: list[SliceFailed] = []

    def drain() -> None:
        try:
            worker.parked.drain(queue.key, 1, pace=Pace.LONGEST, merges=False)
        except SliceFailed as error:
            failed.append(error)

    draining = threading.Thread(target=drain)
    draining.start()
    sleeps = "SELECT FROM pg_stat_activity WHERE application_name = 'bulkgrpc-worker-drain' AND wait_event = 'PgSleep'"
    assert wait_for(lambda: connection.execute(sleeps).rowcount == 1, 20)
    asyncio.run(cancel(database, "k"))
    draining.join(20)
    assert [error.failure.sqlstate for error in failed] == ["57014"]
    worker.settle()
    assert job_row(connection) == (JobState.CANCELLED, 1, 0, 0, 0, 1)
    assert count(connection, "bulk.parked") == 0


def test_the_seal_of_an_atomic_job_waits_for_its_table(connection: Connection, worker: Worker) -> None:
    options = JobOptions(atomic=True)
    worker.write(batch(0, 0, 10, options=options))
    connection.execute("ALTER TABLE sensor_readings RENAME TO elsewhere")
    outcome = worker.write(seal(1, options=options))
    assert isinstance(outcome, Applied)
    assert outcome.parked == 0, "the seal writes nothing to the table"
    worker.settle()
    assert job_row(connection)[0] == JobState.SEALED
    ((dataset, cause, *_),) = blocked(connection)
    assert (dataset, cause) == ("sensor_readings", "table")
    connection.execute("ALTER TABLE elsewhere RENAME TO sensor_readings")
    worker.settle()
    assert job_row(connection) == (JobState.SUCCEEDED, 10, 10, 0, 0, 0)
    assert count(connection, "sensor_readings") == 10


def test_an_atomic_job_whose_rows_take_long_is_applied_beside_the_main_path(
    database: str, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "ROWS_TIMEOUT_S", 0.3)
    monkeypatch.setattr(limits, "DRAIN_ROWS_TIMEOUT_S", 0.4)
    monkeypatch.setattr(limits, "STATEMENT_TIMEOUT_S", 0.5)
    monkeypatch.setattr("bulkgrpc.postgres.apply_task_store.STAGED_ROWS_PER_S_MIN", 5)
    register(connection, examples.readings())
    connection.execute(SLEEPING.replace("pg_sleep(30)", "pg_sleep(0.15)"))
    worker = Worker(database, connection)
    options = JobOptions(atomic=True)
    outcome = worker.write(batch(0, 0, 10, options=options), seal(1, options=options))
    assert isinstance(outcome, Applied)
    assert outcome.parked == 0, "its five slow rows take 0.75 s, beside the main path"
    assert count(connection, "sensor_readings") == 0
    worker.settle()
    assert job_row(connection) == (JobState.SUCCEEDED, 10, 10, 0, 0, 0)
    worker.stop()


def test_the_staged_rows_of_each_job_have_their_own_time(
    database: str, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "ROWS_TIMEOUT_S", 0.5)
    register(connection, examples.readings())
    worker = Worker(database, connection)
    options = JobOptions(atomic=True)
    for number in range(4):
        worker.write(batch(0, 500 + 10 * number, 10, job=f"j{number}", options=options))
    connection.execute(
        SLEEPING.replace(
            "IF new.value < 5 THEN PERFORM pg_sleep(30); END IF; RETURN new", "PERFORM pg_sleep(0.2); RETURN NULL"
        )
        .replace("FOR EACH ROW", "FOR EACH STATEMENT")
        .replace("BEFORE", "AFTER")
    )
    outcome = worker.write(*(seal(1, job=f"j{number}", options=options) for number in range(4)))
    assert isinstance(outcome, Applied)
    assert outcome.parked == 0
    worker.settle()
    assert count(connection, "sensor_readings") == 40
    assert count(connection, "bulk.apply_tasks") == 0, "one of them takes 0.2 s, all of them 0.8 s"
    worker.stop()


def test_an_atomic_job_whose_rows_a_changed_column_would_cut_fails(connection: Connection, worker: Worker) -> None:
    options = JobOptions(atomic=True)
    worker.write(batch(0, 10, 5, options=options))
    connection.execute("ALTER TABLE sensor_readings ALTER sensor_id TYPE varchar(1)")
    worker.write(seal(1, options=options))
    worker.settle()
    assert job_row(connection) == (JobState.FAILED, 5, 0, 0, 0, 5)
    assert count(connection, "sensor_readings") == 0


ENDING = """
CREATE FUNCTION leave() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN IF new.value < 5 THEN PERFORM pg_terminate_backend(pg_backend_pid()); END IF; RETURN new; END $$;
CREATE TRIGGER leave BEFORE INSERT ON sensor_readings FOR EACH ROW EXECUTE FUNCTION leave();
"""


def test_a_trigger_that_ends_its_own_session_blocks_the_job_and_ends_no_worker(
    connection: Connection, worker: Worker
) -> None:
    connection.execute(ENDING)
    worker.write(batch(0, 500, 10, job="early"), batch(0, 0, 10, job="poison"), seal(1, job="early"))
    worker.settle()
    assert count(connection, "bulk.blocked_jobs") == 1
    assert job_row(connection, "early")[:3] == (JobState.OPEN, 10, 10)
    connection.execute("DROP TRIGGER leave ON sensor_readings; DELETE FROM bulk.blocked_jobs")
    worker.settle()
    assert job_row(connection, "early")[0] == JobState.SUCCEEDED
    assert job_row(connection, "poison")[:3] == (JobState.OPEN, 10, 10)
    assert count(connection, "bulk.parked") == 0


def test_a_batch_that_the_decoder_does_not_survive_blocks_its_job_and_no_other_tenant(
    connection: Connection, worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison, payload = batch(0, 0, 10, job="poison")

    def fragile(codec: BatchCodec, payloads: Sequence[Payload]) -> Rows:
        if any(one.data == payload for one in payloads):
            raise ValueError("the decoder does not survive this")
        return to_rows(codec, payloads)

    monkeypatch.setattr("bulkgrpc.consume.decode.to_rows", fragile)
    worker.write(batch(0, 500, 10, job="early"), (poison, payload))
    worker.settle()
    assert job_row(connection, "early")[:3] == (JobState.OPEN, 10, 10)
    rows = connection.execute("SELECT reason FROM bulk.blocked_jobs").fetchall()
    assert rows == [("the decoder does not survive this",)]
    monkeypatch.undo()
    connection.execute("DELETE FROM bulk.blocked_jobs")
    worker.settle()
    assert job_row(connection, "poison")[:3] == (JobState.OPEN, 10, 10)


def test_a_slice_that_is_selected_again_names_the_messages_that_were_tried(
    connection: Connection, worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    failure = Failure(Where.ROWS, "57014", "QueryCanceled", "too slow", dataset="sensor_readings")
    worker.parked.block("sensor_readings", BlockCause.ISOLATING, failure)
    worker.write(batch(0, 0, 10, job="first"))
    connection.execute("ALTER TABLE sensor_readings RENAME COLUMN value TO reading")
    lock_offset = parked.lock_offset

    def lock_late(ours: Connection, topic: str, partition: int) -> bool:
        """Before the main path is kept away, it parks another message."""
        worker.write(batch(0, 10, 10, job="second"))
        return lock_offset(ours, topic, partition)

    monkeypatch.setattr(parked, "lock_offset", lock_late)
    (queue,) = worker.parked.queues()
    with pytest.raises(SliceFailed) as raised:
        worker.parked.drain(queue.key, 256, pace=Pace.USUAL, merges=True)
    assert raised.value.job_ids == [JobKey.derive("acme", job).job_id for job in ("first", "second")]


def of_other_tenant(sent: tuple[Message, bytes]) -> tuple[Message, bytes]:
    message, payload = sent
    return replace(message, spec=replace(message.spec, key=JobKey.derive("other", "k"))), payload


def read_newer(headers: Sequence[tuple[str, bytes]], payload: bytes) -> Message:
    """As a later version reads messages: format 2, too."""
    return message_of([("format", b"1") if pair == ("format", b"2") else pair for pair in headers], payload)


@pytest.mark.parametrize("newer_offset", [0, 1], ids=["the first of its queue", "behind another"])
def test_a_parked_message_of_a_newer_format_waits_for_a_newer_worker_and_no_other_queue_waits_for_it(
    connection: Connection, worker: Worker, database: str, capsys: pytest.CaptureFixture[str], newer_offset: int
) -> None:
    connection.execute("ALTER TABLE sensor_readings RENAME COLUMN value TO reading")
    worker.write(batch(0, 0, 10), batch(1, 10, 10), seal(2), of_other_tenant(batch(0, 0, 10)))
    connection.execute(
        "UPDATE bulk.parked SET headers = jsonb_set(headers, %s, %s) WHERE message_offset = %s",
        [["0", "1"], '"32"', newer_offset],
    )
    connection.execute("ALTER TABLE sensor_readings RENAME COLUMN reading TO value")
    worker.settle()
    assert blocked(connection) == []
    left = connection.execute("SELECT tenant, message_offset FROM bulk.parked ORDER BY 2").fetchall()
    assert left == [("acme", offset) for offset in range(newer_offset, 3)]
    assert count(connection, "sensor_readings") == 10 * (newer_offset + 1)
    said = capsys.readouterr().out
    assert said.count("queue_waits_for_upgrade") == 1
    assert "drain_failed" not in said
    # What arrives waits behind it: the order of the queue holds.
    assert isinstance(outcome := worker.write(batch(0, 100, 10, job="later")), Applied)
    assert outcome.parked == 1

    worker.parked.close()
    worker.parked = PostgresParkedMessages(database, TOPIC, worker.registry, read_newer)
    worker.quick_drain = QuickDrain(worker.parked, worker.slow, threading.Event(), lambda: None)
    worker.settle()
    assert count(connection, "bulk.parked") == 0
    assert job_row(connection)[:4] == (JobState.SUCCEEDED, 20, 20, 0)
    assert job_row(connection, "later")[:3] == (JobState.OPEN, 10, 10)
