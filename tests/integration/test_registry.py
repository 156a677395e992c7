"""The worker's dataset registry, on real PostgreSQL: it is shared by the threads of a worker."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from bulkgrpc.consume.decode import DatasetNotFound
from bulkgrpc.datasets.codec import BatchCodec
from bulkgrpc.datasets.decoding import Payload
from bulkgrpc.datasets.definition import Dataset
from bulkgrpc.datasets.rows import to_rows
from bulkgrpc.postgres.worker_ports import PostgresDatasetRegistry
from tests.support import examples
from tests.support.database import Connection, register

THREADS = 4


def test_threads_that_ask_for_a_version_at_once_share_one_codec(
    database: str, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = examples.remembered()
    register(connection, dataset)
    compiled: list[str] = []
    arrived = threading.Barrier(THREADS)

    def compile_codec(found: Dataset) -> BatchCodec:
        compiled.append(found.name)
        return BatchCodec(found)

    monkeypatch.setattr("bulkgrpc.postgres.worker_ports.BatchCodec", compile_codec)
    registry = PostgresDatasetRegistry(database)
    payloads = [Payload("acme", 5000, examples.reading_batch(0, 5000))]

    def ask(_: int) -> BatchCodec:
        arrived.wait(10)
        codec = registry.codec(dataset.name, 1)
        for _ in range(10):
            rows = to_rows(codec, payloads)
            assert rows.table.num_rows == 5000
            assert rows.hashes is not None
        return codec

    with ThreadPoolExecutor(THREADS) as pool:
        codecs = list(pool.map(ask, range(THREADS)))
    assert compiled == [dataset.name]
    assert all(codec is codecs[0] for codec in codecs)


def test_a_version_that_is_registered_later_is_found_then(database: str, connection: Connection) -> None:
    registry = PostgresDatasetRegistry(database)
    with pytest.raises(DatasetNotFound):
        registry.codec("sensor_readings", 1)
    register(connection, examples.readings())
    assert registry.codec("sensor_readings", 1).dataset.name == "sensor_readings"
