"""The express path on real Kafka and PostgreSQL: who waits behind a hot tenant is served ahead of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from tests.integration.test_worker import Feed, batch, ended, feed, seal, send, spec  # noqa: F401
from tests.support import examples
from tests.support.database import Connection, count
from tests.support.processes import Process
from tests.support.waiting import eventually

BATCHES = 60
RECORDS = 1_000
SLOW = """
CREATE FUNCTION slow_if_hot() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  IF EXISTS (SELECT FROM fresh WHERE tenant = 'hot') THEN PERFORM pg_sleep(0.7); END IF;
  RETURN NULL;
END $$;
CREATE TRIGGER slow_if_hot AFTER INSERT ON sensor_readings REFERENCING NEW TABLE AS fresh
FOR EACH STATEMENT EXECUTE FUNCTION slow_if_hot()
"""
"""A chunk of the hot tenant takes 0.7 s: less than what isolates its dataset."""


@pytest.fixture
def worker(feed: Feed) -> Iterator[Process]:  # noqa: F811
    small = {"BULKGRPC_CHUNK_ROWS_MIN": str(RECORDS), "BULKGRPC_CHUNK_ROWS_MAX": str(RECORDS)}
    process = replace(feed, environment=feed.environment | small).worker()
    process.start()
    yield process
    process.stop()


async def test_a_quiet_tenant_does_not_wait_for_the_backlog_of_a_hot_one(
    feed: Feed,  # noqa: F811
    worker: Process,
    connection: Connection,
) -> None:
    connection.execute(SLOW)
    hot, same_partition, other_partition = spec("hot", "hot"), spec("same", "quiet"), spec("other", "still")
    payload = examples.reading_batch(0, RECORDS)
    await send(
        feed,
        [batch(hot, n, RECORDS, examples.reading_batch(n * RECORDS, RECORDS)) for n in range(BATCHES)]
        + [seal(hot, BATCHES)],
    )
    await send(feed, [batch(same_partition, 0, RECORDS, payload), seal(same_partition, 1)])
    await send(feed, [batch(other_partition, 0, RECORDS, payload), seal(other_partition, 1)], partition=1)
    # In order, that would take BATCHES * 0.7 s = 42 s.
    for job in (same_partition, other_partition):
        assert await ended(connection, job, within_s=15) == (3, RECORDS, RECORDS, 0, 0)
    state = connection.execute("SELECT state FROM bulk.jobs WHERE job_id = %s", [hot.key.job_id]).fetchone()
    assert state == (1,)
    # More of a job that was served ahead: it is next, and the main path does not know of it.
    again = spec("again", "quiet")
    await send(feed, [batch(again, 0, 10, examples.reading_batch(RECORDS, 10)), seal(again, 1)])
    assert await ended(connection, again, within_s=5) == (3, 10, 10, 0, 0)
    connection.execute("DROP TRIGGER slow_if_hot ON sensor_readings")
    assert await ended(connection, hot) == (3, BATCHES * RECORDS, BATCHES * RECORDS, 0, 0)
    assert count(connection, "sensor_readings") == BATCHES * RECORDS + 2 * RECORDS + 10

    def all_read() -> bool:
        row = connection.execute("SELECT next_offset FROM bulk.offsets WHERE partition = 0").fetchone()
        return row == (BATCHES + 1 + 4,)

    await eventually(all_read)
    # The main path came to the same messages again, and changed nothing.
    assert await ended(connection, same_partition) == (3, RECORDS, RECORDS, 0, 0)
    assert await ended(connection, again) == (3, 10, 10, 0, 0)
    assert count(connection, "sensor_readings") == BATCHES * RECORDS + 2 * RECORDS + 10
