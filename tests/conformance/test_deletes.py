"""Records that delete rows, by every way of writing; the oracle is a dictionary."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bulkgrpc import limits
from bulkgrpc.cli.console import write_options
from bulkgrpc.client.model import dataset_of
from bulkgrpc.datasets.codec import BatchCodec
from bulkgrpc.datasets.decoding import Payload
from bulkgrpc.datasets.operations import Operation
from bulkgrpc.datasets.rows import Rows, to_rows
from bulkgrpc.datasets.table_fit import TableMisfit
from bulkgrpc.model import JobOptions, JobState, Message, digest_of
from bulkgrpc.postgres import ledger
from bulkgrpc.postgres.transaction import write_chunk
from bulkgrpc.postgres.writers.table import TableWriter
from bulkgrpc.server.grpc.conversion import to_dataset
from tests.integration.test_skipping import counts
from tests.integration.test_transaction import TOPIC, chunk, job_row, message, seal
from tests.support import examples
from tests.support.database import Connection, count, register
from tests.support.rejected import rejections
from tests.support.tasks import apply_tasks

CODEC = BatchCodec(examples.changes())
SETTINGS = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
BAD = 3
_BEFORE = (
    "CREATE FUNCTION before() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN IF new.value = 3 THEN {body}; END IF; "
    "RETURN new; END $$; "
    "CREATE TRIGGER before BEFORE INSERT OR UPDATE ON sensor_readings FOR EACH ROW EXECUTE FUNCTION before()"
)
HARMLESS = {
    "none": "",
    "trigger": _BEFORE.format(body="NULL"),
    "trigger that skips": _BEFORE.format(body="RETURN NULL"),
}
OBSTACLES = {
    **HARMLESS,
    "constraint": "ALTER TABLE sensor_readings ADD CHECK (value <> 3)",
    "trigger that raises": _BEFORE.format(body="RAISE 'three'"),
}
Changes = list[tuple[str, int | None]]
CHANGES = st.lists(st.tuples(st.sampled_from("abcd"), st.one_of(st.none(), st.integers(0, 4))), max_size=7)


@pytest.fixture
def epoch(connection: Connection, monkeypatch: pytest.MonkeyPatch) -> int:
    register(connection, examples.changes())
    monkeypatch.setattr("tests.integration.test_transaction.CODEC", CODEC)
    return ledger.acquire(connection, TOPIC, [0])[0].owner_epoch


def _payload(changes: Changes) -> bytes:
    return examples.batch_of([examples.change(*change) for change in changes])


def _rows(batches: list[Changes]) -> Rows:
    return to_rows(CODEC, [Payload("acme", len(changes), _payload(changes)) for changes in batches])


def _batch(sequence: int, changes: Changes, job: str = "k", *, atomic: bool = False) -> tuple[Message, bytes]:
    payload, options = _payload(changes), JobOptions(atomic=atomic)
    return replace(message(sequence, len(changes), job=job, options=options), digest=digest_of(payload)), payload


def _stored(connection: Connection) -> dict[str, int]:
    return {name: int(value) for name, value in connection.execute("SELECT sensor_id, value FROM sensor_readings")}


def _apply(model: dict[str, int], batches: list[Changes], obstacle: str) -> int:
    """Apply changes to the model; return how many records are not written."""
    left = 0
    for name, value in (change for changes in batches for change in changes):
        if value is None:
            model.pop(name, None)
        elif value == BAD and obstacle not in ("none", "trigger"):
            left += 1
        else:
            model[name] = value
    return left


@SETTINGS
@given(
    obstacle=st.sampled_from(sorted(OBSTACLES)),
    chunks=st.lists(st.lists(CHANGES, min_size=1, max_size=3).filter(any), min_size=1, max_size=5),
)
def test_a_history_of_chunks_leaves_what_the_model_has(
    connection: Connection, obstacle: str, chunks: list[list[Changes]]
) -> None:
    model, writer = dict[str, int](), TableWriter()
    with connection.transaction(force_rollback=True):
        register(connection, examples.changes())
        connection.execute(OBSTACLES[obstacle].encode())
        for batches in chunks:
            rows = _rows(batches)
            done = writer.write(connection, rows, rows.payload)
            left = _apply(model, batches, obstacle)
            assert _stored(connection) == model
            # A record that a later one of its chunk replaces counts as written: nothing tries to write it.
            not_written = len(done.rejected) + int(done.skipped.sum())
            assert not_written <= left
            assert int(done.written.sum()) + not_written == sum(map(len, batches))


@pytest.mark.parametrize("obstacle", HARMLESS)
@pytest.mark.parametrize("slice_rows", [limits.TASK_SLICE_ROWS, 1], ids=["one statement", "slices"])
def test_atomic_jobs_write_and_delete(
    connection: Connection, epoch: int, monkeypatch: pytest.MonkeyPatch, obstacle: str, slice_rows: int
) -> None:
    monkeypatch.setattr(limits, "TASK_SLICE_ROWS", slice_rows)
    connection.execute(OBSTACLES[obstacle].encode())
    jobs: list[list[Changes]] = [
        [[("a", 1), ("b", 2), ("c", 4), ("a", None), ("d", None)], [("a", 2), ("b", None), ("b", 3)]],
        [[("a", None), ("b", None), ("c", None), ("e", 1)], [("c", 1), ("c", None), ("c", 3)]],
        [[("e", None)], [("e", None), ("f", 3), ("g", 1), ("g", None)]],
    ]
    model, offset = dict[str, int](), 0
    for number, batches in enumerate(jobs):
        job, options = f"job {number}", JobOptions(atomic=True)
        messages = [_batch(sequence, changes, job, atomic=True) for sequence, changes in enumerate(batches)]
        messages.append(seal(len(batches), job, options))
        write_chunk(connection, TOPIC, chunk(epoch, offset, *messages), TableWriter())
        offset += len(messages)
        apply_tasks(connection)
        skipped = _apply(model, batches, obstacle)
        assert _stored(connection) == model
        sent = sum(map(len, batches))
        found = counts(connection, job)
        assert (found[0], found[1] + found[5], found[2:5]) == (sent, sent, (0, 0, 0))
        assert found[5] == (skipped if obstacle == "trigger that skips" else 0)


def test_a_delete_that_the_table_rejects_is_a_rejection_and_its_neighbours_are_applied(
    connection: Connection, epoch: int
) -> None:
    first = _batch(0, [(name, 1) for name in "abcdef"])
    write_chunk(connection, TOPIC, chunk(epoch, 0, first), TableWriter())
    connection.execute(
        "CREATE FUNCTION keeps() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN IF old.sensor_id = 'c' THEN "
        "RAISE 'c stays'; END IF; RETURN old; END $$; "
        "CREATE TRIGGER keeps AFTER DELETE ON sensor_readings FOR EACH ROW EXECUTE FUNCTION keeps()"
    )
    second = _batch(1, [("b", None), ("c", None), ("d", None), ("e", 2), ("x", None)])
    write_chunk(connection, TOPIC, chunk(epoch, 1, second, seal(2)), TableWriter())
    assert job_row(connection) == (JobState.PARTIALLY_SUCCEEDED, 11, 10, 0, 1, 0)
    assert _stored(connection) == {"a": 1, "c": 1, "e": 2, "f": 1}
    found = connection.execute("SELECT sequence, record_index, code, reason FROM bulk.rejections").fetchall()
    assert found == [(1, 1, "REJECTED_BY_TABLE", "c stays")]


@pytest.mark.parametrize(
    "last",
    [[("a", None), ("b", None), ("z", None)], [("a", None), ("b", None), ("z", None), ("c", 1), ("c", None)]],
    ids=["keys differ", "keys are repeated"],
)
@pytest.mark.parametrize("atomic", [False, True], ids=["direct", "atomic"])
def test_a_delete_that_a_trigger_skips_counts_as_skipped(
    connection: Connection, epoch: int, last: Changes, atomic: bool
) -> None:
    connection.execute(
        "CREATE FUNCTION keeps() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
        "IF old.sensor_id = 'a' THEN RETURN NULL; END IF; RETURN old; END $$; "
        "CREATE TRIGGER keeps BEFORE DELETE ON sensor_readings FOR EACH ROW EXECUTE FUNCTION keeps()"
    )
    first = [_batch(0, [("a", 1), ("b", 2)]), seal(1)]
    options = JobOptions(atomic=atomic)
    second = [_batch(0, last, "deletes", atomic=atomic), seal(1, "deletes", options)]
    write_chunk(connection, TOPIC, chunk(epoch, 0, *first, *second), TableWriter())
    apply_tasks(connection)
    assert _stored(connection) == {"a": 1}
    assert job_row(connection, "deletes") == (JobState.SUCCEEDED, len(last), len(last) - 1, 0, 0, 0)
    skipped = connection.execute("SELECT sum(skipped) FROM bulk.jobs").fetchone()
    assert skipped == (1,)


def test_a_batch_that_is_repeated_does_not_bring_a_deleted_row_back(connection: Connection, epoch: int) -> None:
    written, deleted = _batch(0, [("a", 1)]), _batch(1, [("a", None)])
    write_chunk(connection, TOPIC, chunk(epoch, 0, written, deleted), TableWriter())
    write_chunk(connection, TOPIC, chunk(epoch, 2, written, deleted, written, seal(2)), TableWriter())
    assert job_row(connection) == (JobState.SUCCEEDED, 2, 2, 0, 0, 0)
    assert count(connection, "sensor_readings") == 0


def test_a_value_of_another_unique_index_is_free_once_its_row_is_deleted(connection: Connection, epoch: int) -> None:
    connection.execute("CREATE UNIQUE INDEX ON sensor_readings (value)")
    write_chunk(connection, TOPIC, chunk(epoch, 0, _batch(0, [("b", 1)])), TableWriter())
    write_chunk(connection, TOPIC, chunk(epoch, 1, _batch(1, [("b", None), ("a", 1)])), TableWriter())
    assert _stored(connection) == {"a": 1}


def test_a_rule_on_delete_blocks_the_dataset(connection: Connection, epoch: int) -> None:
    connection.execute("CREATE RULE stays AS ON DELETE TO sensor_readings DO INSTEAD NOTHING")
    with pytest.raises(TableMisfit, match="has the rule stays"), connection.transaction():
        TableWriter().check(connection, examples.changes())
    connection.execute("DROP RULE stays ON sensor_readings")
    with connection.transaction():
        TableWriter().check(connection, examples.changes())


def test_other_tenants_rows_stay(connection: Connection, epoch: int) -> None:
    connection.execute("INSERT INTO sensor_readings VALUES ('other', 'a', 1)")
    write_chunk(connection, TOPIC, chunk(epoch, 0, _batch(0, [("a", 1), ("a", None)])), TableWriter())
    assert connection.execute("SELECT tenant FROM sensor_readings").fetchall() == [("other",)]


def test_a_dataset_shows_its_operation() -> None:
    shown = dataset_of(to_dataset(examples.changes(), descriptors=False))
    assert shown.operation == Operation("operation", "CHANGE_OPERATION_DELETE", ())
    assert [column.name for column in shown.columns] == ["tenant", "sensor_id", "value"]
    assert "operation CHANGE_OPERATION_DELETE deletes the row" in write_options(shown)


def test_of_a_record_that_deletes_only_the_key_counts() -> None:
    nothing_but_key, unknown = examples.change("a", None), b"\x0a\x01b\x20\x07"
    without_value, without_key = b"\x0a\x01c", b"\x20\x02"
    records = [nothing_but_key, unknown, without_value, without_key, examples.change("d", 1)]
    rows = to_rows(CODEC, [Payload("acme", len(records), examples.batch_of(records))])
    assert rows.table.column("sensor_id").to_pylist() == ["", "a", "d"]
    assert rows.deletes is not None
    assert rows.deletes.tolist() == [True, True, False]
    found = sorted((index, code, reason) for _, index, code, _, reason, *_ in rejections(rows))
    assert [(index, str(code)) for index, code, _ in found] == [(1, "INVALID_VALUE"), (2, "NULL_VALUE")]
    assert "CHANGE_OPERATION_WRITE" in found[0][2]
