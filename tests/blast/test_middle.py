"""What else happens while a dataset is blocked, until it is repaired.

Jobs are cancelled, deleted, expire and are resubmitted with Redis empty; Kafka's retention deletes what was parked; a
worker dies. Afterwards everything is accounted for, in order.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace

import pytest
import redis
from confluent_kafka import TopicPartition
from confluent_kafka.admin import AdminClient

from bulkgrpc.client import AsyncBulkClient, AsyncJobHandle, Batch, JobOptions, JobState, Refused
from tests.blast import checker, evidence
from tests.blast.catalog import PARTITIONS, tenant_on
from tests.blast.records import Shape, payload
from tests.blast.stand import TOPIC, Stand
from tests.blast.traffic import Sent
from tests.support.waiting import eventually

TABLE = "middle"
SHAPE = Shape(TABLE, "update")
MANY = 2_000
WITHIN_S = 90.0
TIME_TO_LIVE_S = 1.0


class BrokenOff(Exception):
    """A client's source of batches broke."""


def job(tenant: str, number: int, batches: tuple[int, ...], revision: int, base: int = 0) -> Sent:
    return Sent(tenant, TABLE, f"middle-{number}", "during", base, batches, revision=revision)


def batches_of(sent: Sent) -> list[Batch]:
    ends = [sum(sent.batches[: number + 1]) for number in range(len(sent.batches))]
    return [
        Batch(payload(sent.base + end - rows, rows, sent.revision), rows)
        for end, rows in zip(ends, sent.batches, strict=True)
    ]


async def submit(client: AsyncBulkClient, sent: Sent, options: JobOptions | None = None) -> AsyncJobHandle:
    handle = await client.submit(TABLE, batches_of(sent), idempotency_key=sent.key, options=options or JobOptions())
    sent.sealed = True
    return handle


async def half_of(batches: list[Batch]) -> AsyncIterator[Batch]:
    for batch in batches[: len(batches) // 2]:
        yield batch
    raise BrokenOff


def delete_applied_messages(standing: Stand) -> None:
    """Delete from Kafka whatever the ledger is past, as retention may."""
    with standing.database() as connection:
        ledger = connection.execute("SELECT partition, next_offset FROM bulk.offsets").fetchall()
    admin = AdminClient({"bootstrap.servers": standing.stack.addresses.kafka})
    for deleted in admin.delete_records([TopicPartition(TOPIC, *place) for place in ledger]).values():
        deleted.result(30)


def all_parked(standing: Stand, sent: Sequence[Sent]) -> bool:
    """Return whether all batches and seals of jobs are parked."""
    query = "SELECT count(*) FROM bulk.parked WHERE job_id = ANY (%s::uuid[])"
    with standing.database() as connection:
        row = connection.execute(query, [[one.job_id for one in sent]]).fetchone()
    return row == (sum(len(one.batches) + 1 for one in sent),)


@pytest.mark.timeout(300)
async def test_what_else_happens_while_a_dataset_is_blocked(standing: Stand) -> None:
    first, second = tenant_on(1, "middle-a"), tenant_on(PARTITIONS - 2, "middle-b")
    address = standing.running.address
    kept = [job(first, number, (20, 20, 20), number, base=20 * number) for number in range(4)]
    resent = job(second, 0, (1,) * MANY, 0)
    after = job(second, 1, (50,), 1, base=MANY - 25)
    cancelled, expired = (job(tenant_on(2, f"middle-{who}"), 0, (30, 30), 0) for who in ("cancelled", "expired"))
    async with (
        AsyncBulkClient(address, tenant=first) as client,
        AsyncBulkClient(address, tenant=second) as other,
        AsyncBulkClient(address, tenant=cancelled.tenant) as cancelling,
        AsyncBulkClient(address, tenant=expired.tenant) as expiring,
    ):
        await client.register_dataset(SHAPE.descriptors(), SHAPE.message_type)
        ended = await submit(client, kept[0])
        await ended.wait(deadline_s=WITHIN_S)
        with standing.database() as connection:
            connection.execute(f"ALTER TABLE public.{TABLE} RENAME COLUMN note TO remark")

        for sent in kept[1:]:
            await submit(client, sent)
        to_cancel = await submit(cancelling, cancelled)
        to_expire = await submit(expiring, expired, JobOptions(time_to_live_s=TIME_TO_LIVE_S))
        with pytest.raises(BrokenOff):
            await other.submit(TABLE, half_of(batches_of(resent)), idempotency_key=resent.key)
        await eventually(lambda: all_parked(standing, [*kept[1:], cancelled, expired]), WITHIN_S)

        assert (await to_cancel.cancel()).state is JobState.CANCELLED
        with pytest.raises(Refused, match="messages of it may still come"):
            await to_cancel.delete()
        await ended.delete()
        redis.Redis.from_url(standing.stack.addresses.redis).flushall()
        await asyncio.to_thread(delete_applied_messages, standing)
        worker = standing.running.workers[0]
        await asyncio.to_thread(worker.kill)
        await submit(other, resent)
        await submit(other, after)
        await asyncio.to_thread(worker.start)
        await asyncio.to_thread(delete_applied_messages, standing)

        with standing.database() as connection:
            connection.execute(f"ALTER TABLE public.{TABLE} RENAME COLUMN remark TO note")
        live = [*kept[1:], resent, after]

        def done() -> bool:
            with standing.database() as connection:
                left = connection.execute("SELECT count(*) FROM bulk.parked WHERE dataset = %s", [TABLE]).fetchone()
                return left == (0,) and not evidence.unended(connection, [sent.job_id for sent in (*live, expired)])

        await eventually(done, WITHIN_S)
        state = await to_expire.get()
        assert (state.counts.accepted, state.counts.expired, state.counts.written) == (60, 60, 0)
        assert (await to_cancel.get()).counts.expired == 60
        await to_cancel.delete()
    with standing.database() as connection:
        found = evidence.collect(connection, [sent.job_id for sent in live], [TABLE])
    # The job that was deleted is gone; its rows are not.
    assert kept[0].job_id not in found.jobs
    rows = {key: found_rows for key, found_rows in found.rows.items() if key[1] in (first, second)}
    assert rows.keys() == found.rows.keys(), "nothing of a cancelled or expired job"
    deleted = {kept[0].job_id: replace(found.jobs[kept[1].job_id], written=60, accepted=60)}
    found = replace(found, jobs={**found.jobs, **deleted})
    assert not checker.some(checker.check_dataset(found, TABLE, [kept[0], *live], "update"))
    assert not standing.note_exits()
