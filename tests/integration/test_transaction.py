"""The transaction of a chunk, on real PostgreSQL."""

from __future__ import annotations

import re
import struct
import threading
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from types import ModuleType

import psycopg
import pytest
from psycopg_pool import AsyncConnectionPool

from bulkgrpc import faults
from bulkgrpc.consume.assembly import Chunk, Received, Span
from bulkgrpc.consume.decode import PreparedChunk, prepare
from bulkgrpc.consume.failures import Failure, Where
from bulkgrpc.consume.job_delta import JobDelta
from bulkgrpc.consume.ports import NotNext
from bulkgrpc.datasets.codec import BatchCodec
from bulkgrpc.datasets.definition import ConflictPolicy
from bulkgrpc.model import JobCounts, JobKey, JobOptions, JobSpec, JobState, Kind, Message, digest_of, final_state
from bulkgrpc.positions import Outcome, Ownership
from bulkgrpc.postgres import ledger, parked, rejections
from bulkgrpc.postgres.connection import Deadlines, connect
from bulkgrpc.postgres.jobs import JobStore
from bulkgrpc.postgres.maintenance import count_overdue, delete_orphaned_staged_rows, expire_abandoned, maintain_days
from bulkgrpc.postgres.statements import family
from bulkgrpc.postgres.transaction import write_chunk
from bulkgrpc.postgres.writers.table import TableWriter
from tests.support import examples
from tests.support.database import Connection, count, register
from tests.support.tasks import apply_tasks
from tests.support.waiting import wait_for

TOPIC = "records"
CODEC = BatchCodec(examples.readings())


@pytest.fixture
def epoch(connection: Connection) -> int:
    """The owner's epoch of partition 0, held by the test."""
    register(connection, examples.readings())
    return ledger.acquire(connection, TOPIC, [0])[0].owner_epoch


def message(
    sequence: int, records: int = 0, *, seal: bool = False, job: str = "k", options: JobOptions = JobOptions()
) -> Message:
    spec = JobSpec(JobKey.derive("acme", job), job, "sensor_readings", 1, {"team": "a"}, options)
    return Message(Kind.SEAL if seal else Kind.BATCH, spec, 0, sequence, records, 0, datetime.now(UTC))


def chunk(epoch: int, start: int, *messages: tuple[Message, bytes]) -> PreparedChunk:
    items = tuple(Received(0, start + i, m, payload) for i, (m, payload) in enumerate(messages))
    rows = sum(m.records for m, _ in messages)
    return prepare(Chunk((Span(0, start, start + len(items), epoch),), items, rows), lambda _name, _version: CODEC)


def batch(
    sequence: int, start: int, size: int, job: str = "k", options: JobOptions = JobOptions()
) -> tuple[Message, bytes]:
    payload = examples.reading_batch(start, size)
    return replace(message(sequence, size, job=job, options=options), digest=digest_of(payload)), payload


def seal(sequence: int, job: str = "k", options: JobOptions = JobOptions()) -> tuple[Message, bytes]:
    return message(sequence, seal=True, job=job, options=options), b""


def job_row(connection: Connection, job: str = "k") -> tuple[object, ...]:
    row = connection.execute(
        "SELECT state, accepted, written, duplicate, rejected, expired FROM bulk.jobs WHERE job_id = %s",
        [JobKey.derive("acme", job).job_id],
    ).fetchone()
    assert row is not None
    return row


def test_a_job_is_written_counted_and_ended(connection: Connection, epoch: int) -> None:
    write_chunk(connection, TOPIC, chunk(epoch, 0, batch(0, 0, 100), batch(1, 50, 100)), TableWriter())
    assert job_row(connection) == (JobState.OPEN, 200, 150, 50, 0, 0)
    write_chunk(connection, TOPIC, chunk(epoch, 2, seal(2)), TableWriter())
    assert job_row(connection) == (JobState.SUCCEEDED, 200, 150, 50, 0, 0)
    assert count(connection, "sensor_readings") == 150
    row = connection.execute("SELECT idempotency_key, labels, seal_time, end_time FROM bulk.jobs").fetchone()
    assert row is not None
    assert row[:2] == ("k", {"team": "a"})
    assert None not in row


def test_a_writer_that_sleeps_before_its_commit_loses_its_locks(
    database: str, epoch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    connection = connect(database, "sleeper", Deadlines(idle_in_transaction_s=0.2))
    gone = "SELECT count(*) = 0 FROM pg_stat_activity WHERE pid = %s"
    pid = connection.info.backend_pid

    def sleep(site: str) -> None:
        if site == "before_commit":
            with connect(database, "watch") as watch:
                assert wait_for(lambda: watch.execute(gone, [pid]).fetchone() == (True,), 5)

    monkeypatch.setattr(faults, "reach", sleep)
    with pytest.raises(psycopg.errors.IdleInTransactionSessionTimeout):
        write_chunk(connection, TOPIC, chunk(epoch, 0, batch(0, 0, 100)), TableWriter())
    with connect(database, "watch") as watch:
        assert count(watch, "sensor_readings") == 0


def test_a_small_chunk_takes_five_round_trips(connection: Connection, epoch: int, tmp_path: Path) -> None:
    connection.execute("SET plan_cache_mode = force_generic_plan")
    writer = TableWriter()
    write_chunk(connection, TOPIC, chunk(epoch, 0, batch(0, 0, 10)), writer)
    assert (
        round_trips(
            connection,
            tmp_path,
            lambda: write_chunk(connection, TOPIC, chunk(epoch, 1, batch(1, 10, 10), seal(2)), writer),
        )
        == 5
    )  # begin, lock the table, COPY and its end, commit
    assert job_row(connection) == (JobState.SUCCEEDED, 20, 20, 0, 0, 0)


def test_what_is_parked_or_reported_has_the_usual_time(
    connection: Connection, epoch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    connection.execute("ALTER TABLE sensor_readings ADD CHECK (value <> 2.5)")
    usual = connection.execute("SHOW statement_timeout").fetchone()
    found = {}

    def watch(module: ModuleType, name: str) -> None:
        original = getattr(module, name)

        def watched(*given: object) -> None:
            found[name] = connection.execute("SHOW statement_timeout").fetchone()
            original(*given)

        monkeypatch.setattr(module, name, watched)

    watch(parked, "park")
    watch(rejections, "add")
    parked.block_job(connection, JobKey.derive("acme", "blocked").job_id, Failure(Where.ROWS, "57014", "", "slow"))
    write_chunk(connection, TOPIC, chunk(epoch, 0, batch(0, 0, 10), batch(0, 10, 10, job="blocked")), TableWriter())
    assert found == {"park": usual, "add": usual}
    assert count(connection, "bulk.parked") == count(connection, "bulk.rejections") == 1


def round_trips(connection: Connection, tmp_path: Path, do: Callable[[], object]) -> int:
    """Return how often the client waited for the server meanwhile."""
    trace = tmp_path / "trace"
    with trace.open("w") as file:
        connection.pgconn.trace(file.fileno())
        do()
        connection.pgconn.untrace()
    senders = re.findall(r"^[^\t\n]*\t([FB])\t\d+\t", trace.read_text(), re.MULTILINE)
    return sum(before == "F" and after == "B" for before, after in pairwise(senders))


def test_a_replayed_chunk_writes_nothing(connection: Connection, epoch: int) -> None:
    prepared = chunk(epoch, 0, batch(0, 0, 100), seal(1))
    write_chunk(connection, TOPIC, prepared, TableWriter())
    with pytest.raises(NotNext) as refused:
        write_chunk(connection, TOPIC, prepared, TableWriter())
    assert refused.value.outcomes == {0: Outcome.REPLAY}
    assert refused.value.ledger[0].next_offset == 2
    assert count(connection, "sensor_readings") == 100


def test_a_batch_sent_twice_counts_once(connection: Connection, epoch: int) -> None:
    first = chunk(epoch, 0, batch(0, 0, 10), batch(0, 0, 10), batch(1, 10, 10))
    write_chunk(connection, TOPIC, first, TableWriter())
    write_chunk(connection, TOPIC, chunk(epoch, 3, batch(1, 10, 10), seal(2), seal(2)), TableWriter())
    assert job_row(connection) == (JobState.SUCCEEDED, 20, 20, 0, 0, 0)


def test_a_chunk_after_a_gap_is_refused(connection: Connection, epoch: int) -> None:
    with pytest.raises(NotNext) as refused:
        write_chunk(connection, TOPIC, chunk(epoch, 5, batch(0, 0, 10)), TableWriter())
    assert refused.value.outcomes == {0: Outcome.GAP}
    assert count(connection, "sensor_readings") == 0


def test_a_stale_owner_is_fenced(connection: Connection, epoch: int) -> None:
    ledger.acquire(connection, TOPIC, [0])
    with pytest.raises(NotNext) as refused:
        write_chunk(connection, TOPIC, chunk(epoch, 0, batch(0, 0, 10)), TableWriter())
    assert refused.value.outcomes == {0: Outcome.FENCED}
    assert count(connection, "sensor_readings") == 0


def test_a_new_owner_waits_for_the_old_ones_transaction_and_goes_on_after_it(
    connection: Connection, database: str, epoch: int
) -> None:
    acquired = threading.Event()
    found = {}

    def take_over() -> None:
        with connect(database, "tests-second") as second:
            found.update(ledger.acquire(second, TOPIC, [0]))
        acquired.set()

    with connection.transaction():
        span = Span(0, 0, 4, epoch)
        locked = connection.execute(ledger.LOCK_OFFSETS, ledger.offsets_values(TOPIC, [span]))
        ledger.check_spans(locked, [span])
        thread = threading.Thread(target=take_over)
        thread.start()
        ledger.conclude(connection, ledger.Conclusion(), TOPIC, [Span(0, 0, 4, epoch)])
        assert not acquired.wait(0.2)
    thread.join(10)
    assert (found[0].next_offset, found[0].owner_epoch) == (4, epoch + 1)


def test_bad_records_are_reported_and_counted(connection: Connection, epoch: int) -> None:
    good, bad = b"\x0a\x02S1\x1a\x02\x08\x01", b"\xff"
    records = examples.batch_of([good, bad, b"\x0a\x02S2"])
    prepared = chunk(epoch, 0, (message(0, 3), records), seal(1))
    write_chunk(connection, TOPIC, prepared, TableWriter())
    assert job_row(connection) == (JobState.PARTIALLY_SUCCEEDED, 3, 1, 0, 2, 0)
    found = connection.execute(
        "SELECT job_id, sequence, record_index, code, field, record FROM bulk.rejections ORDER BY record_index"
    ).fetchall()
    key = JobKey.derive("acme", "k")
    assert found == [
        (key.job_id, 0, 1, "MALFORMED_RECORD", "", bad),
        (key.job_id, 0, 2, "NULL_IN_KEY", "sampled_at", b"\x0a\x02S2"),
    ]


def test_a_refused_row_is_reported_with_its_own_bytes(connection: Connection, epoch: int) -> None:
    connection.execute("ALTER TABLE sensor_readings ADD CHECK (value <> 2.5)")
    write_chunk(connection, TOPIC, chunk(epoch, 0, batch(0, 0, 10), seal(1)), TableWriter())
    assert job_row(connection) == (JobState.PARTIALLY_SUCCEEDED, 10, 9, 0, 1, 0)
    (record,) = connection.execute("SELECT record_index, code, record FROM bulk.rejections").fetchall()
    lists = CODEC.decode([examples.batch_of([record[2]])])
    assert record[:2] == (5, "REJECTED_BY_TABLE")
    assert lists.flatten().field("value").to_pylist() == [2.5]


def test_jobs_of_one_chunk_are_counted_apart(connection: Connection, epoch: int) -> None:
    prepared = chunk(epoch, 0, batch(0, 0, 10, "a"), batch(0, 5, 10, "b"), batch(1, 100, 3, "a"), seal(2, "a"))
    write_chunk(connection, TOPIC, prepared, TableWriter())
    assert job_row(connection, "a") == (JobState.SUCCEEDED, 13, 13, 0, 0, 0)
    assert job_row(connection, "b") == (JobState.OPEN, 10, 5, 5, 0, 0)


def test_an_empty_job_ends(connection: Connection, epoch: int) -> None:
    write_chunk(connection, TOPIC, chunk(epoch, 0, seal(0)), TableWriter())
    assert job_row(connection) == (JobState.SUCCEEDED, 0, 0, 0, 0, 0)


@pytest.mark.parametrize(
    "counts",
    [
        JobCounts(),
        JobCounts(2, 2),
        JobCounts(2, 0, 2),
        JobCounts(3, 1, 1, 1),
        JobCounts(2, 0, 0, 2),
        JobCounts(2, 1, 0, 0, 1),
        JobCounts(2, 0, 0, 1, 1),
    ],
)
def test_the_statement_ends_jobs_as_the_model_says(connection: Connection, epoch: int, counts: JobCounts) -> None:
    first = Received(0, 0, message(0), b"")
    ledger.open_job(connection, first)
    jobs = ledger.lock_jobs(connection, [first.message.spec.key]).rows
    delta = JobDelta(**asdict(counts), sealed_at=datetime.now(UTC))
    counts_added = ledger.count_rows({first.message.spec.key: delta}, jobs)
    ledger.conclude(connection, ledger.Conclusion(counts=counts_added))
    assert job_row(connection)[0] == final_state(counts)


def test_a_job_that_is_sealed_while_a_chunk_is_written_stays_sealed(connection: Connection, epoch: int) -> None:
    first = Received(0, 0, message(0), b"")
    ledger.open_job(connection, first)
    jobs = ledger.lock_jobs(connection, [first.message.spec.key]).rows
    sealed = {"job_id": first.message.spec.key.job_id, "seal_time": datetime.now(UTC), "attempt": 0}
    connection.execute(family("jobs")["seal_job"], sealed)
    counts = ledger.count_rows({first.message.spec.key: JobDelta(2, 2)}, jobs)
    ledger.conclude(connection, ledger.Conclusion(counts=counts))
    assert job_row(connection) == (JobState.SEALED, 2, 2, 0, 0, 0)


ATOMIC = JobOptions(atomic=True)


def staged_rows(connection: Connection) -> int:
    """Return how many staged rows are left after maintenance."""
    delete_orphaned_staged_rows(connection)
    names = connection.execute("SELECT relname FROM pg_class WHERE relname ~ '^staged_' AND relkind = 'r'").fetchall()
    return sum(count(connection, f"bulk.{name}") for (name,) in names)


def test_nothing_of_an_atomic_job_is_visible_before_its_seal_and_then_all(connection: Connection, epoch: int) -> None:
    write_chunk(connection, TOPIC, chunk(epoch, 0, batch(0, 0, 10, options=ATOMIC)), TableWriter())
    write_chunk(connection, TOPIC, chunk(epoch, 1, batch(1, 5, 10, options=ATOMIC)), TableWriter())
    assert count(connection, "sensor_readings") == 0
    assert staged_rows(connection) == 20
    write_chunk(
        connection, TOPIC, chunk(epoch, 2, batch(2, 50, 5, options=ATOMIC), seal(3, options=ATOMIC)), TableWriter()
    )
    apply_tasks(connection)
    assert job_row(connection) == (JobState.SUCCEEDED, 25, 20, 5, 0, 0)
    assert count(connection, "sensor_readings") == 20
    assert staged_rows(connection) == 0


def test_one_bad_record_fails_an_atomic_job_and_leaves_nothing(connection: Connection, epoch: int) -> None:
    write_chunk(connection, TOPIC, chunk(epoch, 0, batch(0, 0, 10, options=ATOMIC)), TableWriter())
    bad = (message(1, 2, options=ATOMIC), examples.batch_of([b"\xff", b"\x0a\x02S1\x1a\x02\x08\x01"]))
    write_chunk(connection, TOPIC, chunk(epoch, 1, bad), TableWriter())
    assert job_row(connection) == (JobState.FAILED, 12, 0, 0, 1, 11)
    write_chunk(
        connection, TOPIC, chunk(epoch, 2, batch(2, 90, 5, options=ATOMIC), seal(3, options=ATOMIC)), TableWriter()
    )
    assert job_row(connection) == (JobState.FAILED, 17, 0, 0, 1, 16)
    assert count(connection, "sensor_readings") + staged_rows(connection) == 0
    row = connection.execute("SELECT failure_reason FROM bulk.jobs").fetchone()
    assert row is not None
    assert "atomic" in row[0]


def test_a_row_that_the_table_refuses_fails_the_whole_atomic_job(connection: Connection, epoch: int) -> None:
    connection.execute("ALTER TABLE sensor_readings ADD CONSTRAINT no_five CHECK (value <> 2.5)")
    messages = [batch(0, 0, 10, options=ATOMIC), seal(1, options=ATOMIC)]
    write_chunk(connection, TOPIC, chunk(epoch, 0, *messages), TableWriter())
    apply_tasks(connection)
    assert job_row(connection) == (JobState.FAILED, 10, 0, 0, 0, 10)
    assert count(connection, "sensor_readings") + staged_rows(connection) == 0


def test_a_job_with_too_many_rejections_fails_early_and_takes_no_more(connection: Connection, epoch: int) -> None:
    options = JobOptions(rejections_max=1)
    bad = (message(0, 3, options=options), examples.batch_of([b"\xff", b"\x0a\x02S1\x1a\x02\x08\x01", b"\xff"]))
    write_chunk(connection, TOPIC, chunk(epoch, 0, bad), TableWriter())
    assert job_row(connection) == (JobState.FAILED, 3, 1, 0, 2, 0)
    write_chunk(connection, TOPIC, chunk(epoch, 1, batch(1, 0, 10, options=options), seal(2)), TableWriter())
    assert job_row(connection) == (JobState.FAILED, 13, 1, 0, 2, 10)


def test_an_atomic_job_fails_by_a_batch_of_another_version(connection: Connection, epoch: int) -> None:
    """Its streams are refused; this is of one that a server opened while it could not read the job's version."""
    write_chunk(connection, TOPIC, chunk(epoch, 0, batch(0, 0, 10, options=ATOMIC)), TableWriter())
    other, payload = batch(1, 10, 10, options=ATOMIC)
    other = replace(other, spec=replace(other.spec, dataset_version=2))
    write_chunk(connection, TOPIC, chunk(epoch, 1, (other, payload), seal(2, options=ATOMIC)), TableWriter())
    assert job_row(connection) == (JobState.FAILED, 20, 0, 0, 10, 10)
    assert connection.execute("SELECT DISTINCT code FROM bulk.rejections").fetchall() == [("VERSION_CONFLICT",)]
    assert count(connection, "sensor_readings") == 0


def test_batches_past_their_time_to_live_are_discarded_and_counted(connection: Connection, epoch: int) -> None:
    old, payload = batch(0, 0, 10)
    old = replace(old, expires_at=datetime.now(UTC))
    write_chunk(connection, TOPIC, chunk(epoch, 0, (old, payload), batch(1, 20, 5), seal(2)), TableWriter())
    assert job_row(connection) == (JobState.PARTIALLY_SUCCEEDED, 15, 5, 0, 0, 10)
    assert count(connection, "sensor_readings") == 5


def test_the_same_sequence_with_other_bytes_is_reported_record_by_record(connection: Connection, epoch: int) -> None:
    write_chunk(connection, TOPIC, chunk(epoch, 0, batch(0, 0, 10)), TableWriter())
    write_chunk(connection, TOPIC, chunk(epoch, 1, batch(0, 100, 3), batch(0, 0, 10), seal(1)), TableWriter())
    assert job_row(connection) == (JobState.PARTIALLY_SUCCEEDED, 13, 10, 0, 3, 0)
    codes = connection.execute("SELECT sequence, record_index, code FROM bulk.rejections ORDER BY 2").fetchall()
    assert codes == [(0, index, "BATCH_CONFLICT") for index in range(3)]


def test_what_comes_after_the_seal_is_reported_apart_and_the_end_stays(connection: Connection, epoch: int) -> None:
    write_chunk(connection, TOPIC, chunk(epoch, 0, batch(0, 0, 10), seal(1)), TableWriter())
    late = chunk(epoch, 2, batch(1, 100, 3), batch(0, 0, 10), batch(0, 200, 4))
    applied = write_chunk(connection, TOPIC, late, TableWriter())
    assert job_row(connection) == (JobState.SUCCEEDED, 10, 10, 0, 0, 0)
    assert (count(connection, "sensor_readings"), count(connection, "bulk.rejections")) == (10, 0)
    found = connection.execute(
        "SELECT message_offset, sequence, records, code FROM bulk.late_batches ORDER BY message_offset"
    ).fetchall()
    assert found == [(2, 1, 3, "AFTER_SEAL"), (4, 0, 4, "BATCH_CONFLICT")]
    assert connection.execute("SELECT late_batches FROM bulk.jobs").fetchone() == (2,)
    assert dict(applied.late_batches) == {JobKey.derive("acme", "k"): 2}


def test_late_batches_that_are_read_again_are_reported_once(connection: Connection, epoch: int) -> None:
    for _ in range(2):
        write_chunk(connection, TOPIC, chunk(epoch, 0, batch(0, 0, 10), seal(1), batch(1, 100, 3)), TableWriter())
        connection.execute("UPDATE bulk.offsets SET next_offset = 0")
    write_chunk(connection, TOPIC, chunk(epoch, 0, batch(0, 0, 10), seal(1), batch(1, 100, 3)), TableWriter())
    assert job_row(connection) == (JobState.SUCCEEDED, 10, 10, 0, 0, 0)
    assert count(connection, "bulk.late_batches") == 1
    assert connection.execute("SELECT late_batches FROM bulk.jobs").fetchone() == (1,)


def test_other_bytes_for_a_cancelled_job_expire_as_all_that_follows_its_end(connection: Connection, epoch: int) -> None:
    write_chunk(connection, TOPIC, chunk(epoch, 0, batch(0, 0, 10)), TableWriter())
    connection.execute("UPDATE bulk.jobs SET state = 6, end_time = now()")
    write_chunk(connection, TOPIC, chunk(epoch, 1, batch(0, 100, 3), batch(1, 200, 5)), TableWriter())
    assert job_row(connection) == (JobState.CANCELLED, 18, 10, 0, 0, 8)
    assert count(connection, "bulk.rejections") + count(connection, "bulk.late_batches") == 0


async def test_a_cancelled_job_takes_nothing_more_and_an_atomic_one_leaves_nothing(
    connection: Connection, database: str, epoch: int
) -> None:
    async with AsyncConnectionPool(database, min_size=1, open=False, kwargs={"autocommit": True}) as pool:
        store = JobStore(pool)
        for place, (job, options) in enumerate((("plain", JobOptions()), ("atomic", ATOMIC))):
            write_chunk(
                connection, TOPIC, chunk(epoch, place * 2, batch(0, place * 100, 10, job, options)), TableWriter()
            )
            cancelled = await store.cancel_job(JobKey.derive("acme", job))
            assert cancelled is not None
            assert cancelled.state is JobState.CANCELLED
            later = [batch(1, place * 100 + 50, 5, job, options)]
            write_chunk(connection, TOPIC, chunk(epoch, place * 2 + 1, *later), TableWriter())
        plain = JobKey.derive("acme", "plain")
        assert not await store.delete_job(plain)
        write_chunk(connection, TOPIC, chunk(epoch, 4, seal(2, "plain")), TableWriter())
        assert job_row(connection, "plain")[0] == JobState.CANCELLED
        assert await store.delete_job(plain)
        assert await store.get_job(plain) is None
    assert job_row(connection, "atomic") == (JobState.CANCELLED, 15, 0, 0, 0, 15)
    assert count(connection, "sensor_readings") == 10
    assert staged_rows(connection) == 0


def test_jobs_are_dropped_with_their_day_unless_they_have_not_ended(connection: Connection, epoch: int) -> None:
    messages = []
    for number, job in enumerate(("ended", "open", "new")):
        sent_at = datetime.now(UTC) - timedelta(days=0 if job == "new" else 1 + number)
        first, payload = batch(0, number * 10, 10, job)
        messages += [(replace(first, sent_at=sent_at), payload)]
    messages += [seal(1, "ended"), batch(1, 500, 5, "ended")]
    write_chunk(connection, TOPIC, chunk(epoch, 0, *messages), TableWriter())
    assert count(connection, "bulk.late_batches") == 1
    connection.execute("SELECT bulk.maintain_days(%s, 1)", [datetime.now(UTC).date() + timedelta(days=2)])
    rows = connection.execute("SELECT idempotency_key FROM bulk.jobs ORDER BY 1").fetchall()
    assert rows == [("new",), ("open",)]
    assert count(connection, "bulk.lanes") == 2
    assert count(connection, "bulk.batches") == 2
    assert count(connection, "bulk.late_batches") == 0
    assert count(connection, "sensor_readings") == 30


def test_a_day_of_which_rows_came_before_its_partitions_stops_nothing(connection: Connection, epoch: int) -> None:
    first, payload = batch(0, 0, 10)
    first = replace(first, sent_at=first.sent_at + timedelta(days=10))
    write_chunk(connection, TOPIC, chunk(epoch, 0, (first, payload), seal(1)), TableWriter())
    assert count(connection, "bulk.jobs_other") == 1
    for days in (10, 11):
        connection.execute("SELECT bulk.maintain_days(%s, 2)", [datetime.now(UTC).date() + timedelta(days=days)])
    assert count(connection, "bulk.jobs_other") == 1
    connection.execute("SELECT bulk.maintain_days(%s, 2)", [datetime.now(UTC).date() + timedelta(days=13)])
    assert count(connection, "bulk.jobs_other") + count(connection, "bulk.lanes_other") == 0


def test_a_job_is_abandoned_only_once_all_of_its_partition_is_applied(connection: Connection, epoch: int) -> None:
    write_chunk(connection, TOPIC, chunk(epoch, 0, batch(0, 0, 10)), TableWriter())
    assert expire_abandoned(connection, TOPIC, {0: 2}, 0.0) == 0
    assert expire_abandoned(connection, TOPIC, {0: 1}, 3600.0) == 0
    assert expire_abandoned(connection, TOPIC, {0: 1}, 0.0) == 1
    assert job_row(connection) == (JobState.EXPIRED, 10, 10, 0, 0, 0)
    assert count_overdue(connection) == 0
    maintain_days(connection, 2)


def test_an_atomic_job_of_which_a_batch_expired_writes_nothing(connection: Connection, epoch: int) -> None:
    old, payload = batch(1, 10, 5, options=ATOMIC)
    old = replace(old, expires_at=datetime.now(UTC))
    messages = [batch(0, 0, 10, options=ATOMIC), (old, payload), seal(2, options=ATOMIC)]
    write_chunk(connection, TOPIC, chunk(epoch, 0, *messages), TableWriter())
    assert job_row(connection) == (JobState.FAILED, 15, 0, 0, 0, 15)
    assert count(connection, "sensor_readings") == 0


@pytest.mark.parametrize(
    ("policy", "state", "values"),
    [
        ("ignore", JobState.SUCCEEDED, [0.0, 7.0]),
        ("update", JobState.SUCCEEDED, [0.5, 7.0]),
        ("reject", JobState.FAILED, [0.0]),
    ],
)
def test_an_atomic_job_is_applied_by_the_datasets_policy(
    connection: Connection,
    epoch: int,
    monkeypatch: pytest.MonkeyPatch,
    policy: ConflictPolicy,
    state: JobState,
    values: list[float],
) -> None:
    dataset = replace(examples.readings(), conflict_policy=policy)
    monkeypatch.setattr("bulkgrpc.postgres.apply_task.get_dataset", lambda *_: dataset)
    at, later = b"\x0a\x02S1\x1a\x02\x08\x05", b"\x0a\x02S1\x1a\x02\x08\x06"

    def record(key: bytes, value: float) -> bytes:
        return key + b"\x11" + struct.pack("<d", value)

    first = (message(0, 1, job="first"), examples.batch_of([record(at, 0.0)]))
    write_chunk(connection, TOPIC, chunk(epoch, 0, first, seal(1, "first")), TableWriter())
    second = examples.batch_of([record(at, 9.0), record(at, 0.5), record(later, 7.0)])
    messages = [(message(0, 3, options=ATOMIC), second), seal(1, options=ATOMIC)]
    write_chunk(connection, TOPIC, chunk(epoch, 2, *messages), TableWriter())
    apply_tasks(connection)
    assert job_row(connection)[0] == state
    found = connection.execute("SELECT value FROM sensor_readings ORDER BY sampled_at").fetchall()
    assert [value for (value,) in found] == values


def test_counts_that_do_not_add_up_are_refused_by_the_database(connection: Connection, epoch: int) -> None:
    ledger.open_job(connection, Received(0, 0, message(0), b""))
    with pytest.raises(psycopg.errors.CheckViolation, match="every_accepted_record"):
        connection.execute("UPDATE bulk.jobs SET accepted = accepted + 1")


def opposed_chunk(owned: Ownership, turn: int) -> PreparedChunk:
    """A chunk of 10 batches of the same 500 keys as the other partition's, in the opposite order."""
    pieces = range(10) if owned.partition else range(9, -1, -1)
    items = tuple(
        Received(
            owned.partition,
            turn * 10 + place,
            message(turn * 10 + place, 50, job=f"p{owned.partition}"),
            examples.reading_batch(turn * 500 + piece * 50, 50),
        )
        for place, piece in enumerate(pieces)
    )
    span = Span(owned.partition, turn * 10, turn * 10 + 10, owned.owner_epoch)
    codec = BatchCodec(examples.readings())
    return prepare(Chunk((span,), items, 500), lambda _name, _version: codec)


def test_workers_with_the_same_keys_in_opposite_orders_do_not_deadlock(
    database: str, connection: Connection, epoch: int
) -> None:
    barrier = threading.Barrier(2)

    def work(partition: int) -> None:
        with connect(database, f"tests-{partition}") as own:
            owned = ledger.acquire(own, TOPIC, [partition])[partition]
            for turn in range(10):
                prepared = opposed_chunk(owned, turn)
                barrier.wait(30)
                write_chunk(own, TOPIC, prepared, TableWriter())

    with ThreadPoolExecutor(2) as threads:
        for done in [threads.submit(work, partition) for partition in (0, 1)]:
            done.result(60)
    assert count(connection, "sensor_readings") == 5000


def test_every_statement_is_valid_sql(connection: Connection, epoch: int) -> None:
    samples = {
        "role": "pg_monitor",
        "holder": uuid.uuid4(),
        "job_ids": [uuid.uuid4()],
        "lanes": "[]",
        "batches": "[]",
        "counts": "[]",
        "ends": "[]",
        "accepted": [0],
        "written": [0],
        "duplicate": [0],
        "rejected": [0],
        "states": [None],
        "staged_rows": [1],
        "kind": "small",
        "served": ["t"],
        "slow": False,
        "block_cause": None,
        "create_day": datetime.now(UTC).date(),
        "seal_times": [None],
        "sequences": [0],
        "partitions": [0],
        "to_offsets": [1],
        "topic": TOPIC,
        "job_id": uuid.uuid4(),
        "tenant": "t",
        "idempotency_key": "k",
        "dataset": "d",
        "of_deleted": False,
        "dataset_version": 1,
        "version": 1,
        "labels": "{}",
        "create_time": datetime.now(UTC),
        "seal_time": None,
        "after_time": None,
        "after_id": None,
        "page_size": 1,
        "after": "",
        "message_type": "M",
        "descriptors": b"",
        "sqlstates": [""],
        "missing_versions": [0],
        "schema_digest": b"",
        "server_start": datetime.now(UTC),
        "ledger_time": None,
        "known_time": None,
        "ledger": "",
        "known": "",
        "next_offsets": [0],
        "known_offsets": [0],
        "create_days": [datetime.now(UTC).date()],
        "expired": [0],
        "skipped": [0],
        "main_path": True,
        "datasets": ["d"],
        "queue_datasets": ["d"],
        "tenants": ["t"],
        "records": [0],
        "headers": ["[]"],
        "payloads": [b""],
        "offsets": [0],
        "cause": "table",
        "sqlstate": "",
        "reason": "",
        "table": "t",
        "failure_reasons": [""],
        "codes": ["AFTER_SEAL"],
        "reasons": ["late"],
        "sent_times": [datetime.now(UTC)],
        "lease_session": "",
        "digests": [b""],
        "from_sequence": 0,
        "after_sequence": 0,
        "after_index": 0,
        "include_records": True,
        "bytes_max": 1,
        "end_offsets": [0],
        "state": 6,
        "atomic": False,
        "rejections_max": 0,
        "time_to_live_s": 0.0,
        "lost": [False],
        "asked_time": datetime.now(UTC),
    }
    for name in ("jobs", "ledger", "catalog", "maintenance", "parked", "table_contract", "apply_tasks"):
        for statement in family(name).values():
            names = re.findall(r"%\((\w+)\)s", statement.decode())
            connection.execute(
                b"EXPLAIN " + statement.split(b"\n", 1)[1], {name: samples.get(name, 0) for name in names}
            )
