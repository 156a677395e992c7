"""The baseline: the same rows, encoded beforehand, by as many COPY BINARY connections, and nothing else."""

from __future__ import annotations

import time

import pgpq
import psycopg
from psycopg import sql

from bulkgrpc.bench import readings, watch
from bulkgrpc.bench.child import GO, READY, Pipe, children, receive
from bulkgrpc.bench.ground import Ground
from bulkgrpc.bench.words import Load, Rate
from bulkgrpc.datasets.codec import BatchCodec
from bulkgrpc.datasets.ddl import table
from bulkgrpc.datasets.definition import Dataset
from bulkgrpc.datasets.rows import Payload, to_rows

_PIECE_BYTES = 1 << 20
_WITHIN_S = 600.0


def measure(ground: Ground, dataset: Dataset, load: Load) -> Rate:
    """Measure it: one process a connection, from the word to all of them until the last commit."""
    ground.clear(dataset)
    tenants = readings.tenants_of(load)
    shares = [tenants[number :: load.workers] for number in range(load.workers)]
    arguments = [(ground.postgres, load, share) for share in shares]
    with children(copy_share, arguments) as copiers:
        begun_s = time.perf_counter()
        for copier in copiers:
            copier.send(GO)
        ended_s = max(float(copier.receive(_WITHIN_S)) for copier in copiers)
    with ground.connection() as connection:
        watch.check_table(connection, dataset, load.rows)
    return Rate(load.rows, ended_s - begun_s)


def copy_share(pipe: Pipe, postgres: str, load: Load, tenants: list[str]) -> None:
    """COPY the rows of some tenants, a transaction a chunk; sends the time of the last commit (s, perf_counter)."""
    dataset = readings.dataset()
    chunks = encoded_chunks(dataset, load, tenants)
    with psycopg.connect(postgres, autocommit=True) as connection:
        statement = _statement(dataset)
        pipe.send(READY)
        receive(pipe, _WITHIN_S)
        for chunk in chunks:
            with connection.transaction(), connection.cursor() as cursor, cursor.copy(statement) as copy:
                view = memoryview(chunk)
                for start in range(0, len(view), _PIECE_BYTES):
                    copy.write(view[start : start + _PIECE_BYTES])
        # CLOCK_MONOTONIC: the same in all processes of a machine.
        pipe.send(time.perf_counter())


def encoded_chunks(dataset: Dataset, load: Load, tenants: list[str]) -> list[bytes]:
    """Encode the rows as a worker would write them: batches of the tenants in turn, in chunks sorted by key."""
    codec = BatchCodec(dataset)
    per_tenant = [readings.batches(codec, 0, load.tenant_rows, load.batch_rows) for _ in tenants]
    payloads = [Payload(tenants[t], load.batch_rows, data) for t, _, data in readings.turns(per_tenant)]
    step = max(1, load.chunk_rows // load.batch_rows)
    chunks = []
    for start in range(0, len(payloads), step):
        rows = to_rows(codec, payloads[start : start + step]).table
        encoder = pgpq.ArrowToPostgresBinaryEncoder(rows.schema)
        chunks.append(b"".join((encoder.write_header(), encoder.write_batch(rows), encoder.finish())))
    return chunks


def _statement(dataset: Dataset) -> sql.Composed:
    names = sql.SQL(", ").join(sql.Identifier(column.name) for column in dataset.columns)
    return sql.SQL("COPY {} ({}) FROM STDIN (FORMAT BINARY)").format(table(dataset), names)
