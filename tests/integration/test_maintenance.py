"""The worker that keeps house, on real PostgreSQL and Kafka: whatever goes wrong, the rest is done."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Iterator

import pytest
from psycopg import sql

from bulkgrpc.kafka.topics import ensure_topic
from bulkgrpc.postgres import dedupe
from bulkgrpc.postgres.staged import StagedTable
from bulkgrpc.settings import WorkerSettings, load
from bulkgrpc.stack import Addresses
from tests.support import examples
from tests.support.database import Connection, register
from tests.support.waiting import wait_for
from workers import maintenance as module
from workers.maintenance import Maintenance

WITHIN_S = 20.0


@pytest.fixture
def keep_house(addresses: Addresses, database: str) -> Iterator[Maintenance]:
    """One that does rounds once it is started."""
    stopping = threading.Event()
    topic = f"records-{uuid.uuid4().hex[:12]}"
    settings = load(WorkerSettings, kafka=addresses.kafka, postgres=database, topic=topic, maintenance_interval_s=0.1)
    ensure_topic(settings)
    keeper = Maintenance(settings, stopping)
    yield keeper
    stopping.set()
    keeper._thread.join(WITHIN_S)


def over(connection: Connection) -> bool:
    row = connection.execute("SELECT bool_and(half = 1) FROM bulk.dedupe").fetchone()
    return row is not None and bool(row[0])


def test_a_chore_that_fails_holds_up_no_other(keep_house: Maintenance, connection: Connection) -> None:
    dataset = examples.remembered("ignore")
    register(connection, dataset)
    connection.execute("UPDATE bulk.dedupe SET change_time = change_time - interval '1 hour'")
    connection.execute(sql.SQL("DROP TABLE {}").format(StagedTable(dataset.name, dataset.version).identifier))
    keep_house.start()
    assert wait_for(lambda: over(connection), WITHIN_S)


def test_what_nobody_thought_of_ends_a_round_and_not_housekeeping(
    keep_house: Maintenance, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    register(connection, examples.remembered("ignore"))
    connection.execute("UPDATE bulk.dedupe SET change_time = change_time - interval '1 hour'")
    tried = threading.Event()

    def too_large(_: Connection) -> int:
        tried.set()
        raise MemoryError

    monkeypatch.setattr(module, "change_halves", too_large)
    keep_house.start()
    assert tried.wait(WITHIN_S)
    monkeypatch.setattr(module, "change_halves", dedupe.change_halves)
    assert wait_for(lambda: over(connection), WITHIN_S)
