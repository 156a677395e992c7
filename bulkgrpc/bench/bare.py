"""The baselines: the same rows, encoded beforehand, by as many COPY BINARY connections, and nothing else.

By a straight COPY; or as one would write conflicts by hand: COPY to a temporary table, INSERT … SELECT … ON CONFLICT.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import pgpq
import psycopg
from psycopg import sql

from bulkgrpc.bench import readings, watch
from bulkgrpc.bench.child import GO, READY, Pipe, children, receive
from bulkgrpc.bench.ground import Connection, Ground
from bulkgrpc.bench.model import Load, Rate
from bulkgrpc.datasets.codec import BatchCodec
from bulkgrpc.datasets.ddl import table
from bulkgrpc.datasets.definition import Dataset
from bulkgrpc.datasets.rows import Payload, to_rows
from bulkgrpc.postgres.writers.update import on_conflict

_PIECE_BYTES = 1 << 20
_WITHIN_S = 600.0
_STAGED = sql.Identifier("pg_temp", "staged")


@dataclass(frozen=True, slots=True)
class Baseline:
    """Who writes what by hand. batches: encodes a tenant's records. staged: by a temporary table, for conflicts."""

    dataset: Dataset
    batches: Callable[[BatchCodec, int, int, int], list[bytes]] = readings.batches
    staged: bool = False


def measure(ground: Ground, dataset: Dataset, load: Load) -> Rate:
    """Measure a straight COPY of readings into an empty table."""
    ground.clear(dataset)
    rate = written(ground.postgres, Baseline(dataset), load)
    with ground.connection() as connection:
        watch.check_table(connection, dataset, load.rows)
    return rate


def written(postgres: str, baseline: Baseline, load: Load) -> Rate:
    """Write the load, one process a connection; from the word to all of them until the last commit."""
    tenants = readings.tenants_of(load)
    shares = [tenants[number :: load.workers] for number in range(load.workers)]
    arguments = [(postgres, baseline, load, share) for share in shares]
    with children(write_share, arguments) as writers:
        begun_s = time.perf_counter()
        for writer in writers:
            writer.send(GO)
        ended_s = max(float(writer.receive(_WITHIN_S)) for writer in writers)
    return Rate(load.rows, ended_s - begun_s)


def write_share(pipe: Pipe, postgres: str, baseline: Baseline, load: Load, tenants: list[str]) -> None:
    """Write the rows of some tenants, a transaction a chunk; sends the time of the last commit (s, perf_counter)."""
    dataset = baseline.dataset
    chunks = encoded_chunks(baseline, load, tenants)
    with psycopg.connect(postgres, autocommit=True) as connection:
        target = table(dataset)
        if baseline.staged:
            connection.execute(
                sql.SQL("CREATE TEMPORARY TABLE staged (LIKE {}) ON COMMIT DELETE ROWS").format(table(dataset))
            )
            target = _STAGED
        copy, insert = _copy(dataset, target), _insert(dataset)
        pipe.send(READY)
        receive(pipe, _WITHIN_S)
        for chunk in chunks:
            with connection.transaction():
                copy_chunk(connection, copy, chunk)
                if baseline.staged:
                    connection.execute(insert)
        # CLOCK_MONOTONIC: the same in all processes of a machine.
        pipe.send(time.perf_counter())


def encoded_chunks(baseline: Baseline, load: Load, tenants: list[str]) -> list[bytes]:
    """Encode the rows as a worker would write them: batches of the tenants in turn, in chunks sorted by key."""
    codec = BatchCodec(baseline.dataset)
    per_tenant = [baseline.batches(codec, 0, load.tenant_rows, load.batch_rows) for _ in tenants]
    payloads = [Payload(tenants[t], load.batch_rows, data) for t, _, data in readings.turns(per_tenant)]
    step = max(1, load.chunk_rows // load.batch_rows)
    chunks = []
    for start in range(0, len(payloads), step):
        rows = to_rows(codec, payloads[start : start + step]).table
        encoder = pgpq.ArrowToPostgresBinaryEncoder(rows.schema)
        chunks.append(b"".join((encoder.write_header(), encoder.write_batch(rows), encoder.finish())))
    return chunks


def copy_chunk(connection: Connection, statement: sql.Composed, chunk: bytes) -> None:
    """Send a chunk, encoded for COPY BINARY, in pieces."""
    view = memoryview(chunk)
    with connection.cursor() as cursor, cursor.copy(statement) as copy:
        for start in range(0, len(view), _PIECE_BYTES):
            copy.write(view[start : start + _PIECE_BYTES])


def _copy(dataset: Dataset, target: sql.Identifier) -> sql.Composed:
    return sql.SQL("COPY {} ({}) FROM STDIN (FORMAT BINARY)").format(target, _names(dataset))


def _insert(dataset: Dataset) -> sql.Composed:
    """Return what moves the staged rows, sorted by key already, into the table."""
    action = on_conflict(dataset) if dataset.conflict == "update" else sql.SQL("DO NOTHING")
    insert = sql.SQL("INSERT INTO {} ({columns}) SELECT {columns} FROM {} ON CONFLICT {}")
    return insert.format(table(dataset), _STAGED, action, columns=_names(dataset))


def _names(dataset: Dataset) -> sql.Composed:
    return sql.SQL(", ").join(sql.Identifier(column.name) for column in dataset.columns)
