"""The transaction of the express path, on real PostgreSQL."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from bulkgrpc import faults
from bulkgrpc.consume.decode import PreparedChunk
from bulkgrpc.consume.express import LeftToMainPath
from bulkgrpc.consume.failures import BlockCause, Failure, Where
from bulkgrpc.consume.ports import NotNext
from bulkgrpc.model import JobState
from bulkgrpc.postgres import ledger, parked
from bulkgrpc.postgres.connection import connect
from bulkgrpc.postgres.transaction import write_ahead, write_chunk
from bulkgrpc.postgres.writers.table import TableWriter
from tests.integration.test_transaction import TOPIC, batch, chunk, epoch, job_row, seal  # noqa: F401
from tests.support.database import Connection, count
from tests.support.waiting import wait_for

WITHIN_S = 20.0
DONE = (JobState.SUCCEEDED, 200, 200, 0, 0, 0)


def whole(epoch: int, start: int = 0) -> PreparedChunk:  # noqa: F811
    return chunk(epoch, start, batch(0, 0, 100), batch(1, 100, 100), seal(2))


def position(connection: Connection) -> int:
    return ledger.read(connection, TOPIC, [0])[0].next_offset


def ahead(connection: Connection, prepared: PreparedChunk) -> None:
    write_ahead(connection, TOPIC, prepared, TableWriter())


def on_main_path(connection: Connection, prepared: PreparedChunk) -> None:
    write_chunk(connection, TOPIC, prepared, TableWriter())


def test_what_is_applied_ahead_is_known_when_the_main_path_comes_to_it(connection: Connection, epoch: int) -> None:  # noqa: F811
    ahead(connection, whole(epoch, 5))
    assert job_row(connection) == DONE
    assert position(connection) == 0
    on_main_path(connection, chunk(epoch, 0, *(batch(n, n, 1, job=f"other-{n}") for n in range(5))))
    on_main_path(connection, whole(epoch, 5))
    assert job_row(connection) == DONE
    assert position(connection) == 8
    assert count(connection, "sensor_readings") == 205 - 5


def test_what_the_main_path_has_passed_is_not_applied_again(connection: Connection, epoch: int) -> None:  # noqa: F811
    on_main_path(connection, whole(epoch))
    ahead(connection, whole(epoch))
    assert job_row(connection) == DONE


@pytest.mark.parametrize("opened", [True, False])
@pytest.mark.parametrize("first", [ahead, on_main_path])
def test_two_paths_that_meet_at_a_job_apply_it_once(
    connection: Connection,
    database: str,
    epoch: int,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    first: object,
    opened: bool,
) -> None:
    """The second waits where the first holds the job, or creates its row, and sees what the first has done."""
    start = 0
    if opened:
        on_main_path(connection, chunk(epoch, 0, batch(0, 0, 100)))
        start = 1
    rest = (batch(1, 100, 100), seal(2)) if opened else (batch(0, 0, 100), batch(1, 100, 100), seal(2))
    paths = (ahead, on_main_path) if first is ahead else (on_main_path, ahead)
    reached, proceed = threading.Event(), threading.Event()

    def stop_the_first(site: str) -> None:
        if site == "before_commit" and not reached.is_set():
            reached.set()
            assert proceed.wait(WITHIN_S)

    monkeypatch.setattr(faults, "reach", stop_the_first)
    with connect(database, "first") as one, connect(database, "second") as two, ThreadPoolExecutor(2) as threads:
        running = threads.submit(paths[0], one, chunk(epoch, start, *rest))
        assert reached.wait(WITHIN_S)
        waiting = threads.submit(paths[1], two, chunk(epoch, start, *rest))
        blocked = "SELECT count(*) = 1 FROM pg_stat_activity WHERE pid = %s AND wait_event_type = 'Lock'"
        assert wait_for(lambda: connection.execute(blocked, [two.info.backend_pid]).fetchone() == (True,), WITHIN_S)
        proceed.set()
        running.result(WITHIN_S)
        waiting.result(WITHIN_S)
    assert job_row(connection) == DONE
    assert position(connection) == start + len(rest)
    assert count(connection, "sensor_readings") == 200


def two_lanes(prepared: PreparedChunk) -> PreparedChunk:
    items = tuple(replace(item, message=replace(item.message, partitions=(0, 1))) for item in prepared.chunk.items)
    return replace(prepared, chunk=replace(prepared.chunk, items=items))


def test_what_would_look_different_later_is_left_to_the_main_path(connection: Connection, epoch: int) -> None:  # noqa: F811
    on_main_path(connection, chunk(epoch, 0, batch(0, 0, 100)))
    left = {
        "another digest": chunk(epoch, 1, batch(0, 7, 100)),
        "after a gap": chunk(epoch, 1, batch(2, 200, 100)),
        "known within the chunk": chunk(epoch, 1, batch(1, 100, 100), batch(1, 100, 100)),
        "late": chunk(epoch, 1, seal(1), batch(1, 100, 100)),
        "two lanes": two_lanes(chunk(epoch, 1, batch(0, 0, 10, job="lanes"))),
        "no row": chunk(epoch, 1, batch(1, 100, 100, job="unknown")),
    }
    for name, prepared in left.items():
        with pytest.raises(LeftToMainPath) as raised:
            ahead(connection, prepared)
        assert raised.value.tenants == {"acme"}, name
    assert job_row(connection) == (JobState.OPEN, 100, 100, 0, 0, 0)
    assert count(connection, "bulk.jobs") == 1
    assert count(connection, "bulk.rejections") == 0


def test_what_is_deferred_is_left_to_the_main_path_which_parks_it(connection: Connection, epoch: int) -> None:  # noqa: F811
    failure = Failure(Where.ROWS, "42703", "UndefinedColumn", "no such column")
    parked.block_dataset(connection, "sensor_readings", BlockCause.TABLE, failure)
    with pytest.raises(LeftToMainPath):
        ahead(connection, whole(epoch, 1))
    on_main_path(connection, chunk(epoch, 0, batch(0, 0, 10, job="before")))
    connection.execute("DELETE FROM bulk.blocked_datasets")
    with pytest.raises(LeftToMainPath):
        ahead(connection, whole(epoch, 1))
    assert count(connection, "bulk.parked") == 1
    assert count(connection, "sensor_readings") == 0


def test_an_older_owner_applies_nothing_ahead(connection: Connection, epoch: int) -> None:  # noqa: F811
    ledger.acquire(connection, TOPIC, [0])
    with pytest.raises(NotNext):
        ahead(connection, whole(epoch))
    assert count(connection, "bulk.jobs") == 0
