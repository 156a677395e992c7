"""Datasets without a key: every record becomes a row, once, by every way of writing; the oracle is a list."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from psycopg_pool import AsyncConnectionPool

from bulkgrpc import limits
from bulkgrpc.client.model import dataset_of
from bulkgrpc.datasets.codec import BatchCodec
from bulkgrpc.datasets.decoding import Payload
from bulkgrpc.datasets.rows import Rows, to_rows
from bulkgrpc.model import JobOptions, JobState
from bulkgrpc.postgres import ledger
from bulkgrpc.postgres.catalog import Catalog
from bulkgrpc.postgres.transaction import write_chunk
from bulkgrpc.postgres.writers import staging
from bulkgrpc.postgres.writers.table import TableWriter
from bulkgrpc.rejections import Integers
from bulkgrpc.server.grpc.conversion import to_dataset
from tests.integration.test_skipping import SKIPPING, counts
from tests.integration.test_transaction import TOPIC, batch, chunk, job_row, seal
from tests.support import examples
from tests.support.database import Connection, count, register
from tests.support.tasks import apply_tasks

CODECS = {name: BatchCodec(examples.appended(name)) for name in ("Appended", "AppendedOnce", "AppendedByDay")}
TABLE = "sensor_readings"
ATOMIC = JobOptions(atomic=True)
SETTINGS = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
OBSTACLES = {
    "none": "",
    "constraint": "ALTER TABLE {table} ADD CHECK (value <> 3)",
    "unique index": "CREATE UNIQUE INDEX ON {table} (value, sampled_at) WHERE value = 3",
    "trigger that raises": (
        "CREATE FUNCTION raises() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN IF new.value = 3 THEN RAISE 'three'; "
        "END IF; RETURN new; END $$; "
        "CREATE TRIGGER raises AFTER INSERT ON {table} FOR EACH ROW EXECUTE FUNCTION raises()"
    ),
    "trigger that skips": (
        "CREATE FUNCTION skips() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN IF new.value = 3 THEN RETURN NULL; "
        "END IF; RETURN new; END $$; "
        "CREATE TRIGGER skips BEFORE INSERT ON {table} FOR EACH ROW EXECUTE FUNCTION skips()"
    ),
}


@pytest.fixture
def epoch(connection: Connection, monkeypatch: pytest.MonkeyPatch) -> int:
    register(connection, examples.appended())
    monkeypatch.setattr("tests.integration.test_transaction.CODEC", CODECS["Appended"])
    return ledger.acquire(connection, TOPIC, [0])[0].owner_epoch


def _rows(codec: BatchCodec, batches: list[list[int]]) -> Rows:
    records = [[examples.reading(f"S{value % 2}", value, float(value)) for value in values] for values in batches]
    return to_rows(codec, [Payload("acme", len(batch), examples.batch_of(batch)) for batch in records])


def _values(connection: Connection, table: str) -> list[int]:
    return [int(value) for (value,) in connection.execute(f"SELECT value FROM {table} ORDER BY ctid".encode())]


def _counted(found: Integers, batches: list[list[int]]) -> list[int]:
    """Counts by batch: a writer leaves out zeros at the end."""
    return [*found.tolist(), *[0] * len(batches)][: len(batches)]


@contextmanager
def _undone(connection: Connection) -> Iterator[None]:
    with connection.transaction(force_rollback=True):
        yield


def test_the_table_has_no_key_and_a_brin_index_of_the_time(connection: Connection, epoch: int) -> None:
    found = [row[0] for row in connection.execute("SELECT indexdef FROM pg_indexes WHERE tablename = %s", [TABLE])]
    (definition,) = found
    assert "USING brin (sampled_at) WITH (autosummarize='on')" in definition


@SETTINGS
@given(
    obstacle=st.sampled_from(sorted(OBSTACLES)),
    name=st.sampled_from(["Appended", "AppendedOnce", "AppendedByDay"]),
    chunks=st.lists(
        st.lists(st.lists(st.integers(0, 5), max_size=6), min_size=1, max_size=3).filter(any),
        min_size=1,
        max_size=4,
    ),
)
def test_a_history_of_chunks_leaves_what_the_model_has(
    connection: Connection, obstacle: str, name: str, chunks: list[list[list[int]]]
) -> None:
    """A list is the model: what is sent is appended, unless the obstacle stops it or its bytes are remembered."""
    codec = CODECS[name]
    table, writer, stored, remembered = codec.dataset.name, TableWriter(), Counter[int](), set[int]()
    with _undone(connection):
        register(connection, codec.dataset)
        connection.execute(OBSTACLES[obstacle].format(table=table).encode())
        for batches in chunks:
            rows = _rows(codec, batches)
            done = writer.write(connection, rows, rows.payload)
            written, skipped, rejected = [0] * len(batches), [0] * len(batches), 0
            for number, values in enumerate(batches):
                for value in values:
                    if name == "AppendedOnce" and value in remembered:
                        continue
                    known = obstacle == "unique index" and stored[value]
                    if value == 3 and (known or obstacle in ("constraint", "trigger that raises")):
                        rejected += 1
                        continue
                    remembered.add(value)
                    if value == 3 and obstacle == "trigger that skips":
                        skipped[number] += 1
                        continue
                    stored[value] += 1
                    written[number] += 1
            assert _counted(done.written, batches) == written
            assert _counted(done.skipped, batches) == skipped
            assert len(done.rejected) == rejected
            assert Counter(_values(connection, table)) == stored


def test_rows_are_in_the_order_in_which_they_were_sent(connection: Connection, epoch: int) -> None:
    rows = _rows(CODECS["Appended"], [[5, 1, 5], [4, 2]])
    with connection.transaction():
        TableWriter().write(connection, rows, rows.payload)
    assert _values(connection, TABLE) == [5, 1, 5, 4, 2]


def test_rows_without_a_key_are_never_compared_by_key() -> None:
    with pytest.raises(ValueError, match="has no key"):
        staging.first_of_equal_keys(_rows(CODECS["Appended"], [[1, 1]]))


def test_batches_that_are_repeated_are_written_once(connection: Connection, epoch: int) -> None:
    writer = TableWriter()
    write_chunk(connection, TOPIC, chunk(epoch, 0, batch(0, 0, 10), batch(0, 0, 10), batch(1, 0, 10)), writer)
    write_chunk(connection, TOPIC, chunk(epoch, 3, batch(1, 0, 10), batch(0, 0, 10), seal(2)), writer)
    assert job_row(connection) == (JobState.SUCCEEDED, 20, 20, 0, 0, 0)
    assert count(connection, TABLE) == 20


def test_the_same_records_under_another_key_are_other_records(connection: Connection, epoch: int) -> None:
    write_chunk(connection, TOPIC, chunk(epoch, 0, batch(0, 0, 5, job="a"), batch(0, 0, 5, job="b")), TableWriter())
    assert (counts(connection, "a"), counts(connection, "b")) == ((5, 5, 0, 0, 0, 0),) * 2
    assert count(connection, TABLE) == 10


@pytest.mark.parametrize("slice_rows", [limits.TASK_SLICE_ROWS, 7], ids=["one statement", "slices"])
@pytest.mark.parametrize("skips", [False, True], ids=["plain", "a trigger skips"])
def test_an_atomic_job_appends_all_its_rows(
    connection: Connection, epoch: int, monkeypatch: pytest.MonkeyPatch, slice_rows: int, skips: bool
) -> None:
    monkeypatch.setattr(limits, "TASK_SLICE_ROWS", slice_rows)
    if skips:
        connection.execute(SKIPPING.format(more="").encode())
    messages = batch(0, 0, 10, options=ATOMIC), batch(1, 0, 10, options=ATOMIC), seal(2, options=ATOMIC)
    write_chunk(connection, TOPIC, chunk(epoch, 0, *messages), TableWriter())
    assert count(connection, TABLE) == 0
    apply_tasks(connection)
    skipped = 6 if skips else 0
    assert counts(connection, "k") == (20, 20 - skipped, 0, 0, 0, skipped)
    assert count(connection, TABLE) == 20 - skipped


def test_an_atomic_job_with_a_row_that_the_table_rejects_appends_nothing(connection: Connection, epoch: int) -> None:
    connection.execute("CREATE UNIQUE INDEX ON sensor_readings (value)")
    messages = batch(0, 0, 10, options=ATOMIC), batch(1, 9, 10, options=ATOMIC), seal(2, options=ATOMIC)
    write_chunk(connection, TOPIC, chunk(epoch, 0, *messages), TableWriter())
    apply_tasks(connection)
    row = connection.execute("SELECT state, failure_reason, expired FROM bulk.jobs").fetchone()
    assert row is not None
    assert (row[0], row[2]) == (JobState.FAILED, 20)
    assert "duplicate key value violates unique constraint" in row[1]
    assert count(connection, TABLE) == 0


async def test_a_dataset_without_a_key_is_registered_deleted_and_registered_again(database: str) -> None:
    dataset = examples.appended("AppendedByDay")
    async with AsyncConnectionPool(database, min_size=1, open=False, kwargs={"autocommit": True}) as pool:
        catalog = Catalog(pool)
        first = await catalog.register(dataset)
        assert (await catalog.register(dataset)).dataset.version == 1
        shown = dataset_of(to_dataset(first.dataset, descriptors=False))
        assert (shown.conflict_policy, shown.primary_key) == ("append", ())
        await catalog.delete(dataset.name, drop_table=False)
        again = await catalog.register(dataset)
    assert (again.dataset.version, again.dataset.primary_key) == (2, ())
