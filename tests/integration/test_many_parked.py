# ruff: noqa: F811 — parameters are fixtures of another module
"""What operators and admission read costs about the same, however much is parked."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence

import pytest

from bulkgrpc.blocks import DatasetState
from bulkgrpc.model import BlockedBy, JobKey
from bulkgrpc.postgres import blocks
from bulkgrpc.postgres.statements import family
from tests.integration.test_blocks import NAME, Operator, operator, worker  # noqa: F401
from tests.integration.test_parked import Worker
from tests.integration.test_transaction import TOPIC, batch
from tests.support.database import Connection

POISON = uuid.UUID(int=1)
MANY = 20_000


def park_many(connection: Connection, tenant: str, job_id: uuid.UUID, messages: int = MANY) -> None:
    """Park messages of a job after those that are there, each with a payload of 100 bytes."""
    connection.execute(
        "INSERT INTO bulk.parked (topic, partition, message_offset, tenant, dataset, job_id, records, headers, "
        "payload) SELECT %s, 0, n + (SELECT coalesce(max(message_offset), 0) FROM bulk.parked), %s, %s, %s, 1, '[]', "
        "decode(repeat('00', 100), 'hex') FROM generate_series(1, %s) n",
        [TOPIC, tenant, NAME, job_id, messages],
    )


def block_job(connection: Connection, job_id: uuid.UUID) -> None:
    connection.execute(
        "INSERT INTO bulk.blocked_jobs (job_id, reason, next_trial_time) VALUES (%s, 'too slow', 'infinity')", [job_id]
    )


def blocks_read(connection: Connection, query: str, values: Sequence[object] | Mapping[str, object] = ()) -> int:
    """How many blocks of tables and indexes a query reads."""
    row = connection.execute(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {query}", values).fetchone()
    assert row is not None
    (plan,) = row[0]
    return int(plan["Plan"]["Shared Hit Blocks"] + plan["Plan"]["Shared Read Blocks"])


@pytest.mark.parametrize("statistics", [False, True])
def test_whether_a_job_is_blocked_costs_the_same_with_many_messages_of_a_blocked_job_of_another_tenant(
    connection: Connection, worker: Worker, operator: Operator, statistics: bool
) -> None:
    operator.pause()
    worker.write(batch(0, 0, 10))
    operator.resume()
    mine = JobKey.derive("acme", "k")
    park_many(connection, "other", POISON)
    block_job(connection, POISON)
    if statistics:
        connection.execute("VACUUM ANALYZE bulk.parked")
    for job_id in (mine.job_id, JobKey.derive("acme", "nothing is parked").job_id):
        query = "SELECT * FROM bulk.job_block(%s, %s)"
        assert connection.execute(query, [job_id, NAME]).fetchall() == []
        assert blocks_read(connection, query, [job_id, NAME]) < 200
    assert operator.job().block is None


def test_a_slice_of_a_queue_costs_the_same_with_many_blocked_jobs(
    connection: Connection, worker: Worker, operator: Operator
) -> None:
    """As when many jobs are of a dataset version that is missing."""
    operator.pause()
    worker.write(batch(0, 0, 10))
    operator.resume()
    connection.execute(
        "INSERT INTO bulk.blocked_jobs (job_id, reason, next_trial_time) "
        "SELECT gen_random_uuid(), 'missing', 'infinity' FROM generate_series(1, %s)",
        [MANY],
    )
    connection.execute(
        "INSERT INTO bulk.parked (topic, partition, message_offset, tenant, dataset, job_id, records, headers, "
        "payload) SELECT %s, 0, 1000000 + row_number() OVER (), 'other', %s, job_id, 0, '[]', '' "
        "FROM bulk.blocked_jobs",
        [TOPIC, NAME],
    )
    connection.execute("VACUUM ANALYZE bulk.parked")
    values = {"topic": TOPIC, "partition": 0, "tenant": "acme", "dataset": NAME}
    bounds = {"messages_max": 256, "records_max": 20_000, "bytes_max": 1 << 23}
    query = family("parked")["select_slice"].decode()
    assert len(connection.execute(query.encode(), {**values, **bounds}).fetchall()) == 1
    assert blocks_read(connection, query, {**values, **bounds}) < 200


def test_a_job_waits_for_a_blocked_job_that_has_messages_before_one_of_its_own(
    connection: Connection, worker: Worker, operator: Operator
) -> None:
    worker.write(batch(0, 0, 10, job="other"))
    operator.pause()
    worker.write(batch(0, 100, 10), batch(1, 10, 10, job="other"))
    operator.resume()
    first, other = JobKey.derive("acme", "k"), JobKey.derive("acme", "other")
    block_job(connection, other.job_id)
    assert operator.job().block is None
    worker.write(batch(1, 110, 10))
    block = operator.job().block
    assert block is not None
    assert (block.cause, block.reason) == (BlockedBy.QUEUE, f"waits for {other.name}: too slow")
    connection.execute("DELETE FROM bulk.blocked_jobs")
    block_job(connection, first.job_id)
    block = operator.job("other").block
    assert block is not None
    assert (block.cause, block.reason) == (BlockedBy.QUEUE, f"waits for {first.name}: too slow")


def test_a_dataset_is_paused_resumed_and_discarded_also_if_what_is_parked_cannot_be_counted_in_time(
    connection: Connection, worker: Worker, operator: Operator, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker.write(batch(0, 0, 10))
    park_many(connection, "acme", POISON)
    park_many(connection, "other", uuid.UUID(int=2), 1)
    monkeypatch.setattr(blocks, "COUNTS", ((1 << 60, 0.001), (10, 5.0)))
    assert operator.pause("because").state is DatasetState.PAUSED
    assert operator.ledger().queues[0].parked.messages == 5
    before, after = operator.discard()
    assert (before.state, after.state) == (DatasetState.PAUSED, DatasetState.DISCARDING)
    assert {one.tenant: one.parked.messages for one in before.tenants} == {"acme": 5, "other": 1}
    assert operator.resume().state is DatasetState.WRITABLE
    assert operator.status().parked.jobs == 2


def test_admission_sees_what_waits_for_a_blocked_job_or_is_isolated_by_tenant_and_estimates_a_large_backlog(
    connection: Connection, worker: Worker, operator: Operator
) -> None:
    worker.write(batch(0, 0, 10))
    park_many(connection, "acme", POISON, 1)
    park_many(connection, "acme", uuid.UUID(int=2), 3 * MANY)
    park_many(connection, "other", uuid.UUID(int=3), 1)
    assert operator.blocked() == []
    block_job(connection, POISON)
    (found,) = operator.blocked()
    assert (found.dataset, found.tenant, found.cause) == (NAME, "acme", "job")
    assert found.stored_bytes == pytest.approx((3 * MANY + 1) * 1124, rel=0.3)
    connection.execute("DELETE FROM bulk.blocked_jobs")
    connection.execute("DELETE FROM bulk.parked WHERE job_id = %s", [uuid.UUID(int=2)])
    connection.execute("VACUUM FULL bulk.parked")
    connection.execute(
        "INSERT INTO bulk.blocked_datasets (dataset, cause, reason, next_trial_time) "
        "VALUES (%s, 'isolating', 'slow', 'infinity')",
        [NAME],
    )
    assert sorted((one.tenant, one.stored_bytes) for one in operator.blocked()) == [("acme", 1124), ("other", 1124)]
