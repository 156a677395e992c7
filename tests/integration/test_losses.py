"""Batches that Kafka lost after it had stored them: their jobs fail at once, and continue when they are opened."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from psycopg_pool import AsyncConnectionPool

from bulkgrpc.consume.express import LeftToMainPath
from bulkgrpc.ingest.ports import Opening
from bulkgrpc.model import JobKey, JobSpec, JobState, Message
from bulkgrpc.postgres.jobs import JobStore
from bulkgrpc.postgres.maintenance import delete_orphaned_staged_rows, expire_abandoned
from bulkgrpc.postgres.transaction import write_ahead, write_chunk
from bulkgrpc.postgres.writers.table import TableWriter
from tests.integration import test_lanes
from tests.integration.test_lanes import Worker, workers
from tests.integration.test_transaction import ATOMIC, TOPIC, batch, chunk, epoch, job_row, seal
from tests.support.database import Connection, count
from tests.support.tasks import apply_tasks

__all__ = ["epoch", "workers"]
KEY = JobKey.derive("acme", "k")
Sent = tuple[Message, bytes]


@pytest.fixture
async def store(database: str) -> AsyncIterator[JobStore]:
    async with AsyncConnectionPool(database, min_size=1, open=False, kwargs={"autocommit": True}) as pool:
        yield JobStore(pool)


def after(stored: int, sent: Sent, attempt: int = 0) -> Sent:
    """A message whose server says that every batch before `stored` was in the log."""
    return replace(sent[0], stored_sequence=stored, attempt=attempt), sent[1]


def write(connection: Connection, epoch: int, start: int, *messages: Sent) -> dict[JobKey, str]:
    return dict(write_chunk(connection, TOPIC, chunk(epoch, start, *messages), TableWriter()).lost)


def reason(connection: Connection, key: JobKey = KEY) -> str:
    row = connection.execute("SELECT failure_reason FROM bulk.jobs WHERE lost AND job_id = %s", [key.job_id]).fetchone()
    return "" if row is None else str(row[0])


async def open_again(store: JobStore, spec: JobSpec) -> Opening:
    """Open a job as the server does for the client that submits it again."""
    opening = await store.open_stream(spec, (0,), datetime.now(UTC), "again", 0)
    assert opening.job.lost
    assert await store.open_again(spec.key)
    return await store.open_stream(spec, (0,), datetime.now(UTC), "again", 0)


def test_a_job_with_a_hole_fails_at_once_and_the_partition_goes_on(connection: Connection, epoch: int) -> None:
    other = batch(0, 500, 10, "other"), seal(1, "other")
    lost = write(
        connection,
        epoch,
        0,
        batch(0, 0, 10),
        after(2, batch(2, 20, 10)),
        other[0],
        after(3, batch(3, 30, 10)),
        other[1],
    )
    assert job_row(connection) == (JobState.FAILED, 10, 10, 0, 0, 0)
    assert job_row(connection, "other")[0] == JobState.SUCCEEDED
    assert lost == {KEY: reason(connection)}
    assert reason(connection).startswith("LOST_IN_KAFKA: ")
    assert "lost batch 1, of lane 0" in reason(connection)
    assert "continues at batch 1" in reason(connection)
    write(connection, epoch, 5, after(4, batch(4, 40, 10)), after(5, seal(5)))
    assert job_row(connection) == (JobState.FAILED, 10, 10, 0, 0, 0)
    assert count(connection, "sensor_readings") == 20


def test_a_seal_behind_a_hole_fails_its_job(connection: Connection, epoch: int) -> None:
    write(connection, epoch, 0, batch(0, 0, 10), after(2, seal(2)))
    assert job_row(connection)[0] == JobState.FAILED
    assert "continues at batch 1" in reason(connection)


def test_a_gap_that_was_never_acknowledged_is_filled_by_the_client(connection: Connection, epoch: int) -> None:
    gap = batch(0, 0, 10), after(1, batch(2, 20, 10)), after(1, batch(1, 10, 10)), after(1, batch(2, 20, 10))
    assert not write(connection, epoch, 0, *gap, after(3, seal(3)))
    assert job_row(connection) == (JobState.SUCCEEDED, 30, 30, 0, 0, 0)


async def test_a_job_that_is_opened_again_continues_where_it_was_and_writes_each_record_once(
    connection: Connection,
    epoch: int,
    store: JobStore,
) -> None:
    first = batch(0, 0, 10)
    write(connection, epoch, 0, first, after(2, batch(2, 20, 10)))
    opening = await open_again(store, first[0].spec)
    assert (opening.job.state, opening.job.next_sequence, opening.job.attempt) == (JobState.OPEN, 1, 1)
    assert (opening.job.failure_reason, opening.job.end_time, opening.lease_epoch) == ("", None, 1)
    # The rest of the earlier attempt, then all of this one.
    old = after(3, batch(3, 30, 10)), after(4, seal(4))
    new = [after(n, batch(n, n * 10, 10), 1) for n in (1, 2, 3)]
    assert not write(connection, epoch, 2, *old, batch(0, 0, 10), *new, after(4, seal(4), 1))
    assert job_row(connection) == (JobState.SUCCEEDED, 40, 40, 0, 0, 0)
    assert count(connection, "sensor_readings") == 40


async def test_an_atomic_job_begins_again_once_its_staged_rows_are_deleted(
    connection: Connection,
    epoch: int,
    store: JobStore,
) -> None:
    first = batch(0, 0, 10, options=ATOMIC)
    write(connection, epoch, 0, first, after(2, batch(2, 20, 10, options=ATOMIC)))
    assert job_row(connection) == (JobState.FAILED, 10, 0, 0, 0, 10)
    assert "continues at batch 0" in reason(connection)
    failed = await store.get_job(KEY)
    assert failed is not None
    assert (failed.lost, failed.next_sequence) == (True, 0)
    assert not await store.open_again(KEY)
    assert reason(connection)
    delete_orphaned_staged_rows(connection)
    opening = await open_again(store, first[0].spec)
    assert (opening.job.next_sequence, opening.job.counts.accepted) == (0, 0)
    again = [after(n, batch(n, n * 10, 10, options=ATOMIC), 1) for n in range(3)]
    write(connection, epoch, 2, after(3, seal(3, options=ATOMIC)), *again, after(3, seal(3, options=ATOMIC), 1))
    apply_tasks(connection)
    assert job_row(connection) == (JobState.SUCCEEDED, 30, 30, 0, 0, 0)
    assert count(connection, "sensor_readings") == 30


async def test_only_a_job_that_lost_batches_is_opened_again(
    connection: Connection, epoch: int, store: JobStore
) -> None:
    write(connection, epoch, 0, batch(0, 0, 10), seal(1))
    assert await store.open_again(KEY)
    assert job_row(connection)[0] == JobState.SUCCEEDED


async def test_a_seal_of_an_earlier_attempt_does_not_mark_the_row_as_sealed(
    connection: Connection,
    epoch: int,
    store: JobStore,
) -> None:
    first = batch(0, 0, 10)
    write(connection, epoch, 0, first, after(2, batch(2, 20, 10)))
    await open_again(store, first[0].spec)
    for attempt, state in ((0, JobState.OPEN), (1, JobState.SEALED)):
        job = await store.seal_job(KEY, datetime.now(UTC), attempt)
        assert job is not None
        assert job.state is state


def test_the_express_path_leaves_a_job_with_a_hole_to_the_main_path(connection: Connection, epoch: int) -> None:
    with pytest.raises(LeftToMainPath):
        write_ahead(connection, TOPIC, chunk(epoch, 0, batch(0, 0, 10), after(2, batch(2, 20, 10))), TableWriter())
    assert count(connection, "bulk.jobs") == 0
    write(connection, epoch, 0, batch(0, 0, 10), after(2, batch(2, 20, 10)))
    with pytest.raises(LeftToMainPath):
        write_ahead(connection, TOPIC, chunk(epoch, 2, after(3, batch(3, 30, 10))), TableWriter())


async def test_a_sealed_job_of_which_nothing_is_left_can_be_opened_again(
    connection: Connection, epoch: int, store: JobStore
) -> None:
    first = batch(0, 0, 10)
    write(connection, epoch, 0, first)
    connection.execute("UPDATE bulk.jobs SET state = 2")
    assert expire_abandoned(connection, TOPIC, {0: 1}, 0.0) == 1
    assert job_row(connection) == (JobState.FAILED, 10, 10, 0, 0, 0)
    assert reason(connection).startswith("INCOMPLETE: ")
    assert "continues at batch 1" in reason(connection)
    assert (await open_again(store, first[0].spec)).job.next_sequence == 1


async def test_a_job_with_lanes_continues_at_the_first_batch_that_any_of_them_lacks(
    connection: Connection,
    workers: list[Worker],
    store: JobStore,
) -> None:
    sent = [test_lanes.batch(n) for n in range(6)]
    workers[1].write(after(0, sent[1]), after(3, sent[3]))
    workers[0].write(after(0, sent[0]), after(4, sent[4]))
    assert test_lanes.row(connection) == (JobState.FAILED, 30, 30, 0, 0, 0, 0)
    key = sent[0][0].spec.key
    assert "lost batch 2, and may have lost more up to 3, of lane 0" in reason(connection, key)
    assert "continues at batch 2" in reason(connection, key)
    # The other lane takes nothing more, so nothing of it expires.
    workers[1].write(after(5, sent[5]), after(6, test_lanes.seal(1, 6)))
    opening = await open_again(store, sent[0][0].spec)
    assert opening.job.next_sequence == 2
    for lane in (0, 1):
        again = [after(2, sent[n], 1) for n in range(2, 6) if n % 2 == lane]
        workers[lane].write(*again, after(6, test_lanes.seal(lane, 6), 1))
    assert test_lanes.row(connection) == (JobState.SUCCEEDED, 60, 60, 0, 0, 0, 0)
    assert count(connection, "fleet_readings") == 60
