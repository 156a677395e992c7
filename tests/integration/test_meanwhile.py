"""Work that is done while a statement waits for PostgreSQL, and chunks that are decoded so."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import psycopg
import pytest
from psycopg.pq import TransactionStatus

from bulkgrpc.consume.assembly import Chunk
from bulkgrpc.consume.decode import LoadedChunk
from bulkgrpc.consume.ports import NotNext, WriteFailed
from bulkgrpc.datasets.codec import BatchCodec
from bulkgrpc.model import JobState
from bulkgrpc.postgres.connection import meanwhile
from bulkgrpc.postgres.transaction import write_chunk
from bulkgrpc.postgres.writers.table import TableWriter
from tests.integration.test_transaction import CODEC, TOPIC, batch, chunk, epoch, job_row, seal  # noqa: F401
from tests.support.database import Connection, count


class Work:
    """Counts its calls, and notes what the connection did at the first one."""

    def __init__(self, connection: Connection, error: BaseException | None = None) -> None:
        self.connection, self.error = connection, error
        self.calls = 0
        self.during: TransactionStatus | None = None

    def __call__(self) -> None:
        self.calls += 1
        self.during = self.connection.info.transaction_status
        if self.error is not None:
            raise self.error


def test_work_is_done_once_while_the_statement_runs(connection: Connection) -> None:
    work = Work(connection)
    with meanwhile(connection, work):
        assert connection.execute("SELECT pg_sleep(0.05), 7").fetchone() == ("", 7)
        connection.execute("SELECT pg_sleep(0.05)")
    connection.execute("SELECT pg_sleep(0.05)")
    assert (work.calls, work.during) == (1, TransactionStatus.ACTIVE)


def test_work_that_fails_leaves_the_connection_usable(connection: Connection) -> None:
    with pytest.raises(ValueError, match="broken"), meanwhile(connection, Work(connection, ValueError("broken"))):
        connection.execute("SELECT pg_sleep(0.05)")
    assert connection.info.transaction_status is TransactionStatus.IDLE
    assert connection.execute("SELECT 1").fetchone() == (1,)


def test_an_error_of_the_statement_is_raised_after_the_work(connection: Connection) -> None:
    work = Work(connection)
    with pytest.raises(psycopg.errors.DivisionByZero), meanwhile(connection, work):
        connection.execute("SELECT 1 / (pg_sleep(0.05) IS NULL)::integer")
    assert work.calls == 1


Codec = Callable[[str, int], BatchCodec]


def loaded(found: Chunk, codec_of: Codec = lambda _name, _version: CODEC) -> LoadedChunk:
    return LoadedChunk(found, codec_of)


def test_a_chunk_is_decoded_while_its_transaction_begins(connection: Connection, epoch: int) -> None:  # noqa: F811
    seen = list[TransactionStatus]()

    def codec_of(_name: str, _version: int) -> BatchCodec:
        seen.append(connection.info.transaction_status)
        return CODEC

    late = loaded(chunk(epoch, 0, batch(0, 0, 10), seal(1)).chunk, codec_of)
    write_chunk(connection, TOPIC, late, TableWriter())
    assert seen == [TransactionStatus.ACTIVE]
    assert job_row(connection)[:3] == (JobState.SUCCEEDED, 10, 10)


def test_a_chunk_that_cannot_be_decoded_leaves_no_transaction(connection: Connection, epoch: int) -> None:  # noqa: F811
    def broken(_name: str, _version: int) -> BatchCodec:
        raise ValueError("no decoder")

    late = loaded(chunk(epoch, 0, batch(0, 0, 10)).chunk, cast(Codec, broken))
    with pytest.raises(WriteFailed, match="no decoder"):
        write_chunk(connection, TOPIC, late, TableWriter())
    assert connection.info.transaction_status is TransactionStatus.IDLE
    write_chunk(connection, TOPIC, late, TableWriter(), blocked={"sensor_readings"})
    assert count(connection, "bulk.parked") == 1


def test_a_chunk_that_is_not_the_next_one_is_not_written(connection: Connection, epoch: int) -> None:  # noqa: F811
    with pytest.raises(NotNext):
        write_chunk(connection, TOPIC, loaded(chunk(epoch, 5, batch(0, 0, 10)).chunk), TableWriter())
    assert connection.info.transaction_status is TransactionStatus.IDLE
    assert count(connection, "sensor_readings") == 0
