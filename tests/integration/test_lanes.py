"""Jobs with several lanes in the transactions of several workers, on real PostgreSQL."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta

import psycopg
import pytest
from psycopg_pool import AsyncConnectionPool

from bulkgrpc.consume.assembly import Chunk, Received, Span
from bulkgrpc.consume.decode import PreparedChunk, prepare
from bulkgrpc.datasets.codec import BatchCodec
from bulkgrpc.datasets.rows import Rows
from bulkgrpc.model import JobKey, JobOptions, JobSpec, JobState, Kind, Message, digest_of, lane_of
from bulkgrpc.postgres import ledger
from bulkgrpc.postgres.apply import RowsFailed
from bulkgrpc.postgres.catalog import Catalog
from bulkgrpc.postgres.connection import connect
from bulkgrpc.postgres.jobs import JobStore
from bulkgrpc.postgres.maintenance import expire_abandoned
from bulkgrpc.postgres.transaction import write_chunk
from bulkgrpc.postgres.writers.table import TableWriter
from bulkgrpc.postgres.writers.written import Written
from bulkgrpc.rejections import Integers
from tests.support import examples
from tests.support.database import Connection, count, register
from tests.support.tasks import apply_tasks
from tests.support.waiting import eventually

TOPIC = "records"
LANES = (0, 1)
"""The partition of each lane."""
BAD = examples.batch_of([b"\x0a\xff\x01"] * 3)
ATOMIC = JobOptions(atomic=True)


@dataclass(slots=True)
class Worker:
    """Holds a partition, and writes chunks of it on a connection of its own."""

    connection: Connection
    partition: int
    codec: BatchCodec
    writer: TableWriter = field(default_factory=TableWriter)
    epoch: int = 0
    offset: int = 0

    def __post_init__(self) -> None:
        self.epoch = ledger.acquire(self.connection, TOPIC, [self.partition])[self.partition].owner_epoch

    def write(self, *messages: tuple[Message, bytes]) -> None:
        prepared = self.chunk(messages)
        write_chunk(self.connection, TOPIC, prepared, self.writer)
        self.offset += len(messages)

    def chunk(self, messages: Sequence[tuple[Message, bytes]]) -> PreparedChunk:
        start = self.offset
        items = tuple(Received(self.partition, start + n, *found) for n, found in enumerate(messages))
        span = Span(self.partition, start, start + len(items), self.epoch)
        rows = sum(item.message.records for item in items)
        return prepare(Chunk((span,), items, rows), lambda _name, _version: self.codec)


class Held(TableWriter):
    """Writes, or is about to, says so, and waits in the middle of the transaction until it may continue."""

    def __init__(self, *, before: bool = False) -> None:
        super().__init__()
        self.wrote, self.go_on, self._before = threading.Event(), threading.Event(), before

    def write(self, connection: Connection, rows: Rows, owner: Integers) -> Written:
        if self._before:
            self._wait()
        written = super().write(connection, rows, owner)
        if not self._before:
            self._wait()
        return written

    def _wait(self) -> None:
        self.wrote.set()
        assert self.go_on.wait(30)


@pytest.fixture
def workers(connection: Connection, database: str) -> Iterator[list[Worker]]:
    """Two of them: one a lane."""
    register(connection, examples.fleet())
    codec = BatchCodec(examples.fleet())
    with connect(database, "tests-0") as first, connect(database, "tests-1") as second:
        yield [Worker(first, LANES[0], codec), Worker(second, LANES[1], codec)]


@pytest.fixture
async def store(database: str) -> AsyncIterator[JobStore]:
    async with AsyncConnectionPool(database, min_size=1, open=False, kwargs={"autocommit": True}) as pool:
        yield JobStore(pool)


def spec(job: str, options: JobOptions = JobOptions()) -> JobSpec:
    return JobSpec(JobKey.derive("acme", job), job, "fleet_readings", 1, {"team": "a"}, options)


def batch(
    sequence: int, start: int = -1, job: str = "k", options: JobOptions = JobOptions(), payload: bytes = b""
) -> tuple[Message, bytes]:
    """A batch of 10 records of its own, unless `start` or `payload` says which."""
    records = 3 if payload else 10
    payload = payload or examples.reading_batch(sequence * 10 if start < 0 else start, 10)
    lane = lane_of(sequence, len(LANES))
    message = Message(Kind.BATCH, spec(job, options), lane, sequence, records, 0, datetime.now(UTC), partitions=LANES)
    return replace(message, digest=digest_of(payload)), payload


def seal(lane: int, batches: int, job: str = "k", options: JobOptions = JobOptions()) -> tuple[Message, bytes]:
    return Message(Kind.SEAL, spec(job, options), lane, batches, 0, 0, datetime.now(UTC), partitions=LANES), b""


def row(connection: Connection, job: str = "k") -> tuple[object, ...]:
    found = connection.execute(
        "SELECT state, accepted, written, duplicate, rejected, expired, staged FROM bulk.jobs WHERE job_id = %s",
        [spec(job).key.job_id],
    ).fetchone()
    assert found is not None
    return found


def deadlocks(connection: Connection) -> int:
    connection.execute("SELECT pg_stat_force_next_flush()")
    statement = "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"
    found = connection.execute(statement).fetchone()
    assert found is not None
    return int(found[0])


def test_the_first_message_of_any_lane_makes_the_job_and_its_last_seal_ends_it(
    connection: Connection, workers: list[Worker]
) -> None:
    first, second = workers
    second.write(batch(1), batch(3), seal(1, 4))
    assert row(connection) == (JobState.OPEN, 20, 20, 0, 0, 0, 0)
    assert connection.execute("SELECT partitions, labels, seal_time FROM bulk.jobs").fetchone() == (
        [0, 1],
        {"team": "a"},
        None,
    )
    last = seal(0, 4)
    first.write(batch(0), batch(2), last)
    assert row(connection) == (JobState.SUCCEEDED, 40, 40, 0, 0, 0, 0)
    assert connection.execute("SELECT seal_time FROM bulk.jobs").fetchone() == (last[0].sent_at,)
    first.write(batch(0), seal(0, 4))
    second.write(batch(3), seal(1, 4))
    assert row(connection) == (JobState.SUCCEEDED, 40, 40, 0, 0, 0, 0)
    assert count(connection, "fleet_readings") == 40


def test_workers_that_write_for_the_same_jobs_in_opposed_orders_do_not_deadlock(
    connection: Connection, workers: list[Worker]
) -> None:
    turns, jobs = 20, [f"j{number}" for number in range(6)]
    begin = threading.Barrier(2, timeout=30)

    def work(worker: Worker) -> None:
        lane = worker.partition
        for turn in range(turns):
            order = jobs if (turn + lane) % 2 else jobs[::-1]
            begin.wait()
            # Of every other turn the keys are the same on both lanes, so that workers wait for each other's rows too.
            start = turn * 20 + lane * 10 * (turn % 2)
            worker.write(*(batch(turn * 2 + lane, start, job) for job in order))
        begin.wait()
        worker.write(*(seal(lane, turns * 2, job) for job in (jobs if lane else jobs[::-1])))

    with ThreadPoolExecutor(2) as threads:
        for done in [threads.submit(work, worker) for worker in workers]:
            done.result(60)
    assert deadlocks(connection) == 0
    found = [row(connection, job) for job in jobs]
    assert {(state, accepted) for state, accepted, *_ in found} == {(JobState.SUCCEEDED, turns * 20)}
    assert sum(int(str(written)) for _, _, written, *_ in found) == count(connection, "fleet_readings") == turns * 15


async def test_jobs_are_held_one_after_the_other_by_their_ids(connection: Connection, workers: list[Worker]) -> None:
    first, second = workers
    jobs = [f"j{number}" for number in range(12)]
    first.write(*(batch(0, number * 10, job) for number, job in enumerate(jobs)))
    waits = "SELECT FROM pg_stat_activity WHERE application_name = 'tests-0' AND wait_event_type = 'Lock'"
    free = "SELECT count(*) FROM (SELECT FROM bulk.jobs FOR NO KEY UPDATE SKIP LOCKED) AS free"
    with ThreadPoolExecutor(1) as threads:
        with connection.transaction():
            lowest = min(spec(job).key.job_id for job in jobs)
            connection.execute("SELECT FROM bulk.jobs WHERE job_id = %s FOR NO KEY UPDATE", [lowest])
            writing = threads.submit(first.write, *(batch(2, 500 + n * 10, job) for n, job in enumerate(jobs)))
            await eventually(lambda: second.connection.execute(waits).fetchone() is not None)
            # Rows are written meanwhile, and no other job is held.
            assert second.connection.execute(free).fetchone() == (len(jobs) - 1,)
        writing.result(30)
    assert row(connection, jobs[0])[:3] == (JobState.OPEN, 20, 20)


async def test_the_next_sequence_is_the_first_that_no_lane_has_and_digests_are_read_across_lanes(
    workers: list[Worker], store: JobStore
) -> None:
    first, second = workers
    second.write(batch(1), batch(3))
    job = await store.get_job(spec("k").key)
    assert job is not None
    assert (job.next_sequence, job.partitions) == (0, LANES)
    first.write(batch(0))
    job = await store.get_job(spec("k").key)
    assert job is not None
    assert job.next_sequence == 2
    assert [found.next_sequence for found in await store.list_jobs("acme", 5, None)] == [2]
    assert await store.digests(job.spec.key, 1, 2) == {s: digest_of(batch(s)[1]) for s in (1, 3)}


def test_too_many_rejections_on_all_lanes_together_fail_the_job(connection: Connection, workers: list[Worker]) -> None:
    first, second = workers
    strict = JobOptions(rejections_max=5)
    first.write(batch(0, options=strict, payload=BAD))
    assert row(connection) == (JobState.OPEN, 3, 0, 0, 3, 0, 0)
    second.write(batch(1, options=strict, payload=BAD))
    assert row(connection) == (JobState.FAILED, 6, 0, 0, 6, 0, 0)
    first.write(batch(2, options=strict), seal(0, 3, options=strict))
    second.write(seal(1, 3, options=strict))
    assert row(connection) == (JobState.FAILED, 16, 0, 0, 6, 10, 0)


def test_what_is_being_written_when_the_job_fails_on_another_lane_is_taken_back(
    connection: Connection, workers: list[Worker]
) -> None:
    first, second = workers
    strict, held = JobOptions(rejections_max=1), Held()
    first.write(batch(0, options=strict))
    second.writer = held
    with ThreadPoolExecutor(1) as threads:
        writing = threads.submit(second.write, batch(1, options=strict), batch(1, 500, "other"))
        assert held.wrote.wait(30)
        first.write(batch(2, options=strict, payload=BAD))
        assert row(connection)[0] == JobState.FAILED
        held.go_on.set()
        writing.result(30)
    assert row(connection) == (JobState.FAILED, 23, 10, 0, 3, 10, 0)
    assert row(connection, "other") == (JobState.OPEN, 10, 10, 0, 0, 0, 0)
    assert count(connection, "fleet_readings") == 20


@pytest.mark.parametrize("options", [JobOptions(), ATOMIC])
async def test_a_job_is_cancelled_at_once_while_workers_write_for_it_and_nothing_is_written_after(
    connection: Connection, workers: list[Worker], store: JobStore, options: JobOptions
) -> None:
    first, second = workers
    held = Held()
    first.write(batch(0, options=options))
    second.writer = held
    with ThreadPoolExecutor(1) as threads:
        # The other job's rows go by the table writer, which is held, whether the first job is atomic or not.
        writing = threads.submit(second.write, batch(1, options=options), batch(1, 500, "other"))
        assert held.wrote.wait(30)
        cancelled = await store.cancel_job(spec("k").key)
        assert cancelled is not None
        assert cancelled.state is JobState.CANCELLED
        there = count(connection, "fleet_readings")
        held.go_on.set()
        writing.result(30)
    assert count(connection, "fleet_readings") == there + 10
    assert row(connection)[0] == JobState.CANCELLED
    assert row(connection)[5] == (20 if options.atomic else 10)
    assert not await store.delete_job(spec("k").key)
    first.write(seal(0, 2, options=options))
    assert not await store.delete_job(spec("k").key)
    second.write(seal(1, 2, options=options))
    assert await store.delete_job(spec("k").key)


async def test_a_job_may_be_cancelled_and_its_dataset_deleted_before_a_worker_comes_to_write_its_rows(
    connection: Connection, database: str, workers: list[Worker], store: JobStore
) -> None:
    first, second = workers
    first.write(batch(0))
    held = Held(before=True)
    second.writer = held
    with ThreadPoolExecutor(1) as threads:
        writing = threads.submit(second.write, batch(1))
        assert held.wrote.wait(30)
        await store.cancel_job(spec("k").key)
        async with AsyncConnectionPool(database, min_size=1, open=False, kwargs={"autocommit": True}) as pool:
            assert await Catalog(pool).delete("fleet_readings", drop_table=True)
        held.go_on.set()
        writing.result(30)
    assert row(connection) == (JobState.CANCELLED, 20, 10, 0, 0, 10, 0)


def test_a_table_that_is_gone_while_its_dataset_is_not_is_told(connection: Connection, workers: list[Worker]) -> None:
    connection.execute("DROP TABLE fleet_readings")
    with pytest.raises(RowsFailed) as raised:
        workers[0].write(batch(0))
    assert isinstance(raised.value.__cause__, psycopg.errors.UndefinedTable)


async def test_an_atomic_job_is_applied_whole_by_whoever_applies_the_last_seal_in_the_order_of_its_sequences(
    connection: Connection, workers: list[Worker]
) -> None:
    first, second = workers
    second.write(batch(1, 0, options=ATOMIC), seal(1, 2, options=ATOMIC))
    first.write(batch(0, 5, options=ATOMIC))
    assert row(connection) == (JobState.OPEN, 20, 0, 0, 0, 0, 20)
    assert count(connection, "fleet_readings") == 0
    first.write(seal(0, 2, options=ATOMIC))
    apply_tasks(connection)
    assert row(connection) == (JobState.SUCCEEDED, 20, 15, 5, 0, 0, 0)
    assert count(connection, "fleet_readings") == 15


def test_one_bad_record_on_any_lane_fails_an_atomic_job_and_leaves_nothing(
    connection: Connection, workers: list[Worker]
) -> None:
    first, second = workers
    first.write(batch(0, options=ATOMIC))
    second.write(batch(1, options=ATOMIC, payload=BAD))
    first.write(batch(2, options=ATOMIC), seal(0, 3, options=ATOMIC))
    second.write(seal(1, 3, options=ATOMIC))
    assert row(connection) == (JobState.FAILED, 23, 0, 0, 3, 20, 0)
    assert count(connection, "fleet_readings") == 0


def test_lanes_whose_ends_come_at_the_same_moment_end_the_job_once(
    connection: Connection, workers: list[Worker]
) -> None:
    begin = threading.Barrier(2, timeout=30)
    jobs = [f"j{number}" for number in range(30)]

    def work(worker: Worker) -> None:
        lane = worker.partition
        for number, job in enumerate(jobs):
            begin.wait()
            worker.write(batch(lane, number * 20 + lane * 10, job), seal(lane, 2, job))

    with ThreadPoolExecutor(2) as threads:
        for done in [threads.submit(work, worker) for worker in workers]:
            done.result(60)
    assert {row(connection, job) for job in jobs} == {(JobState.SUCCEEDED, 20, 20, 0, 0, 0, 0)}


def test_a_job_is_abandoned_only_once_all_of_its_partitions_are_applied(
    connection: Connection, workers: list[Worker]
) -> None:
    workers[0].write(batch(0))
    assert expire_abandoned(connection, TOPIC, {0: 1, 1: 1}, 0.0) == 0
    assert expire_abandoned(connection, TOPIC, {0: 1}, 0.0) == 0
    workers[1].write(batch(1))
    assert expire_abandoned(connection, TOPIC, {0: 1, 1: 1}, 0.0) == 1
    assert row(connection) == (JobState.EXPIRED, 20, 20, 0, 0, 0, 0)


def test_batches_of_a_server_that_took_the_lanes_to_be_one_are_written_once_beside_those_of_one_that_knew(
    connection: Connection, workers: list[Worker]
) -> None:
    """Without PostgreSQL a new job gets one lane; another server may have made its row with two."""
    first, second = workers
    second.write(batch(1))
    held, alone = (
        Held(before=True),
        [(replace(m, lane=0, partitions=()), payload) for m, payload in map(batch, range(4))],
    )
    second.writer = held
    with ThreadPoolExecutor(1) as threads:
        writing = threads.submit(second.write, batch(3))
        assert held.wrote.wait(30)
        first.write(*alone)
        held.go_on.set()
        writing.result(30)
    first.write((replace(seal(0, 4)[0], partitions=()), b""))
    assert row(connection) == (JobState.SUCCEEDED, 40, 40, 0, 0, 0, 0)
    assert count(connection, "fleet_readings") == 40


def test_batches_past_their_time_to_live_are_discarded_on_their_lane_alone(
    connection: Connection, workers: list[Worker]
) -> None:
    old, payload = batch(0)
    workers[0].write((replace(old, expires_at=datetime.now(UTC) - timedelta(seconds=1)), payload), seal(0, 2))
    workers[1].write(batch(1), seal(1, 2))
    assert row(connection) == (JobState.PARTIALLY_SUCCEEDED, 20, 10, 0, 0, 10, 0)
