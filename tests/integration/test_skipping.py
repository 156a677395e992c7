"""Rows that a trigger skips are counted as skipped: neither as written nor as duplicates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import psycopg
import pytest
from psycopg import sql

from bulkgrpc.datasets.codec import BatchCodec
from bulkgrpc.datasets.columns import Column
from bulkgrpc.datasets.definition import ConflictPolicy
from bulkgrpc.datasets.rows import Rows
from bulkgrpc.datasets.table_fit import Fit
from bulkgrpc.model import JobOptions, JobState, Message, digest_of
from bulkgrpc.postgres import ledger, staged
from bulkgrpc.postgres.connection import connect
from bulkgrpc.postgres.transaction import write_chunk
from bulkgrpc.postgres.writers import staging
from bulkgrpc.postgres.writers.row_errors import context_of
from bulkgrpc.postgres.writers.table import TableWriter
from bulkgrpc.rejections import Mask
from tests.integration.test_transaction import TOPIC, batch, chunk, message, seal
from tests.support import examples
from tests.support.database import Connection, count, register
from tests.support.tasks import apply_tasks

SKIPPING = """
CREATE FUNCTION skip() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  IF new.value < 1.5 THEN RETURN NULL; END IF;
  {more}
  RETURN new;
END $$;
CREATE TRIGGER skip BEFORE INSERT ON sensor_readings FOR EACH ROW EXECUTE FUNCTION skip();
"""
RAISES = "IF new.value = 2.5 THEN RAISE 'not five'; END IF;"
MOVES = "new.sensor_id := 'moved ' || new.sensor_id;"


def counts(connection: Connection, job: str) -> tuple[int, ...]:
    row = connection.execute(
        "SELECT accepted, written, duplicate, rejected, expired, skipped FROM bulk.jobs WHERE idempotency_key = %s",
        [job],
    ).fetchone()
    assert row is not None
    return row


@pytest.fixture
def epoch(connection: Connection) -> int:
    return ledger.acquire(connection, TOPIC, [0])[0].owner_epoch


def dataset_of(connection: Connection, monkeypatch: pytest.MonkeyPatch, policy: ConflictPolicy) -> None:
    dataset = replace(examples.readings(), conflict_policy=policy)
    register(connection, dataset)
    monkeypatch.setattr("tests.integration.test_transaction.CODEC", BatchCodec(dataset))
    monkeypatch.setattr("bulkgrpc.postgres.apply_task.get_dataset", lambda *_: dataset)


@pytest.mark.parametrize(
    ("policy", "more", "expected"),
    [
        # Readings 0 to 9, then 0 to 11, with half their numbers as values: three are skipped each time.
        ("ignore", "", ((10, 7, 0, 0, 0, 3), (12, 2, 7, 0, 0, 3))),
        ("reject", "", ((10, 7, 0, 0, 0, 3), (12, 2, 0, 7, 0, 3))),
        ("update", "", ((10, 7, 0, 0, 0, 3), (12, 9, 0, 0, 0, 3))),
        ("ignore", RAISES, ((10, 6, 0, 1, 0, 3), (12, 2, 6, 1, 0, 3))),
        ("reject", RAISES, ((10, 6, 0, 1, 0, 3), (12, 2, 0, 7, 0, 3))),
        ("update", RAISES, ((10, 6, 0, 1, 0, 3), (12, 8, 0, 1, 0, 3))),
        # A key that the trigger changes is not recognized in the table: it was written anyway.
        ("update", MOVES, ((10, 7, 0, 0, 0, 3), (12, 9, 0, 0, 0, 3))),
        ("ignore", MOVES, ((10, 7, 0, 0, 0, 3), (12, 2, 0, 0, 0, 10))),
        ("reject", MOVES, ((10, 7, 0, 0, 0, 3), (12, 2, 0, 0, 0, 10))),
    ],
)
def test_skipped_rows_are_counted_for_the_job_that_sent_them(
    connection: Connection,
    epoch: int,
    monkeypatch: pytest.MonkeyPatch,
    policy: ConflictPolicy,
    more: str,
    expected: tuple[tuple[int, ...], tuple[int, ...]],
) -> None:
    dataset_of(connection, monkeypatch, policy)
    connection.execute(SKIPPING.format(more=more).encode())
    writer = TableWriter()
    write_chunk(connection, TOPIC, chunk(epoch, 0, batch(0, 0, 10, job="a"), batch(0, 100, 10, job="c")), writer)
    assert counts(connection, "a") == expected[0]
    assert counts(connection, "c")[5] == 0
    write_chunk(connection, TOPIC, chunk(epoch, 2, batch(0, 0, 12, job="b"), batch(1, 200, 5, job="c")), writer)
    assert counts(connection, "b") == expected[1]
    assert counts(connection, "c") == (15, 15, 0, 0, 0, 0)


@pytest.mark.parametrize("repeated", [False, True])
@pytest.mark.parametrize("policy", ["ignore", "reject"])
def test_a_key_that_is_written_elsewhere_after_the_look_up_is_not_counted_as_skipped(
    database: str,
    connection: Connection,
    monkeypatch: pytest.MonkeyPatch,
    policy: ConflictPolicy,
    repeated: bool,
) -> None:
    dataset_of(connection, monkeypatch, policy)
    epoch = ledger.acquire(connection, TOPIC, [0])[0].owner_epoch
    connection.execute(SKIPPING.format(more="").encode())
    stage = staging.stage
    other = connect(database, "tests")

    def stage_late(ours: Connection, rows: Rows, chosen: Mask, columns: Sequence[Column] = ()) -> sql.Identifier:
        """Keys alone are staged to be looked up; before whole rows are staged, another session writes reading 8."""
        if not columns and ours is connection:
            other.execute(
                "INSERT INTO sensor_readings (tenant, sensor_id, value, sampled_at) VALUES ('acme', 'S8', 99, "
                "'epoch'::timestamptz + 1700000000008000 * interval '1 us') ON CONFLICT DO NOTHING"
            )
        return stage(ours, rows, chosen, columns)

    monkeypatch.setattr(staging, "stage", stage_late)
    batches = [batch(0, 0, 10, job="a"), *([batch(0, 20, 5, job="b"), batch(1, 20, 5, job="b")] if repeated else [])]
    write_chunk(connection, TOPIC, chunk(epoch, 0, *batches), TableWriter())
    other.close()
    assert counts(connection, "a") == ((10, 6, 1, 0, 0, 3) if policy == "ignore" else (10, 6, 0, 1, 0, 3))
    assert connection.execute("SELECT value FROM sensor_readings WHERE sensor_id = 'S8'").fetchall() == [(99.0,)]


def test_of_records_with_one_key_that_are_all_skipped_none_is_a_duplicate(
    connection: Connection, epoch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset_of(connection, monkeypatch, "reject")
    connection.execute(SKIPPING.format(more="").encode())
    write_chunk(connection, TOPIC, chunk(epoch, 0, batch(0, 0, 5, job="a"), batch(1, 0, 5, job="a")), TableWriter())
    assert counts(connection, "a") == (10, 2, 0, 2, 0, 6)


NEWER = """
CREATE FUNCTION newer() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN IF new.value <= old.value THEN RETURN NULL; END IF; RETURN new; END $$;
CREATE TRIGGER newer BEFORE UPDATE ON sensor_readings FOR EACH ROW EXECUTE FUNCTION newer();
"""


def test_of_records_with_one_key_those_are_written_that_a_trigger_lets_in(
    connection: Connection, epoch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset_of(connection, monkeypatch, "update")
    connection.execute(NEWER)

    def readings(sequence: int, *values: float, job: str) -> tuple[Message, bytes]:
        payload = examples.batch_of([examples.reading("S1", 5, value) for value in values])
        return replace(message(sequence, len(values), job=job), digest=digest_of(payload)), payload

    writer = TableWriter()
    write_chunk(connection, TOPIC, chunk(epoch, 0, readings(0, 7, job="a")), writer)
    write_chunk(connection, TOPIC, chunk(epoch, 1, readings(0, 10, 5, job="b")), writer)
    assert connection.execute("SELECT value FROM sensor_readings").fetchall() == [(10.0,)]
    assert counts(connection, "b") == (2, 1, 0, 0, 0, 1)


@pytest.mark.parametrize("policy", ["ignore", "update", "reject"])
def test_an_atomic_job_counts_what_a_trigger_skips(
    connection: Connection, epoch: int, monkeypatch: pytest.MonkeyPatch, policy: ConflictPolicy
) -> None:
    dataset_of(connection, monkeypatch, policy)
    connection.execute(SKIPPING.format(more="").encode())
    options = JobOptions(atomic=True)
    messages = batch(0, 0, 10, options=options), seal(1, options=options)
    write_chunk(connection, TOPIC, chunk(epoch, 0, *messages), TableWriter())
    apply_tasks(connection)
    assert counts(connection, "k") == (10, 7, 0, 0, 0, 3)
    assert count(connection, "sensor_readings") == 7
    row = connection.execute("SELECT state FROM bulk.jobs").fetchone()
    assert row == (JobState.SUCCEEDED,)


@pytest.mark.parametrize("atomic", [False, True])
@pytest.mark.parametrize(
    ("policy", "values", "expected"),
    [
        # The value that is stored, then counts. The trigger skips 1: which records it skips decides about others.
        ("ignore", (1, 2, 3, 9), (2, 5, 1, 2, 0, 0, 2)),
        ("update", (1, 2, 3, 9), (9, 5, 3, 0, 0, 0, 2)),
        ("update", (9, 3, 2, 1), (2, 5, 3, 0, 0, 0, 2)),
        ("reject", (1, 1, 1, 9), (9, 5, 1, 0, 0, 0, 4)),
    ],
)
def test_of_records_with_one_key_each_is_tried(
    connection: Connection,
    monkeypatch: pytest.MonkeyPatch,
    policy: ConflictPolicy,
    values: Sequence[float],
    expected: tuple[int, ...],
    atomic: bool,
) -> None:
    dataset_of(connection, monkeypatch, policy)
    epoch = ledger.acquire(connection, TOPIC, [0])[0].owner_epoch
    connection.execute(SKIPPING.format(more="").encode())
    options = JobOptions(atomic=atomic)
    records = [*(examples.reading("S1", 5, value) for value in values), examples.reading("S2", 5, 1)]
    payload = examples.batch_of(records)
    whole = replace(message(0, len(records), options=options), digest=digest_of(payload)), payload
    write_chunk(connection, TOPIC, chunk(epoch, 0, whole, seal(1, options=options)), TableWriter())
    apply_tasks(connection)
    stored, *counted = expected
    assert counts(connection, "k") == tuple(counted)
    assert connection.execute("SELECT value FROM sensor_readings").fetchall() == [(stored,)]
    assert connection.execute("SELECT state FROM bulk.jobs").fetchone() == (JobState.SUCCEEDED,)


def test_an_atomic_job_fails_if_a_key_occurs_twice_although_a_trigger_skips_others(
    connection: Connection, epoch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset_of(connection, monkeypatch, "reject")
    connection.execute(SKIPPING.format(more="").encode())
    options = JobOptions(atomic=True)
    payload = examples.batch_of([examples.reading("S1", 5, value) for value in (1, 2, 3)])
    whole = replace(message(0, 3, options=options), digest=digest_of(payload)), payload
    write_chunk(connection, TOPIC, chunk(epoch, 0, whole, seal(1, options=options)), TableWriter())
    apply_tasks(connection)
    assert counts(connection, "k") == (3, 0, 0, 0, 3, 0)
    assert count(connection, "sensor_readings") == 0


def test_an_atomic_job_tries_an_earlier_record_if_a_trigger_skips_the_last(
    connection: Connection, epoch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset_of(connection, monkeypatch, "update")
    connection.execute(NEWER)
    options = JobOptions(atomic=True)
    payload = examples.batch_of([examples.reading("S1", 5, value) for value in (7, 10, 5)])
    whole = replace(message(0, 3, options=options), digest=digest_of(payload)), payload
    write_chunk(connection, TOPIC, chunk(epoch, 0, whole, seal(1, options=options)), TableWriter())
    apply_tasks(connection)
    assert connection.execute("SELECT value FROM sensor_readings").fetchall() == [(10.0,)]
    assert counts(connection, "k") == (3, 2, 0, 0, 0, 1)


def test_an_error_of_the_function_that_applies_atomic_jobs_is_not_taken_for_one_of_the_tables_functions(
    connection: Connection, epoch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset_of(connection, monkeypatch, "update")
    payload = examples.batch_of([examples.reading("S1", 5, 1)])
    options = JobOptions(atomic=True)
    whole = replace(message(0, 1, options=options), digest=digest_of(payload)), payload
    write_chunk(connection, TOPIC, chunk(epoch, 0, whole), TableWriter())
    connection.execute("ALTER TABLE sensor_readings RENAME TO elsewhere")
    dataset = replace(examples.readings(), conflict_policy="update")
    fit = Fit((), tuple(column.type for column in dataset.columns), row_triggers=True, triggers=True)
    with pytest.raises(psycopg.errors.UndefinedTable) as raised:
        staged.apply_each(connection, dataset, fit, whole[0].spec.key.job_id)
    assert raised.value.diag.context
    assert context_of(raised.value) == ""


def test_a_trigger_that_skips_every_row_leaves_a_job_that_succeeded(
    connection: Connection, epoch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset_of(connection, monkeypatch, "ignore")
    connection.execute(SKIPPING.format(more="").encode())
    write_chunk(connection, TOPIC, chunk(epoch, 0, batch(0, 0, 3), seal(1)), TableWriter())
    assert counts(connection, "k") == (3, 0, 0, 0, 0, 3)
    assert connection.execute("SELECT state FROM bulk.jobs").fetchone() == (JobState.SUCCEEDED,)


@pytest.mark.parametrize("policy", ["ignore", "update", "reject"])
def test_new_rows_of_which_a_trigger_skips_none_cost_one_copy(
    connection: Connection, epoch: int, monkeypatch: pytest.MonkeyPatch, policy: ConflictPolicy
) -> None:
    dataset_of(connection, monkeypatch, policy)
    connection.execute(SKIPPING.format(more="").encode())

    def stage(*_: object) -> None:
        raise AssertionError("the rows are written a second time")

    monkeypatch.setattr(staging, "stage", stage)
    write_chunk(connection, TOPIC, chunk(epoch, 0, batch(0, 10, 20), seal(1)), TableWriter())
    assert counts(connection, "k") == (20, 20, 0, 0, 0, 0)
