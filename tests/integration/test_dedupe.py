"""Records that are repeated within the window, on real PostgreSQL: remembered with their rows, and only then."""

from __future__ import annotations

import functools
import itertools
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

import numpy as np
import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from psycopg import sql

from bulkgrpc import client as library
from bulkgrpc.client import AsyncBulkClient
from bulkgrpc.consume.assembly import Chunk, Received, Span
from bulkgrpc.consume.decode import PreparedChunk, prepare
from bulkgrpc.consume.ports import NotNext
from bulkgrpc.datasets.codec import BatchCodec
from bulkgrpc.datasets.definition import ConflictPolicy
from bulkgrpc.datasets.table_fit import Fit
from bulkgrpc.model import JobKey, JobOptions, JobSpec, Kind, Message, digest_of
from bulkgrpc.postgres import dedupe, ledger
from bulkgrpc.postgres.apply import RowsFailed
from bulkgrpc.postgres.connection import connect
from bulkgrpc.postgres.dedupe import HashArray
from bulkgrpc.postgres.filters import make_filters
from bulkgrpc.postgres.statements import family
from bulkgrpc.postgres.transaction import write_chunk
from bulkgrpc.postgres.writers.remember import LOOKUP_CHUNKS
from bulkgrpc.postgres.writers.table import TableWriter
from tests.integration.service_values import Parts
from tests.support import examples
from tests.support.cost import OPCODES_RATIO_MAX, cost
from tests.support.database import Connection, count, register
from tests.support.tasks import apply_tasks

pytest_plugins = ["tests.integration.service_parts"]

TOPIC = "records"
ATOMIC = JobOptions(atomic=True)
POLICIES: tuple[ConflictPolicy, ...] = ("ignore", "update", "reject")
Batch = Sequence[bytes]
Counts = tuple[int, ...]
EXAMPLES = itertools.count(1)


@dataclass
class Worker:
    """A worker's hold of one partition: writes a chunk at a time."""

    connection: Connection
    partition: int = 0
    offset: int = 0
    writer: TableWriter = field(default_factory=TableWriter)
    sequences: dict[str, int] = field(default_factory=dict)
    codecs: dict[str, BatchCodec] = field(default_factory=dict)

    def codec_of(self, name: str, _version: int) -> BatchCodec:
        if name not in self.codecs:
            policies = {f"remembered_{policy}": policy for policy in POLICIES}
            self.codecs[name] = BatchCodec(examples.remembered(policies[name]))
        return self.codecs[name]

    @functools.cached_property
    def epoch(self) -> int:
        return ledger.acquire(self.connection, TOPIC, [self.partition])[self.partition].owner_epoch

    def chunk(self, *parts: tuple[str, Batch | None], **options: object) -> PreparedChunk:
        """Prepare a chunk of batches (None: seals) of jobs `tenant/key`."""
        items: list[Received] = []
        for job, records in parts:
            message, payload = self.message(job, records, **options)  # type: ignore[arg-type]
            items.append(Received(self.partition, self.offset + len(items), message, payload))
        span = Span(self.partition, self.offset, self.offset + len(items), self.epoch)
        self.offset += len(items)
        return prepare(Chunk((span,), tuple(items), sum(item.message.records for item in items)), self.codec_of)

    def message(
        self, job: str, records: Batch | None, dataset: str = "remembered_ignore", options: JobOptions = JobOptions()
    ) -> tuple[Message, bytes]:
        tenant, key = job.split("/")
        spec = JobSpec(JobKey.derive(tenant, key), key, dataset, 1, {}, options)
        sequence = self.sequences.get(job, 0)
        if records is None:
            return Message(Kind.SEAL, spec, 0, sequence, 0, 0, datetime.now(UTC)), b""
        self.sequences[job] = sequence + 1
        payload = examples.batch_of(records)
        message = Message(Kind.BATCH, spec, 0, sequence, len(records), 0, datetime.now(UTC))
        return replace(message, digest=digest_of(payload)), payload

    def write(self, *parts: tuple[str, Batch | None], **options: object) -> None:
        write_chunk(self.connection, TOPIC, self.chunk(*parts, **options), self.writer)


@pytest.fixture
def worker(connection: Connection) -> Worker:
    for policy in POLICIES:
        register(connection, examples.remembered(policy))
    return Worker(connection)


def counts(connection: Connection, job: str) -> Counts:
    """Accepted, written, duplicate, rejected, expired."""
    row = connection.execute(
        "SELECT accepted, written, duplicate, rejected, expired FROM bulk.jobs WHERE job_id = %s",
        [JobKey.derive(*job.split("/")).job_id],
    ).fetchone()
    assert row is not None
    return row


def readings(start: int, stop: int, value: float = 0.0) -> list[bytes]:
    return [examples.reading(f"S{number}", number % 100, number + value) for number in range(start, stop)]


def remembered(connection: Connection, dataset: str = "remembered_ignore") -> int:
    return sum(count(connection, name.as_string(None).replace('"', "")) for name in dedupe.names(dataset))


def let_pass(connection: Connection, seconds: float, dataset: str = "remembered_ignore") -> None:
    """Make hashes and generations older."""
    for name in dedupe.names(dataset):
        statement = sql.SQL("UPDATE {} SET seen_time = seen_time - make_interval(secs => %s)")
        connection.execute(statement.format(name), [seconds])
    connection.execute("UPDATE bulk.dedupe SET rotate_time = rotate_time - make_interval(secs => %s)", [seconds])


def due(connection: Connection) -> set[str]:
    """Datasets whose generations are to rotate."""
    return {name for (name,) in connection.execute(family("dedupe")["expired"])}


@pytest.mark.parametrize("policy", POLICIES)
def test_a_record_that_comes_again_is_a_duplicate_in_its_batch_chunk_and_job(
    worker: Worker, connection: Connection, policy: ConflictPolicy
) -> None:
    dataset = f"remembered_{policy}"
    first = readings(0, 10)
    worker.write(("acme/one", [*first, *first[:3]]), ("acme/one", first[2:4]), ("acme/two", first[:5]), dataset=dataset)
    assert counts(connection, "acme/one") == (15, 10, 5, 0, 0)
    assert counts(connection, "acme/two") == (5, 0, 5, 0, 0)
    worker.write(("acme/three", [*first[5:], *readings(10, 12)]), dataset=dataset)
    assert counts(connection, "acme/three") == (7, 2, 5, 0, 0)
    assert count(connection, dataset) == 12
    assert remembered(connection, dataset) == 12


def test_a_known_record_is_a_duplicate_whatever_became_of_its_row(worker: Worker, connection: Connection) -> None:
    old, new = examples.reading("S1", 1, 1.0), examples.reading("S1", 1, 2.0)
    for job, record in (("acme/old", old), ("acme/new", new), ("acme/again", old)):
        worker.write((job, [record]), dataset="remembered_update")
    assert connection.execute("SELECT value FROM remembered_update").fetchall() == [(2.0,)]
    assert counts(connection, "acme/again") == (1, 0, 1, 0, 0)
    connection.execute("TRUNCATE remembered_update")
    worker.write(("acme/gone", [old, new]), dataset="remembered_update")
    assert counts(connection, "acme/gone") == (2, 0, 2, 0, 0)


def test_tenants_and_datasets_are_apart(worker: Worker, connection: Connection) -> None:
    records = readings(0, 5)
    worker.write(("acme/a", records), ("other/a", records))
    worker.write(("acme/b", records), dataset="remembered_update")
    for job in ("acme/a", "other/a", "acme/b"):
        assert counts(connection, job) == (5, 5, 0, 0, 0)
    assert count(connection, "remembered_ignore") == 10


def test_what_was_refused_or_never_applied_is_not_remembered(worker: Worker, connection: Connection) -> None:
    connection.execute("CREATE TABLE sensors (id text PRIMARY KEY)")
    connection.execute("ALTER TABLE remembered_ignore ADD FOREIGN KEY (sensor_id) REFERENCES sensors")
    connection.execute("INSERT INTO sensors VALUES ('S0'), ('S1')")
    records = readings(0, 4)
    worker.write(("acme/refused", [*records, records[2]]), ("acme/twin", [records[2], b"\xff", records[0]]))
    assert counts(connection, "acme/refused") == (5, 2, 0, 3, 0)
    assert counts(connection, "acme/twin") == (3, 0, 1, 2, 0)
    assert remembered(connection) == 2
    connection.execute("INSERT INTO sensors VALUES ('S2'), ('S3')")
    worker.write(("acme/corrected", [*records, records[2]]))
    assert counts(connection, "acme/corrected") == (5, 2, 3, 0, 0)
    late = readings(50, 52)
    message, payload = worker.message("acme/late", late)
    item = Received(0, worker.offset, replace(message, expires_at=datetime.now(UTC)), payload)
    span = Span(0, worker.offset, worker.offset + 1, worker.epoch)
    worker.offset += 1
    write_chunk(connection, TOPIC, prepare(Chunk((span,), (item,), 2), worker.codec_of), worker.writer)
    assert counts(connection, "acme/late") == (2, 0, 0, 0, 2)
    assert remembered(connection) == 4


def test_a_key_that_is_there_with_other_bytes_is_for_the_policy(worker: Worker, connection: Connection) -> None:
    first, other = readings(0, 3), readings(0, 3, value=0.5)
    worker.write(("acme/a", first), dataset="remembered_reject")
    worker.write(("acme/b", [*first, *other, other[0]]), dataset="remembered_reject")
    assert counts(connection, "acme/b") == (7, 0, 3, 4, 0)
    codes = connection.execute("SELECT DISTINCT code FROM bulk.rejections").fetchall()
    assert codes == [("DUPLICATE_KEY",)]
    assert remembered(connection, "remembered_reject") == 3


def test_a_chunk_that_is_replayed_or_rolled_back_counts_once(
    worker: Worker, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared = worker.chunk(("acme/a", readings(0, 5)))

    def fail(_site: str) -> None:
        raise psycopg.OperationalError

    with monkeypatch.context() as patched:
        patched.setattr("bulkgrpc.faults.reach", fail)
        with pytest.raises(RowsFailed):
            write_chunk(connection, TOPIC, prepared, worker.writer)
    assert remembered(connection) == 0
    write_chunk(connection, TOPIC, prepared, worker.writer)
    with pytest.raises(NotNext):
        write_chunk(connection, TOPIC, prepared, worker.writer)
    assert counts(connection, "acme/a") == (5, 5, 0, 0, 0)


def test_a_record_is_forgotten_when_the_window_is_over_and_not_before(worker: Worker, connection: Connection) -> None:
    records = readings(0, 10)
    worker.write(("acme/a", records))
    connection.execute("TRUNCATE remembered_ignore")
    let_pass(connection, 3599)
    worker.write(("acme/b", [*records, *readings(20, 21)]))
    assert counts(connection, "acme/b") == (11, 1, 10, 0, 0)
    let_pass(connection, 2)
    worker.write(("acme/c", [*records, *readings(20, 21)]))
    assert counts(connection, "acme/c") == (11, 10, 1, 0, 0)
    worker.write(("acme/d", [*records, *readings(20, 21)]))
    assert counts(connection, "acme/d") == (11, 0, 11, 0, 0)


def test_generations_rotate_once_the_previous_one_has_expired_and_young_hashes_stay_known(
    worker: Worker, connection: Connection
) -> None:
    old, young = readings(0, 5), readings(10, 15)
    worker.write(("acme/a", old))
    assert dedupe.rotate(connection) == 0
    let_pass(connection, 3000)
    worker.write(("acme/b", young))
    let_pass(connection, 601)
    assert dedupe.rotate(connection) == 3
    assert remembered(connection) == 10
    connection.execute("TRUNCATE remembered_ignore")
    for _ in range(2):
        worker.write(("acme/c", [*old, *young]))
    assert counts(connection, "acme/c") == (20, 5, 15, 0, 0)
    let_pass(connection, 3601)
    assert dedupe.rotate(connection) == 3
    assert remembered(connection) == 5
    assert dedupe.rotate(connection) == 0


def test_rotation_waits_briefly_for_a_writer_and_loses_none(
    worker: Worker, database: str, connection: Connection
) -> None:
    let_pass(connection, 3601)
    with connect(database, "other") as other, connection.transaction():
        dedupe.lock(connection, "remembered_ignore")
        assert dedupe.rotate(other) == 2
    assert dedupe.rotate(connection) == 1


def test_making_a_filter_waits_for_no_writer(worker: Worker, database: str, connection: Connection) -> None:
    worker.write(("acme/a", readings(0, 10)))
    let_pass(connection, 3600)
    assert dedupe.rotate(connection) == len(POLICIES)
    with connect(database, "tests-other") as own, own.transaction():
        dedupe.lock(own, "remembered_ignore")
        connection.execute("SET lock_timeout = '1s'")
        assert make_filters(connection) == 1


@pytest.mark.parametrize("policy", POLICIES)
def test_an_atomic_job_is_deduped_when_it_is_applied(
    worker: Worker, connection: Connection, policy: ConflictPolicy
) -> None:
    dataset = f"remembered_{policy}"
    records = readings(0, 10)
    worker.write(("acme/atomic", [*records, records[0]]), dataset=dataset, options=ATOMIC)
    worker.write(("acme/atomic", records[:2]), dataset=dataset, options=ATOMIC)
    assert remembered(connection, dataset) == 0
    worker.write(("acme/plain", records[3:6]), dataset=dataset)
    assert counts(connection, "acme/plain") == (3, 3, 0, 0, 0)
    worker.write(("acme/atomic", None), dataset=dataset, options=ATOMIC)
    apply_tasks(connection)
    assert counts(connection, "acme/atomic") == (13, 7, 6, 0, 0)
    worker.write(("acme/after", records), dataset=dataset)
    assert counts(connection, "acme/after") == (10, 0, 10, 0, 0)
    assert count(connection, dataset) == remembered(connection, dataset) == 10


def test_an_atomic_job_that_fails_leaves_nothing_known(worker: Worker, connection: Connection) -> None:
    dataset = "remembered_reject"
    worker.write(("acme/plain", readings(0, 1)), dataset=dataset)
    records = [*readings(0, 1, value=0.5), *readings(1, 5)]
    worker.write(("acme/atomic", records), ("acme/atomic", None), dataset=dataset, options=ATOMIC)
    apply_tasks(connection)
    assert counts(connection, "acme/atomic") == (5, 0, 0, 0, 5)
    worker.write(("acme/again", records[1:]), dataset=dataset)
    assert counts(connection, "acme/again") == (4, 4, 0, 0, 0)


def test_after_known_records_the_next_chunks_are_looked_up_and_then_added_straight_again(
    worker: Worker, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: list[int] = []
    known = dedupe.known

    def count_them(*arguments: object) -> object:
        looked.append(1)
        return known(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(dedupe, "known", count_them)
    per_chunk = []
    for number in range(LOOKUP_CHUNKS + 3):
        looked.clear()
        worker.write(("acme/a", readings(max(number - 1, 0), max(number, 1))))
        per_chunk.append(len(looked))
    assert per_chunk == [0, 1, *[1] * LOOKUP_CHUNKS, 0]
    assert counts(connection, "acme/a") == (LOOKUP_CHUNKS + 3, LOOKUP_CHUNKS + 2, 1, 0, 0)


def test_a_filter_spares_new_records_the_look_up_and_finds_the_known(
    worker: Worker, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    known = dedupe.known

    def note(own: Connection, table: sql.Identifier, since: datetime, hashes: HashArray) -> object:
        asked.append(len(hashes) // 16)
        return known(own, table, since, hashes)

    monkeypatch.setattr(dedupe, "known", note)
    monkeypatch.setattr(dedupe, "PAGES_PER_READ", 2)
    worker.write(("acme/old", readings(0, 1000)))
    assert make_filters(connection) == 0
    for start in (1000, 5000):
        let_pass(connection, 3000)
        worker.write(("acme/young", readings(start, start + 1000)))
        let_pass(connection, 601)
        assert dedupe.rotate(connection) == 3
        asked.clear()
        worker.write(("acme/a", readings(start + 2000, start + 2100)))
        assert asked == [100]
        assert make_filters(connection) == 1
        assert make_filters(connection) == 0
        worker.write(("acme/b", readings(start + 2100, start + 3100)))
        assert sum(asked) < 160
        young = readings(start + 500, start + 510)
        worker.write((f"acme/known{start}", [*young, *readings(start + 3500, start + 3501)]))
        assert counts(connection, f"acme/known{start}") == (11, 1, 10, 0, 0)


def test_workers_that_write_the_same_records_at_once_write_each_once(
    worker: Worker, database: str, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    # No primary key, which the check of the table does not see: nothing but the hashes keeps a record from being there
    # twice.
    connection.execute("ALTER TABLE remembered_ignore DROP CONSTRAINT remembered_ignore_pkey")
    monkeypatch.setattr(TableWriter, "check", lambda *_, **__: Fit((), (), row_triggers=False, triggers=False))
    chunks = 12
    barrier = threading.Barrier(3)

    def work(partition: int) -> None:
        with connect(database, f"tests-{partition}") as own:
            mine = Worker(own, partition)
            for turn in range(chunks):
                order = 1 if partition else -1
                records = readings(turn * 40, turn * 40 + 60)[::order]
                prepared = mine.chunk((f"acme/p{partition}", records[:30]), (f"acme/p{partition}", records[30:]))
                barrier.wait(30)
                write_chunk(own, TOPIC, prepared, mine.writer)

    def change() -> None:
        with connect(database, "tests-housekeeper") as own:
            for turn in range(chunks):
                barrier.wait(30)
                if turn == chunks // 2:
                    own.execute("UPDATE bulk.dedupe SET rotate_time = rotate_time - interval '1 hour'")
                    while "remembered_ignore" in due(own):
                        dedupe.rotate(own)

    with ThreadPoolExecutor(3) as threads:
        jobs: list[Callable[[], None]] = [lambda: work(1), lambda: work(2), change]
        for done in [threads.submit(job) for job in jobs]:
            done.result(60)
    distinct = 40 * chunks + 20
    row = connection.execute("SELECT count(*), count(DISTINCT value) FROM remembered_ignore").fetchone()
    assert row == (distinct, distinct)
    first, second = counts(connection, "acme/p1"), counts(connection, "acme/p2")
    assert first[0] == second[0] == 60 * chunks
    assert first[1] + second[1] == distinct
    assert connection.execute(
        "SELECT current_table FROM bulk.dedupe WHERE dataset = 'remembered_ignore'"
    ).fetchone() == (1,)


REFUSED = 7.0
POOL = [examples.reading(f"S{key}", key, value) for key in range(1, 5) for value in (1.0, 2.0)]
BAD = examples.reading("S9", 9, REFUSED)
RECORDS = st.sampled_from([*POOL, BAD, b"\xff"])
BATCHES = st.lists(RECORDS, min_size=1, max_size=8)
JOBS = st.sampled_from(["acme/a", "acme/b", "other/a"])
CHUNKS = st.lists(st.lists(st.tuples(JOBS, BATCHES), min_size=1, max_size=3), min_size=1, max_size=5)


@dataclass(slots=True)
class Oracle:
    """What becomes of records one by one: accepted, written, duplicate, rejected, expired of each job."""

    policy: ConflictPolicy
    known: set[tuple[str, bytes]] = field(default_factory=set)
    table: dict[tuple[str, bytes], bytes] = field(default_factory=dict)
    counts: dict[str, list[int]] = field(default_factory=dict)

    def apply(self, job: str, record: bytes) -> None:
        tenant = job.split("/", maxsplit=1)[0]
        done = self.counts.setdefault(job, [0] * 5)
        done[0] += 1
        key = (tenant, record[:4] + record[-4:])
        if (tenant, record) in self.known:
            done[2] += 1
        elif record in (BAD, b"\xff") or (self.policy == "reject" and key in self.table):
            done[3] += 1
        else:
            self.known.add((tenant, record))
            there = key in self.table
            done[2 if there and self.policy == "ignore" else 1] += 1
            if not there or self.policy == "update":
                self.table[key] = record


@pytest.mark.parametrize("policy", POLICIES)
@given(chunks=CHUNKS)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_counts_and_rows_are_those_of_an_oracle_that_takes_one_record_at_a_time(
    worker: Worker, connection: Connection, policy: ConflictPolicy, chunks: list[list[tuple[str, list[bytes]]]]
) -> None:
    dataset, oracle = f"remembered_{policy}", Oracle(policy)
    check = sql.SQL("ALTER TABLE {} DROP CONSTRAINT IF EXISTS refused, ADD CONSTRAINT refused CHECK (value <> {})")
    connection.execute(check.format(sql.Identifier(dataset), sql.Literal(REFUSED)))
    # Each example has tenants and a partition of its own.
    number = next(EXAMPLES)
    mine = Worker(connection, partition=number)
    for parts in chunks:
        own = [(f"{number}-{job}", records) for job, records in parts]
        mine.write(*own, dataset=dataset)
        for job, records in own:
            for record in records:
                oracle.apply(job, record)
    for job, expected in oracle.counts.items():
        found = counts(connection, job)
        assert list(found) == expected
        assert found[0] == sum(found[1:])
    query = sql.SQL("SELECT value FROM {} WHERE starts_with(tenant, %s) ORDER BY 1").format(sql.Identifier(dataset))
    expected_values = sorted(float(np.frombuffer(record[5:13])[0]) for record in oracle.table.values())
    assert [value for (value,) in connection.execute(query, [f"{number}-"])] == expected_values


@pytest.mark.parametrize("known", [False, True], ids=["new", "known"])
def test_python_does_not_work_per_record(worker: Worker, connection: Connection, known: bool) -> None:
    def opcodes(start: int, stop: int) -> int:
        prepared = worker.chunk((f"acme/{start}", readings(start, stop)), (f"acme/{start}", readings(start, stop)))
        rows = prepared.groups[0].rows
        written = []

        def write() -> None:
            with connection.transaction(force_rollback=not known):
                written.append(int(worker.writer.write(connection, rows, rows.payload).written.sum()))

        executed, _ = cost(write)
        assert written == [stop - start, 0 if known else stop - start]
        return executed

    few, many = opcodes(0, 500), opcodes(1000, 11_000)
    assert many <= few * OPCODES_RATIO_MAX


def test_the_binary_form_of_an_array_is_postgresqls(connection: Connection) -> None:
    hashes = bytes(range(48))
    found = connection.execute("SELECT %s, pg_typeof(%s)::text", [HashArray(hashes), HashArray(hashes)]).fetchone()
    assert found is not None
    assert (b"".join(value.bytes for value in found[0]), found[1]) == (hashes, "uuid[]")
    assert connection.execute("SELECT cardinality(%s)", [HashArray()]).fetchone() == (0,)


async def test_a_job_submitted_again_under_another_key_is_all_duplicates(client: AsyncBulkClient) -> None:
    dataset = examples.remembered()
    await client.register_dataset(dataset.descriptors, dataset.message_type)
    batches = [examples.batch_of(readings(start, start + 50)) for start in range(0, 200, 50)]
    for duplicate in (0, 200):
        for options in (library.JobOptions(), library.JobOptions(atomic=True)):
            handle = await client.submit(dataset.name, batches[:-1] if options.atomic else batches, options=options)
            job = await handle.wait()
            expected = 150 if options.atomic else duplicate
            assert (job.state.name, job.counts.duplicate) == ("SUCCEEDED", expected)
            assert job.counts.accepted == job.counts.written + job.counts.duplicate


async def test_a_dataset_that_was_deleted_is_forgotten(client: AsyncBulkClient, parts: Parts) -> None:
    dataset = examples.remembered("reject")
    for version in (1, 2):
        assert (await client.register_dataset(dataset.descriptors, dataset.message_type)).version == version
        job = await (await client.submit(dataset.name, [examples.batch_of(readings(0, 5))])).wait()
        assert (job.counts.written, job.counts.duplicate) == (5, 0)
        await client.delete_dataset(dataset.name, drop_table=True)
        assert parts.rows("SELECT count(*) FROM bulk.dedupe WHERE dataset = %s", dataset.name) == [(0,)]
