"""A trigger of one table changes the session, or leaves something for COMMIT: no other dataset notices."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from bulkgrpc.consume.assembly import Chunk, Received, Span
from bulkgrpc.consume.ports import Applied
from bulkgrpc.datasets.codec import BatchCodec
from bulkgrpc.model import JobKey, JobOptions, JobSpec, Kind, Message, digest_of
from bulkgrpc.postgres import ledger
from bulkgrpc.postgres.worker_ports import PostgresChunkWriter
from tests.support import examples
from tests.support.database import Connection, count, register
from tests.support.tasks import apply_tasks
from tests.support.worker_ports import FakeDeadLetters, FakeRegistry
from workers.writer import WriterThread

TOPIC = "records"
HOSTILE, INNOCENT = examples.readings(), examples.remembered("ignore")
ROWS, CHUNKS = 10, 4
WITHIN_S = 30.0
TRIGGER = """
CREATE FUNCTION hostile() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {body} RETURN new; END $$;
CREATE TRIGGER hostile AFTER INSERT OR UPDATE ON sensor_readings FOR EACH {each} EXECUTE FUNCTION hostile();
"""
NOBODY = "DO $$ BEGIN CREATE ROLE hostile_nobody; EXCEPTION WHEN duplicate_object THEN NULL; END $$;"
AUDIT = "CREATE TABLE audit (id integer PRIMARY KEY DEFERRABLE INITIALLY DEFERRED); INSERT INTO audit VALUES (1);"
CLOSED = """
CREATE TABLE books (id integer);
CREATE FUNCTION closed() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'the books are closed'; END $$;
CREATE CONSTRAINT TRIGGER closed AFTER INSERT ON books DEFERRABLE INITIALLY DEFERRED
  FOR EACH ROW EXECUTE FUNCTION closed();
"""
SHADOW = """
CREATE FUNCTION public.clock_timestamp() RETURNS timestamptz LANGUAGE sql RETURN NULL::timestamptz;
"""
BODIES = {
    "isolation level": ("", "SET default_transaction_isolation = 'serializable';"),
    "encoding": ("", "SET client_encoding = 'LATIN1';"),
    "role": (NOBODY, "SET ROLE hostile_nobody;"),
    "role of the transaction": (NOBODY, "SET LOCAL ROLE hostile_nobody;"),
    "read-only": ("", "SET default_transaction_read_only = on;"),
    "time of statements": ("", "SET statement_timeout = 1;"),
    "time of transactions": ("", "SET transaction_timeout = 1;"),
    "idle time": ("", "SET LOCAL idle_in_transaction_session_timeout = 1;"),
    "functions of others": (SHADOW, "SET search_path = public, pg_catalog;"),
    "key at commit": (AUDIT, "INSERT INTO public.audit VALUES (1);"),
    "constraints deferred again": (AUDIT, "SET CONSTRAINTS ALL DEFERRED; INSERT INTO public.audit VALUES (1);"),
    "error at commit": (CLOSED, "INSERT INTO public.books VALUES (1);"),
    "prepared statements": ("", "DEALLOCATE ALL;"),
}


class Worker:
    """The writing thread of a worker, given chunks by the test."""

    def __init__(self, database: str, connection: Connection) -> None:
        self.postgres = PostgresChunkWriter(database, TOPIC)
        codecs = {(dataset.name, 1): BatchCodec(dataset) for dataset in (HOSTILE, INNOCENT)}
        self.stopping = threading.Event()
        self.thread = WriterThread(self.postgres, FakeRegistry(codecs), FakeDeadLetters(), self.stopping)
        self.thread.start()
        self.epoch = ledger.acquire(connection, TOPIC, [0])[0].owner_epoch
        self.offset = 0
        self.sequences = {HOSTILE.name: 0, INNOCENT.name: 0}

    def write(self, *datasets: str) -> Applied:
        """Write a chunk with a batch for each dataset."""
        items = tuple(self._batch(name, self.offset + place) for place, name in enumerate(datasets))
        span = Span(0, self.offset, self.offset + len(items), self.epoch)
        self.offset += len(items)
        self.thread.submit(Chunk((span,), items, ROWS * len(items)))
        result = self.thread.result(WITHIN_S)
        assert result is not None, "the chunk is retried forever"
        assert isinstance(result.outcome, Applied)
        return result.outcome

    def _batch(self, name: str, offset: int) -> Received:
        sequence = self.sequences[name]
        self.sequences[name] += 1
        payload = examples.batch_of([examples.reading(f"Sé{sequence}-{n}", 1, 0.5) for n in range(ROWS)])
        spec = JobSpec(JobKey.derive("acme", name), name, name, 1, {}, JobOptions())
        message = Message(Kind.BATCH, spec, 0, sequence, ROWS, 0, datetime.now(UTC))
        return Received(0, offset, replace(message, digest=digest_of(payload)), payload)


@pytest.fixture
def worker(database: str, connection: Connection) -> Iterator[Worker]:
    for dataset in (HOSTILE, INNOCENT):
        register(connection, dataset)
    made = Worker(database, connection)
    yield made
    made.stopping.set()
    made.thread.stop(10)


@pytest.mark.parametrize("together", [False, True], ids=["in turn", "together"])
@pytest.mark.parametrize("each", ["STATEMENT", "ROW"])
@pytest.mark.parametrize("case", BODIES)
def test_what_a_trigger_does_to_the_session_stays_its_own(
    worker: Worker, connection: Connection, case: str, each: str, together: bool
) -> None:
    before, body = BODIES[case]
    connection.execute((before + TRIGGER.format(body=body, each=each)).encode())
    for _ in range(CHUNKS):
        if together:
            worker.write(HOSTILE.name, INNOCENT.name)
        else:
            worker.write(HOSTILE.name)
            assert not worker.write(INNOCENT.name).parked
    found = [name for (name,) in connection.execute(f"SELECT sensor_id FROM {INNOCENT.name}")]
    assert sorted(found) == sorted(f"Sé{chunk}-{n}" for chunk in range(CHUNKS) for n in range(ROWS))
    blocked = connection.execute("SELECT dataset FROM bulk.blocked_datasets").fetchall()
    assert blocked in ([], [(HOSTILE.name,)])
    rejected, parked = count(connection, "bulk.rejections"), count(connection, "bulk.parked")
    stored = connection.execute("SELECT sensor_id FROM sensor_readings").fetchall()
    assert all(name.startswith("Sé") for (name,) in stored)
    assert len(stored) + rejected + ROWS * parked == CHUNKS * ROWS


def test_a_trigger_that_listens_leaves_no_notifications_to_the_worker(worker: Worker, connection: Connection) -> None:
    body = "LISTEN hostile; PERFORM pg_notify('hostile', new.sensor_id);"
    connection.execute(TRIGGER.format(body=body, each="ROW").encode())
    for _ in range(CHUNKS):
        worker.write(HOSTILE.name)
    assert count(connection, "sensor_readings") == CHUNKS * ROWS
    session = worker.postgres._session.open()
    assert session.execute("SELECT count(*) FROM pg_listening_channels()").fetchone() == (0,)
    assert not session._notifies_backlog


ATOMIC = JobSpec(JobKey.derive("acme", "atomic"), "atomic", HOSTILE.name, 1, {}, JobOptions(atomic=True))


@pytest.mark.parametrize("each", ["STATEMENT", "ROW"])
@pytest.mark.parametrize("timing", ["BEFORE", "AFTER"])
@pytest.mark.parametrize(
    "case",
    [
        (AUDIT, "SET CONSTRAINTS ALL DEFERRED; INSERT INTO public.audit VALUES (1);", "audit_pkey"),
        (CLOSED, "SET CONSTRAINTS ALL DEFERRED; INSERT INTO public.books VALUES (1);", "the books are closed"),
    ],
    ids=["key", "constraint trigger"],
)
def test_an_atomic_job_fails_of_constraints_that_a_trigger_defers_again(
    worker: Worker, connection: Connection, case: tuple[str, str, str], timing: str, each: str
) -> None:
    before, body, reason = case
    connection.execute((before + TRIGGER.format(body=body, each=each).replace("AFTER", timing)).encode())
    first = worker._batch(HOSTILE.name, 0)
    batch = replace(first, message=replace(first.message, spec=ATOMIC))
    seal = Received(0, 1, Message(Kind.SEAL, ATOMIC, 0, 1, 0, ROWS, datetime.now(UTC)), b"")
    worker.thread.submit(Chunk((Span(0, 0, 2, worker.epoch),), (batch, seal), ROWS))
    result = worker.thread.result(WITHIN_S)
    assert result is not None
    assert isinstance(result.outcome, Applied)
    assert not result.outcome.parked
    apply_tasks(connection)
    assert count(connection, "bulk.blocked_datasets") == 0
    found = connection.execute("SELECT state, written, failure_reason FROM bulk.jobs").fetchall()
    assert [row[:2] for row in found] == [(5, 0)]
    assert "the table refuses the job" in found[0][2]
    assert reason in found[0][2]
    assert count(connection, "sensor_readings") == 0
