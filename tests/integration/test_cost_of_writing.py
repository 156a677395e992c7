"""No Python per record from the worker's hand-over to the commit, whatever the way of writing."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime

import pytest
from psycopg import sql

from bulkgrpc.bench import policy_cases
from bulkgrpc.bench.policy_cases import PolicyCase
from bulkgrpc.consume.assembly import Chunk, Received, Span
from bulkgrpc.consume.decode import prepare
from bulkgrpc.datasets.codec import BatchCodec
from bulkgrpc.datasets.ddl import table
from bulkgrpc.model import JobKey, JobSpec, Kind, Message
from bulkgrpc.postgres import ledger
from bulkgrpc.postgres.transaction import write_chunk
from bulkgrpc.postgres.writers.table import TableWriter
from tests.support.cost import BLOCKS_SLACK, OPCODES_RATIO_MAX, Work, cost
from tests.support.database import Connection, register

BATCHES = 4
FEW, MANY = 500, 5_000
TOPIC = "records"
WAYS = {item.name: item for item in policy_cases.cases() if item.writer == "workers" and not item.rejected_one_in}


def writing(connection: Connection, way: PolicyCase, batch_rows: int) -> Work:
    """Prepare and write a chunk a call, of the next sequences; of the second call all keys, some or none are there."""
    codec = BatchCodec(way.dataset)
    batches = way.batches(codec, 0, 2 * BATCHES * batch_rows, batch_rows)
    spec = JobSpec(JobKey("acme", uuid.uuid4()), "key", way.dataset.name, way.dataset.version)
    now = datetime.now(UTC)
    (owned,) = ledger.acquire(connection, TOPIC, [0]).values()
    known = {0: 0, 1: BATCHES}.get(way.existing_one_in, 1)
    chunks = []
    for call in range(2):
        items = tuple(
            Received(
                0,
                owned.next_offset + number,
                Message(Kind.BATCH, spec, 0, number, batch_rows, 0, now),
                batches[number % BATCHES if number < BATCHES + known else number],
            )
            for number in range(call * BATCHES, (call + 1) * BATCHES)
        )
        span = Span(0, items[0].offset, items[-1].offset + 1, owned.owner_epoch)
        chunks.append(Chunk((span,), items, BATCHES * batch_rows))
    writer, coming = TableWriter(), iter(chunks)
    return lambda: write_chunk(connection, TOPIC, prepare(next(coming), lambda _name, _version: codec), writer)


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_python_does_not_work_per_record_that_is_written(connection: Connection, way: PolicyCase) -> None:
    register(connection, way.dataset)
    few = cost(writing(connection, way, FEW))
    connection.execute(sql.SQL("TRUNCATE {}").format(table(way.dataset)))
    many = cost(writing(connection, way, MANY))
    assert many[0] <= few[0] * OPCODES_RATIO_MAX
    assert many[1] <= few[1] + BLOCKS_SLACK


def test_the_counters_see_python_per_written_record(connection: Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    way = WAYS[policy_cases.NEW]
    register(connection, way.dataset)
    honest = TableWriter.write

    def sinful(self: TableWriter, *arguments: object) -> object:
        rows = arguments[1]
        assert rows is not None
        return [honest(self, *arguments), [row for row in rows.payload.tolist() if row]][0]  # type: ignore

    monkeypatch.setattr(TableWriter, "write", sinful)
    few, many = cost(writing(connection, way, FEW)), cost(writing(connection, way, MANY))
    assert many[0] > few[0] * OPCODES_RATIO_MAX
