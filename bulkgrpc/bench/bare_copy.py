"""The baselines: the same rows, encoded beforehand, written by as many COPY BINARY connections as there are workers.

Either by a direct COPY, or as a program without bulkgrpc would handle conflicts: COPY into a temporary table, then
INSERT … SELECT … ON CONFLICT.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import pgpq

from bulkgrpc.bench import observe, readings
from bulkgrpc.bench.cpu import cpu_s
from bulkgrpc.bench.environment import Environment
from bulkgrpc.bench.model import Load, Rate
from bulkgrpc.bench.spawned import START, Pipe, receive, spawned
from bulkgrpc.datasets.codec import BatchCodec
from bulkgrpc.datasets.decoding import Payload
from bulkgrpc.datasets.definition import Dataset
from bulkgrpc.datasets.rows import to_rows
from bulkgrpc.postgres import bench_state
from bulkgrpc.postgres.bare_copy import chunk_writer

_TIMEOUT_S = 600.0


@dataclass(frozen=True, slots=True)
class Baseline:
    """Rows that are written without the service.

    batches: encodes the records of one tenant. staged: write through a temporary table, for conflicts.
    """

    dataset: Dataset
    batches: Callable[[BatchCodec, int, int, int], list[bytes]] = readings.batches
    staged: bool = False


def measure(environment: Environment, dataset: Dataset, load: Load) -> Rate:
    """Measure a direct COPY of readings into an empty table. Raises BenchFailed."""
    with environment.connection() as connection:
        bench_state.clear(connection, dataset)
        rate = write(environment, Baseline(dataset), load)
        observe.check_table(connection, dataset, load.rows)
    return rate


def write(environment: Environment, baseline: Baseline, load: Load) -> Rate:
    """Write the load with one process for each worker. Time runs from the start signal to the last commit."""
    tenants = readings.tenants_of(load)
    shares = [tenants[number :: load.workers] for number in range(load.workers)]
    arguments = [(environment.postgres, baseline, load, share) for share in shares]
    with spawned(write_share, arguments) as writers:
        pids = [environment.postgres_pid, *(writer.pid for writer in writers)]
        start_s, start_cpu_s = time.perf_counter(), cpu_s(pids)
        for writer in writers:
            writer.send(START)
        end_s = max(float(writer.receive(_TIMEOUT_S)) for writer in writers)
        used_cpu_s = cpu_s(pids) - start_cpu_s
    return Rate(load.rows, end_s - start_s, used_cpu_s)


def write_share(pipe: Pipe, postgres: str, baseline: Baseline, load: Load, tenants: list[str]) -> None:
    """Write the rows of some tenants, one transaction for each chunk. Sends the time of the last commit.

    The time is in seconds of `time.perf_counter`, which all processes of a machine share.
    """
    chunks = encoded_chunks(baseline, load, tenants)
    with chunk_writer(postgres, baseline.dataset, staged=baseline.staged) as write_chunk:
        pipe.send(True)
        receive(pipe, _TIMEOUT_S)
        for chunk in chunks:
            write_chunk(chunk)
        pipe.send(time.perf_counter())


def encoded_chunks(baseline: Baseline, load: Load, tenants: list[str]) -> list[bytes]:
    """Encode the rows as a worker writes them: the tenants' batches in turn, in chunks sorted by key."""
    codec = BatchCodec(baseline.dataset)
    per_tenant = [baseline.batches(codec, 0, load.tenant_rows, load.batch_rows) for _ in tenants]
    payloads = [Payload(tenants[t], load.batch_rows, data) for t, _, data in readings.interleaved(per_tenant)]
    step = max(1, load.chunk_rows // load.batch_rows)
    chunks = []
    for start in range(0, len(payloads), step):
        rows = to_rows(codec, payloads[start : start + step]).table
        encoder = pgpq.ArrowToPostgresBinaryEncoder(rows.schema)
        chunks.append(b"".join((encoder.write_header(), encoder.write_batch(rows), encoder.finish())))
    return chunks
