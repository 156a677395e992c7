"""What operators do with blocked datasets: pause, resume, discard; and what they and jobs show."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TypeVar

import pytest
from psycopg_pool import AsyncConnectionPool

from bulkgrpc.blocks import BlockedDataset, DatasetState, DatasetStatus, LedgerSnapshot, Parked
from bulkgrpc.consume.ports import Applied
from bulkgrpc.datasets.codec import BatchCodec
from bulkgrpc.model import BlockedBy, Job, JobKey, JobOptions, JobState
from bulkgrpc.postgres.blocks import PAUSE_REASON, Blocks
from bulkgrpc.postgres.jobs import JobStore
from bulkgrpc.postgres.maintenance import count_overdue
from tests.integration.test_parked import SLEEPING, Worker
from tests.integration.test_transaction import TOPIC, batch, job_row, seal
from tests.support import examples
from tests.support.database import Connection, count, register

NAME = "sensor_readings"
ATOMIC = JobOptions(atomic=True)
T = TypeVar("T")


class Operator:
    """Calls the server's adapters, each call with a pool of its own."""

    def __init__(self, database: str) -> None:
        self._database = database

    def pause(self, reason: str = "") -> DatasetStatus:
        return self._found(lambda blocks: blocks.pause(NAME, reason))

    def resume(self) -> DatasetStatus:
        return self._found(lambda blocks: blocks.resume(NAME))

    def status(self) -> DatasetStatus:
        return self._found(lambda blocks: blocks.status(NAME))

    def discard(self) -> tuple[DatasetStatus, DatasetStatus]:
        return self._found(lambda blocks: blocks.discard(NAME))

    def blocked(self) -> list[BlockedDataset]:
        return list(self._found(lambda blocks: blocks.blocked()))

    def ledger(self) -> LedgerSnapshot:
        return self._found(lambda blocks: blocks.ledger())

    def job(self, job: str = "k") -> Job:
        return self._run(lambda pool: JobStore(pool).get_job(JobKey.derive("acme", job)))

    def _found(self, call: Callable[[Blocks], Awaitable[T | None]]) -> T:
        return self._run(lambda pool: call(Blocks(pool, TOPIC)))

    def _run(self, call: Callable[[AsyncConnectionPool], Awaitable[T | None]]) -> T:
        async def run() -> T | None:
            async with AsyncConnectionPool(self._database, min_size=1, open=False, kwargs={"autocommit": True}) as pool:
                return await call(pool)

        found = asyncio.run(run())
        assert found is not None
        return found


@pytest.fixture
def worker(database: str, connection: Connection) -> Iterator[Worker]:
    register(connection, examples.readings())
    worker = Worker(database, connection)
    yield worker
    worker.stop()


@pytest.fixture
def operator(database: str, worker: Worker) -> Operator:
    return Operator(database)


def parked_by(worker: Worker, *messages: tuple[object, bytes]) -> int:
    outcome = worker.write(*messages)  # type: ignore[arg-type]
    assert isinstance(outcome, Applied)
    return outcome.parked


def test_a_paused_dataset_is_not_written_until_it_is_resumed_and_then_all_of_it_is(
    connection: Connection, worker: Worker, operator: Operator
) -> None:
    worker.write(batch(0, 0, 10))
    paused = operator.pause("the table is rebuilt")
    assert (paused.state, paused.reason, paused.next_trial_time) == (
        DatasetState.PAUSED,
        "the table is rebuilt",
        None,
    )
    assert parked_by(worker, batch(1, 10, 10), seal(2), batch(0, 100, 10, job="later")) == 3
    worker.settle()
    assert count(connection, NAME) == 10
    status = operator.status()
    assert (status.state, status.block_time) == (DatasetState.PAUSED, paused.block_time)
    assert status.parked == replace(status.parked, messages=3, records=20, jobs=2)
    assert status.parked.oldest_time is not None
    assert status.parked.payload_bytes > 0

    resumed = operator.resume()
    assert (resumed.state, resumed.parked.messages) == (DatasetState.WRITABLE, 3)
    worker.settle()
    assert count(connection, NAME) == 30
    assert job_row(connection) == (JobState.SUCCEEDED, 20, 20, 0, 0, 0)
    assert operator.status() == DatasetStatus(NAME, DatasetState.WRITABLE)
    assert operator.resume() == DatasetStatus(NAME, DatasetState.WRITABLE)


def test_pausing_again_changes_at_most_the_reason(operator: Operator) -> None:
    first = operator.pause()
    assert first.reason == PAUSE_REASON
    second = operator.pause("because")
    assert second == replace(first, reason="because")
    assert operator.pause() == second


def test_a_blocked_dataset_that_is_paused_is_not_tried_and_one_that_is_resumed_is_tried_now(
    connection: Connection, worker: Worker, operator: Operator
) -> None:
    connection.execute("ALTER TABLE sensor_readings RENAME TO elsewhere")
    worker.write(batch(0, 0, 10))
    blocked = operator.status()
    assert (blocked.state, blocked.trials) == (DatasetState.BLOCKED, 0)
    assert blocked.next_trial_time is not None
    connection.execute("UPDATE bulk.blocked_datasets SET next_trial_time = clock_timestamp() + interval '1 hour'")
    worker.quick_drain.round()
    before = datetime.now(UTC)
    resumed = operator.resume()
    assert resumed.state is DatasetState.BLOCKED
    assert resumed.next_trial_time is not None
    assert resumed.next_trial_time < before + timedelta(minutes=1)

    assert operator.pause().state is DatasetState.PAUSED
    connection.execute("ALTER TABLE elsewhere RENAME TO sensor_readings")
    worker.settle()
    assert (count(connection, "bulk.parked"), count(connection, NAME)) == (1, 0)
    operator.resume()
    worker.settle()
    assert (count(connection, "bulk.parked"), count(connection, NAME)) == (0, 10)


def test_discarding_counts_what_is_parked_as_expired_and_says_why_and_keeps_what_arrives_later(
    connection: Connection, worker: Worker, operator: Operator
) -> None:
    connection.execute("ALTER TABLE sensor_readings RENAME TO elsewhere")
    worker.write(batch(0, 0, 10), batch(1, 10, 10), seal(2), batch(0, 100, 5, job="open"))
    before, after = operator.discard()
    assert (before.state, after.state) == (DatasetState.BLOCKED, DatasetState.DISCARDING)
    assert (before.parked.messages, before.parked.records, before.parked.jobs) == (4, 25, 2)
    assert [one.tenant for one in before.tenants] == ["acme"]
    assert parked_by(worker, batch(1, 105, 5, job="open"), seal(2, job="open")) == 2
    worker.settle()

    assert job_row(connection) == (JobState.FAILED, 20, 0, 0, 0, 20)
    assert job_row(connection, "open") == (JobState.OPEN, 5, 0, 0, 0, 5)
    assert count(connection, "bulk.parked") == 2
    assert count(connection, "bulk.discards") == 0
    assert "discarded by an operator" in operator.job().discard_reason
    assert before.reason in operator.job().discard_reason
    status = operator.status()
    assert (status.state, status.parked.messages) == (DatasetState.BLOCKED, 2)

    connection.execute("ALTER TABLE elsewhere RENAME TO sensor_readings")
    worker.settle()
    assert job_row(connection, "open") == (JobState.PARTIALLY_SUCCEEDED, 10, 5, 0, 0, 5)
    assert count(connection, NAME) == 5


def test_an_atomic_job_that_loses_records_to_a_discard_fails_with_the_reason(
    connection: Connection, worker: Worker, operator: Operator
) -> None:
    worker.write(batch(0, 0, 10, options=ATOMIC), batch(0, 50, 10, job="whole", options=ATOMIC))
    operator.pause("wrong records")
    worker.write(batch(1, 10, 10, options=ATOMIC), seal(2, options=ATOMIC), seal(1, job="whole", options=ATOMIC))
    operator.discard()
    worker.settle()
    assert job_row(connection) == (JobState.FAILED, 20, 0, 0, 0, 20)
    assert job_row(connection, "whole") == (JobState.FAILED, 10, 0, 0, 0, 10)
    assert "wrong records" in operator.job().failure_reason
    assert operator.status().state is DatasetState.PAUSED
    operator.resume()
    worker.settle()
    assert count(connection, NAME) == 0


def test_messages_that_cannot_be_decoded_can_be_discarded(
    connection: Connection, worker: Worker, operator: Operator, monkeypatch: pytest.MonkeyPatch
) -> None:
    operator.pause()
    worker.write(batch(0, 0, 10), seal(1))

    def broken(name: str, version: int) -> BatchCodec:
        raise RuntimeError(f"the decoder of {name} version {version} is broken")

    monkeypatch.setattr(worker.registry, "codec", broken)
    operator.discard()
    worker.settle()
    assert (count(connection, "bulk.parked"), count(connection, "bulk.discards")) == (0, 0)
    assert job_row(connection) == (JobState.FAILED, 10, 0, 0, 0, 10)


def test_a_job_that_loses_nothing_to_a_discard_does_not_say_so(
    connection: Connection, worker: Worker, operator: Operator
) -> None:
    worker.write(batch(0, 0, 10))
    operator.pause()
    worker.write(batch(0, 0, 10), seal(1))
    operator.discard()
    worker.settle()
    assert job_row(connection) == (JobState.SUCCEEDED, 10, 10, 0, 0, 0)
    assert not operator.job().discard_reason


def test_resuming_ends_a_discard(connection: Connection, worker: Worker, operator: Operator) -> None:
    operator.pause()
    worker.write(batch(0, 0, 10), seal(1))
    assert operator.discard()[1].state is DatasetState.DISCARDING
    assert operator.resume().state is DatasetState.WRITABLE
    worker.settle()
    assert job_row(connection) == (JobState.SUCCEEDED, 10, 10, 0, 0, 0)


def test_discarding_a_writable_dataset_changes_nothing(
    connection: Connection, worker: Worker, operator: Operator
) -> None:
    assert operator.discard()[0].state is DatasetState.WRITABLE
    assert count(connection, "bulk.discards") == 0


def test_a_trial_writes_nothing_of_what_is_discarded(
    connection: Connection, worker: Worker, operator: Operator
) -> None:
    connection.execute("ALTER TABLE sensor_readings RENAME TO elsewhere")
    worker.write(batch(0, 0, 10))
    operator.discard()
    connection.execute("ALTER TABLE elsewhere RENAME TO sensor_readings")
    connection.execute("UPDATE bulk.blocked_datasets SET next_trial_time = 'epoch'")
    assert worker.parked.claim_trial() is None
    assert worker.parked.try_dataset(NAME) is False
    worker.settle()
    assert job_row(connection) == (JobState.OPEN, 10, 0, 0, 0, 10)
    assert operator.status() == DatasetStatus(NAME, DatasetState.WRITABLE)


def test_jobs_say_that_they_are_blocked_why_and_since_when_and_are_not_overdue(
    connection: Connection, worker: Worker, operator: Operator
) -> None:
    worker.write(batch(0, 0, 10), batch(0, 50, 10, job="other"), seal(1, job="other"))
    paused = operator.pause("because")
    assert operator.job().block is None
    worker.write(batch(1, 10, 10), seal(2))
    block = operator.job().block
    assert block is not None
    assert (block.cause, block.reason, block.block_time) == (BlockedBy.PAUSED, "because", paused.block_time)
    assert operator.job("other").block is None

    connection.execute("UPDATE bulk.jobs SET state = 2, seal_time = now() - interval '1 hour' WHERE state = 1")
    assert count_overdue(connection) == 0
    assert operator.job().overdue_s(datetime.now(UTC)) == 0.0
    operator.resume()
    assert operator.job().block is None
    assert count_overdue(connection) == 1
    worker.settle()
    assert operator.job().state is JobState.SUCCEEDED


def test_a_job_behind_a_blocked_one_names_it(
    database: str, connection: Connection, worker: Worker, operator: Operator
) -> None:
    connection.execute(SLEEPING)
    operator.pause()
    worker.write(batch(0, 0, 10, job="poison"), batch(0, 1000, 10, job="later"))
    poison = JobKey.derive("acme", "poison")
    connection.execute(
        "INSERT INTO bulk.blocked_jobs (job_id, reason, trials, next_trial_time) VALUES (%s, 'too slow', 3, now())",
        [poison.job_id],
    )
    operator.resume()
    connection.execute("UPDATE bulk.blocked_jobs SET next_trial_time = 'infinity'")
    mine, behind = operator.job("poison").block, operator.job("later").block
    assert mine is not None
    assert (mine.cause, mine.reason) == (BlockedBy.JOB, "too slow")
    assert behind is not None
    assert (behind.cause, behind.reason) == (BlockedBy.QUEUE, f"waits for {poison.name}: too slow")
    (queue,) = operator.ledger().queues
    assert (queue.reason, queue.trials, queue.parked.messages) == ("too slow", 3, 2)


def test_the_ledger_has_positions_and_queues(connection: Connection, worker: Worker, operator: Operator) -> None:
    operator.pause("because")
    worker.write(batch(0, 0, 10), seal(1))
    ledger = operator.ledger()
    assert [(one.partition, one.next_offset, one.owner_epoch) for one in ledger.partitions] == [(0, 2, worker.epoch)]
    (queue,) = ledger.queues
    assert (queue.partition, queue.tenant, queue.dataset, queue.reason) == (0, "acme", NAME, "because")
    assert (queue.parked.messages, queue.parked.records, queue.parked.jobs) == (2, 10, 1)
    assert ledger.omitted_queues == 0


def test_admission_sees_about_what_the_parked_messages_take(worker: Worker, operator: Operator) -> None:
    assert operator.blocked() == []
    operator.pause("because")
    worker.write(batch(0, 0, 10))
    (found,) = operator.blocked()
    assert (found.dataset, found.tenant, found.cause, found.reason) == (NAME, "", "paused", "because")
    assert found.stored_bytes == operator.status().parked.payload_bytes + 1024


def test_a_dataset_that_is_not_registered_has_no_status(database: str, worker: Worker) -> None:
    async def calls() -> list[object]:
        async with AsyncConnectionPool(database, min_size=1, open=False, kwargs={"autocommit": True}) as pool:
            blocks, name = Blocks(pool, TOPIC), f"d_{uuid.uuid4().hex[:8]}"
            return [
                await blocks.status(name),
                await blocks.pause(name, ""),
                await blocks.resume(name),
                await blocks.discard(name),
            ]

    assert asyncio.run(calls()) == [None] * 4


def test_what_is_parked_adds_up() -> None:
    time = datetime(2026, 1, 1, tzinfo=UTC)
    one, other = Parked(1, 2, 3, 4, time), Parked(1, 1, 1, 1, time + timedelta(hours=1))
    assert one + other == Parked(2, 3, 4, 5, time)
    assert one + Parked() == one
