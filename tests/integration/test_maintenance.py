"""The maintenance thread on real PostgreSQL and Kafka: a task that fails delays no other."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Iterator

import pytest
from psycopg import sql

from bulkgrpc.kafka.topics import end_offsets, ensure_topic
from bulkgrpc.postgres.maintenance_store import PostgresMaintenanceStore
from bulkgrpc.postgres.staged import StagedTable
from bulkgrpc.settings import WorkerSettings, load
from bulkgrpc.stack import Addresses
from tests.support import examples
from tests.support.database import Connection, register
from tests.support.waiting import wait_for
from workers.maintenance import MaintenanceThread

WITHIN_S = 20.0


@pytest.fixture
def start(addresses: Addresses, database: str) -> Iterator[Callable[..., None]]:
    """Starts a maintenance thread on a store, by default that of the test's database."""
    stopping = threading.Event()
    threads = []
    topic = f"records-{uuid.uuid4().hex[:12]}"
    settings = load(WorkerSettings, kafka=addresses.kafka, postgres=database, topic=topic, maintenance_interval_s=0.1)
    ensure_topic(settings)

    def started(store: type[PostgresMaintenanceStore] = PostgresMaintenanceStore) -> None:
        made = store(database, topic)
        threads.append(MaintenanceThread(settings, made, lambda: end_offsets(settings), stopping))
        threads[-1].start()

    yield started
    stopping.set()
    for thread in threads:
        thread.join(WITHIN_S)


def over(connection: Connection) -> bool:
    row = connection.execute("SELECT bool_and(current_table = 1) FROM bulk.dedupe").fetchone()
    return row is not None and bool(row[0])


def test_a_task_that_fails_delays_no_other(start: Callable[..., None], connection: Connection) -> None:
    dataset = examples.remembered("ignore")
    register(connection, dataset)
    connection.execute("UPDATE bulk.dedupe SET rotate_time = rotate_time - interval '1 hour'")
    connection.execute(sql.SQL("DROP TABLE {}").format(StagedTable(dataset.name, dataset.version).identifier))
    start()
    assert wait_for(lambda: over(connection), WITHIN_S)


def test_an_unexpected_exception_ends_a_round_and_not_the_thread(
    start: Callable[..., None], connection: Connection
) -> None:
    register(connection, examples.remembered("ignore"))
    connection.execute("UPDATE bulk.dedupe SET rotate_time = rotate_time - interval '1 hour'")
    failed = threading.Event()

    class OutOfMemoryOnce(PostgresMaintenanceStore):
        def rotate_dedupe(self) -> None:
            if not failed.is_set():
                failed.set()
                raise MemoryError
            super().rotate_dedupe()

    start(OutOfMemoryOnce)
    assert failed.wait(WITHIN_S)
    assert wait_for(lambda: over(connection), WITHIN_S)
