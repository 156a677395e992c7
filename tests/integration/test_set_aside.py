"""Messages that cannot be read: what follows them in their job is parked behind them, the seal included."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from psycopg_pool import AsyncConnectionPool

from bulkgrpc.consume.decode import prepare
from bulkgrpc.consume.express import LeftToMainPath
from bulkgrpc.consume.failures import BlockCause, Failure, Where
from bulkgrpc.consume.ports import Applied
from bulkgrpc.datasets.codec import BatchCodec
from bulkgrpc.datasets.decoding import Payload
from bulkgrpc.datasets.meaning import digest_of_schema
from bulkgrpc.datasets.rows import Rows, to_rows
from bulkgrpc.kafka.message import MalformedMessage, message_of, to_headers
from bulkgrpc.model import BlockedBy, Job, JobKey, JobOptions, JobState, Message
from bulkgrpc.postgres.jobs import JobStore
from bulkgrpc.postgres.statements import family
from bulkgrpc.postgres.transaction import write_ahead
from bulkgrpc.postgres.writers.table import TableWriter
from bulkgrpc.v1.ingest_pb2 import RecordBatch
from tests.integration import test_parked
from tests.integration.test_parked import Worker, cancel
from tests.integration.test_transaction import TOPIC, batch, job_row, seal
from tests.support import examples
from tests.support.database import Connection, count
from workers.writer import NotApplied

worker = test_parked.worker
Sent = tuple[Message, bytes]


def of_version(sent: Sent, version: int = 2) -> Sent:
    message, payload = sent
    return replace(message, spec=replace(message.spec, dataset_version=version)), payload


def of_tenant(sent: Sent, tenant: str) -> Sent:
    message, payload = sent
    return replace(message, spec=replace(message.spec, key=JobKey.derive(tenant, "k"))), payload


def damaged(sent: Sent, *lost: str) -> Sent:
    """The message as a worker reads it once some of its headers are lost. A client's payload has the sequence, too."""
    message, payload = sent
    if payload:
        payload = RecordBatch(sequence=message.sequence).SerializeToString() + payload
    return message_of([pair for pair in _headers(message) if pair[0] not in lost], payload), payload


def register_version(connection: Connection, version: int = 2) -> None:
    dataset = examples.readings()
    values = {
        "dataset": dataset.name,
        "version": version,
        "message_type": dataset.message_type,
        "descriptors": dataset.descriptors,
        "schema_digest": digest_of_schema(dataset),
    }
    connection.execute(family("catalog")["add_dataset"], values)


def retry_now(connection: Connection) -> None:
    connection.execute("UPDATE bulk.blocked_jobs SET next_trial_time = 'epoch'")


async def job_of(database: str, job: str = "k") -> Job:
    async with AsyncConnectionPool(database, min_size=1, open=False, kwargs={"autocommit": True}) as pool:
        found = await JobStore(pool).get_job(JobKey.derive("acme", job))
    assert found is not None
    return found


async def seal_and_discard(database: str, reason: str = "it is lost") -> Job | None:
    async with AsyncConnectionPool(database, min_size=1, open=False, kwargs={"autocommit": True}) as pool:
        store, key = JobStore(pool), JobKey.derive("acme", "k")
        await store.seal_job(key, datetime.now(UTC))
        return await store.discard_job(key, reason)


def parked(outcome: Applied | NotApplied) -> int:
    assert isinstance(outcome, Applied)
    return outcome.parked


def rejections(connection: Connection) -> list[tuple[object, ...]]:
    return connection.execute(
        "SELECT sequence, code, count(*), bool_and(octet_length(record) > 0) FROM bulk.rejections "
        "GROUP BY 1, 2 ORDER BY 1"
    ).fetchall()


async def test_a_job_of_a_missing_version_waits_with_its_seal_and_drains_once_the_version_is_back(
    database: str, connection: Connection, worker: Worker
) -> None:
    outcome = worker.write(
        batch(0, 0, 10),
        of_version(batch(1, 10, 10)),
        of_tenant(batch(0, 500, 10), "other"),
        batch(2, 20, 10),
        seal(3),
    )
    assert parked(outcome) == 3
    assert isinstance(outcome, Applied)
    assert [job.job_id for job in outcome.blocked] == [JobKey.derive("acme", "k").job_id]
    assert worker.dead_letters.added == []
    assert count(connection, "bulk.blocked_datasets") == 0
    assert count(connection, "sensor_readings") == 20
    block = (await job_of(database)).block
    assert block is not None
    assert block.cause is BlockedBy.JOB
    assert "version 2 of dataset sensor_readings is not in the registry" in block.reason
    assert "register its message type again" in block.reason
    worker.settle()
    retry_now(connection)
    worker.settle()
    assert connection.execute("SELECT trials FROM bulk.blocked_jobs").fetchall() == [(1,)]
    assert (count(connection, "bulk.parked"), count(connection, "sensor_readings")) == (3, 20)

    register_version(connection)
    worker.settle()
    assert job_row(connection) == (JobState.SUCCEEDED, 30, 30, 0, 0, 0)
    assert (count(connection, "bulk.parked"), count(connection, "bulk.blocked_jobs")) == (0, 0)
    assert parked(worker.write(batch(0, 600, 10, job="later"))) == 0


def test_a_later_job_of_the_queue_waits_and_names_the_job_it_waits_for(connection: Connection, worker: Worker) -> None:
    worker.write(of_version(batch(0, 0, 10)), batch(0, 0, 10, job="later"))
    found = connection.execute(
        "SELECT block_cause, block_reason FROM bulk.job_block(%s, 'sensor_readings')",
        [JobKey.derive("acme", "later").job_id],
    ).fetchone()
    assert found is not None
    assert found[0] == "queue"
    assert str(JobKey.derive("acme", "k").job_id) in found[1]
    # Its dataset is not unregistered, and bounds what is parked for this tenant.
    (bound,) = connection.execute(family("blocks")["blocked"], {"message_overhead_bytes": 0}).fetchall()
    assert bound[:3] == ("sensor_readings", "acme", "job")
    assert bound[4] > 0


def test_what_is_parked_before_a_message_that_cannot_be_read_does_not_wait_for_it(
    connection: Connection, worker: Worker
) -> None:
    failure = Failure(Where.ROWS, "57014", "QueryCanceled", "too slow", dataset="sensor_readings")
    worker.parked.block("sensor_readings", BlockCause.ISOLATING, failure)
    worker.write(batch(0, 0, 10), batch(1, 10, 10), of_version(batch(2, 20, 10)), batch(3, 30, 10), seal(4))
    assert count(connection, "bulk.blocked_jobs") == 0
    worker.settle()
    assert job_row(connection)[:3] == (JobState.OPEN, 20, 20)
    assert count(connection, "bulk.blocked_jobs") == 1
    register_version(connection)
    worker.settle()
    assert job_row(connection) == (JobState.SUCCEEDED, 40, 40, 0, 0, 0)


def test_a_trial_of_a_broken_table_with_such_a_message_blocks_its_job_and_no_dataset(
    connection: Connection, worker: Worker
) -> None:
    connection.execute("ALTER TABLE sensor_readings RENAME COLUMN value TO reading")
    worker.write(batch(0, 0, 10, job="first"))
    worker.write(of_tenant(of_version(batch(0, 10, 10)), "other"))
    connection.execute("ALTER TABLE sensor_readings RENAME COLUMN reading TO value")
    worker.settle()
    assert count(connection, "bulk.blocked_datasets") == 0
    assert count(connection, "bulk.blocked_jobs") == 1
    assert job_row(connection, "first")[:3] == (JobState.OPEN, 10, 10)


def test_a_chunk_that_is_fenced_blocks_no_job(connection: Connection, worker: Worker) -> None:
    connection.execute("UPDATE bulk.offsets SET owner_epoch = owner_epoch + 1")
    assert isinstance(worker.write(of_version(batch(0, 0, 10))), NotApplied)
    assert (count(connection, "bulk.parked"), count(connection, "bulk.blocked_jobs")) == (0, 0)


def test_a_batch_that_expires_while_its_version_is_missing_is_accounted_for(
    connection: Connection, worker: Worker
) -> None:
    message, payload = of_version(batch(0, 0, 10))
    worker.write((replace(message, expires_at=datetime.now(UTC) - timedelta(seconds=1)), payload), seal(1))
    assert count(connection, "bulk.parked") == 2
    retry_now(connection)
    worker.settle()
    assert job_row(connection) == (JobState.FAILED, 10, 0, 0, 0, 10)
    assert (count(connection, "bulk.parked"), count(connection, "bulk.blocked_jobs")) == (0, 0)


def fragile(payload: bytes) -> object:
    """A decoder that does not survive a payload."""

    def decode(codec: BatchCodec, payloads: Sequence[Payload]) -> Rows:
        if any(one.data == payload for one in payloads):
            raise ValueError("the decoder does not survive this")
        return to_rows(codec, payloads)

    return decode


@pytest.mark.parametrize("kind", ["missing version", "damaged headers", "damaged seal", "undecodable"])
async def test_a_cancelled_job_with_such_a_message_is_accounted_for_and_frees_its_queue(
    database: str, connection: Connection, worker: Worker, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    bad = batch(1, 10, 10)
    monkeypatch.setattr("bulkgrpc.consume.decode.to_rows", fragile(bad[1] if kind == "undecodable" else b"none"))
    worker.write(batch(0, 0, 10))
    last = damaged(seal(2), "sequence") if kind == "damaged seal" else seal(2)
    poison = {"missing version": of_version(bad), "damaged headers": damaged(bad, "sequence")}.get(kind, bad)
    worker.write(poison, last, batch(0, 100, 10, job="later"))
    worker.settle()
    assert count(connection, "bulk.blocked_jobs") == 1
    assert count(connection, "bulk.parked") > 0
    await cancel(database, "k")
    worker.settle()
    applied = 20 if kind == "damaged seal" else 10
    assert job_row(connection) == (JobState.CANCELLED, 20, applied, 0, 0, 20 - applied)
    assert job_row(connection, "later")[:3] == (JobState.OPEN, 10, 10)
    assert (count(connection, "bulk.parked"), count(connection, "bulk.blocked_jobs")) == (0, 0)
    assert connection.execute("SELECT sealed FROM bulk.lanes ORDER BY sealed").fetchall() == [(False,), (True,)]


@pytest.mark.parametrize("atomic", [False, True])
@pytest.mark.parametrize("kind", ["missing version", "damaged headers", "undecodable"])
async def test_a_discarded_job_ends_as_failed_and_reports_what_was_not_applied(
    database: str, connection: Connection, worker: Worker, monkeypatch: pytest.MonkeyPatch, kind: str, atomic: bool
) -> None:
    options = JobOptions(atomic=atomic)
    bad = batch(1, 10, 10, options=options)
    monkeypatch.setattr("bulkgrpc.consume.decode.to_rows", fragile(bad[1] if kind == "undecodable" else b"none"))
    worker.write(batch(0, 0, 10, options=options))
    poison = {"missing version": of_version(bad), "damaged headers": damaged(bad, "sequence")}.get(kind, bad)
    worker.write(poison, batch(2, 20, 10, options=options))
    worker.settle()
    assert count(connection, "bulk.blocked_jobs") == 1
    assert await seal_and_discard(database) is not None
    # The seal arrives meanwhile: it ends the job, which has the report of every record then.
    worker.settle()
    assert job_row(connection)[:2] == (JobState.SEALED, 30)
    worker.write(batch(3, 30, 5, options=options), seal(4, options=options))
    worker.settle()
    written, expired = (0, 10) if atomic else (10, 0)
    assert job_row(connection) == (JobState.FAILED, 35, written, 0, 25, expired)
    assert rejections(connection) == [(n, "JOB_DISCARDED", 5 if n == 3 else 10, True) for n in (1, 2, 3)]
    reason = (await job_of(database)).failure_reason
    assert reason.startswith("discarded by an operator: it is lost; it was blocked: ")
    assert (count(connection, "bulk.parked"), count(connection, "bulk.blocked_jobs")) == (0, 0)
    assert count(connection, "sensor_readings") == written


@pytest.mark.parametrize("discarded", [False, True])
async def test_a_job_with_several_lanes_waits_with_its_last_seal(
    database: str, connection: Connection, worker: Worker, discarded: bool
) -> None:
    def on_lanes(sent: Sent, lane: int) -> Sent:
        message, payload = sent
        return replace(message, lane=lane, partitions=(0, 1)), payload

    sent = [on_lanes(batch(n, n * 10, 10), n % 2) for n in range(4)]
    sent[1] = of_version(sent[1])
    # Both lanes in one partition, and the batch that cannot be read before the second batch of the other lane.
    worker.write(*sent, on_lanes(seal(4), 0), on_lanes(seal(4), 1))
    assert job_row(connection)[:3] == (JobState.OPEN, 10, 10)
    assert count(connection, "bulk.parked") == 5
    if discarded:
        assert await seal_and_discard(database) is not None
    else:
        register_version(connection)
    worker.settle()
    expected = (JobState.FAILED, 40, 10, 0, 30, 0) if discarded else (JobState.SUCCEEDED, 40, 40, 0, 0, 0)
    assert job_row(connection) == expected
    assert connection.execute("SELECT sealed FROM bulk.lanes").fetchall() == [(True,), (True,)]
    assert (count(connection, "bulk.parked"), count(connection, "bulk.blocked_jobs")) == (0, 0)


async def test_a_job_is_discarded_only_while_it_is_sealed_and_blocked(
    database: str, connection: Connection, worker: Worker
) -> None:
    worker.write(of_version(batch(0, 0, 10)), seal(1))
    async with AsyncConnectionPool(database, min_size=1, open=False, kwargs={"autocommit": True}) as pool:
        await JobStore(pool).discard_job(JobKey.derive("acme", "k"), "")
    worker.settle()
    assert job_row(connection)[0] == JobState.OPEN, "its client may still send batches"
    register_version(connection)
    worker.settle()
    assert job_row(connection)[0] == JobState.SUCCEEDED
    await seal_and_discard(database)
    assert job_row(connection) == (JobState.SUCCEEDED, 10, 10, 0, 0, 0)


async def test_a_batch_with_damaged_headers_blocks_its_job_in_its_place(
    database: str, connection: Connection, worker: Worker
) -> None:
    outcome = worker.write(
        batch(0, 0, 10),
        damaged(batch(1, 10, 10), "sequence", "records"),
        batch(2, 20, 10),
        seal(3),
        of_tenant(batch(0, 500, 10), "other"),
    )
    # The ledger knows the job from its first batch on, which is in the same chunk.
    assert parked(outcome) == 3
    block = (await job_of(database)).block
    assert block is not None
    assert "damaged headers: header 'records' is missing" in block.reason
    assert worker.dead_letters.added == []
    retry_now(connection)
    worker.settle()
    assert job_row(connection)[:3] == (JobState.OPEN, 10, 10)
    assert count(connection, "bulk.parked") == 3


def test_a_damaged_message_of_an_unknown_job_is_a_dead_letter(connection: Connection, worker: Worker) -> None:
    assert parked(worker.write(damaged(batch(0, 0, 10, job="unknown"), "sequence"), batch(0, 0, 10))) == 0
    ((letter, reason),) = worker.dead_letters.added
    assert letter.offset == 0
    assert "header 'sequence' is missing" in reason
    assert "the ledger has no tenants/acme/jobs/" in reason
    assert count(connection, "bulk.blocked_jobs") == 0


@pytest.mark.parametrize("lost", ["job", "tenant", "dataset"])
def test_a_message_that_does_not_say_whose_it_is_cannot_be_attributed(lost: str) -> None:
    message, payload = batch(0, 0, 10)
    with pytest.raises(MalformedMessage, match=lost):
        damaged((message, payload), lost)


def test_an_applied_batch_with_damaged_headers_is_known(connection: Connection, worker: Worker) -> None:
    worker.write(batch(0, 0, 10), batch(1, 10, 10))
    worker.write(damaged(batch(0, 0, 10), "sequence"), seal(2))
    retry_now(connection)
    worker.settle()
    assert job_row(connection) == (JobState.SUCCEEDED, 20, 20, 0, 0, 0)


def test_the_seal_of_an_atomic_job_waits_for_its_version(connection: Connection, worker: Worker) -> None:
    options = JobOptions(atomic=True)
    worker.write(batch(0, 0, 10, options=options))
    connection.execute("UPDATE bulk.datasets SET version = 9")
    worker.write(seal(1, options=options))
    worker.settle()
    assert job_row(connection) == (JobState.SEALED, 10, 0, 0, 0, 0)
    assert connection.execute("SELECT block_cause FROM bulk.apply_tasks").fetchall() == [("job",)]
    connection.execute("UPDATE bulk.datasets SET version = 1")
    worker.settle()
    assert job_row(connection) == (JobState.SUCCEEDED, 10, 10, 0, 0, 0)


def test_the_express_path_leaves_a_tenant_with_such_a_message_to_the_main_path(
    connection: Connection, worker: Worker
) -> None:
    chunk = worker.chunk(batch(0, 0, 10), of_version(batch(1, 10, 10)))
    prepared = prepare(chunk, worker.registry.codec)
    assert list(prepared.unreadable) == [1]
    with pytest.raises(LeftToMainPath) as left:
        write_ahead(connection, TOPIC, prepared, TableWriter())
    assert left.value.tenants == {"acme"}
    assert count(connection, "bulk.jobs") == 0


def _headers(message: Message) -> list[tuple[str, bytes]]:
    return [(name, value) for name, value in to_headers(message) if isinstance(value, bytes)]
