"""A hole in Kafka's log, as a broken disk leaves it: a record batch is cut out of a segment of a stopped broker."""

from __future__ import annotations

import random
import struct
from collections.abc import Collection, Iterator
from contextlib import closing
from pathlib import Path
from typing import cast

from confluent_kafka import Consumer, TopicPartition

from bulkgrpc.kafka.message import from_headers
from bulkgrpc.model import Kind, Message
from tests.chaos.rig import TOPIC, Rig
from tests.support import examples

Headers = list[tuple[str, bytes]]
_HEADER_BYTES = 61
_LAST_OFFSET_DELTA = 23
READ_S = 10.0
DATASETS = (examples.readings().name, examples.fleet().name)


def read_unapplied(rig: Rig) -> dict[int, list[tuple[int, Message]]]:
    """Return what the partitions have from the ledger's positions on, by partition: offset and message."""
    with rig.database() as connection:
        positions = dict(connection.execute("SELECT partition, next_offset FROM bulk.offsets").fetchall())
    ends = {partition: end for partition, end in rig.ends().items() if end > positions.get(partition, 0)}
    found: dict[int, list[tuple[int, Message]]] = {partition: [] for partition in ends}
    settings = {"bootstrap.servers": rig.bootstrap, "group.id": "hole", "enable.auto.commit": False, "log_level": 0}
    with closing(Consumer({**settings, "enable.partition.eof": True})) as consumer:
        consumer.assign([TopicPartition(TOPIC, partition, positions.get(partition, 0)) for partition in ends])
        left = set(ends)
        while left:
            (message,) = consumer.consume(1, READ_S)
            partition, offset, headers = message.partition(), message.offset(), cast(Headers, message.headers())
            assert partition is not None
            assert offset is not None
            if message.error() is not None or offset >= ends[partition]:
                left.discard(partition)
            else:
                found[partition].append((offset, from_headers(headers)))
    return found


def provable(messages: Collection[tuple[int, Message]]) -> set[int]:
    """Return the offsets of batches that a later message of their job says were stored. Only of the clients' jobs."""
    stored: dict[object, int] = {}
    found = set[int]()
    for offset, message in reversed(list(messages)):
        job_id = message.spec.key.job_id
        of_client = message.kind is Kind.BATCH and message.spec.dataset in DATASETS
        if of_client and message.sequence < stored.get(job_id, 0):
            found.add(offset)
        stored[job_id] = max(stored.get(job_id, 0), message.stored_sequence)
    return found


def cut(directory: Path, offsets: Collection[int], chance: random.Random) -> tuple[int, int] | None:
    """Cut a record batch out of a partition's log, all of whose offsets are among `offsets`.

    Returns its first and its last offset; None if there is none. The broker is stopped; it builds the indexes again.
    """
    places = [
        (log, start, end, first, last)
        for log in sorted(directory.glob("*.log"))
        for start, end, first, last in record_batches(log.read_bytes())
        if set(range(first, last + 1)) <= set(offsets)
    ]
    if not places:
        return None
    # Of the last ones, clients may not have the acknowledgements yet.
    log, start, end, first, last = chance.choice(places[: (len(places) + 1) // 2])
    data = log.read_bytes()
    log.write_bytes(data[:start] + data[end:])
    for index in (".index", ".timeindex"):
        log.with_suffix(index).unlink(missing_ok=True)
    return first, last


def record_batches(data: bytes) -> Iterator[tuple[int, int, int, int]]:
    """Return of each record batch of a segment: where it starts and ends, its first and its last offset."""
    start = 0
    while start + _HEADER_BYTES <= len(data):
        first, length = struct.unpack_from(">qi", data, start)
        if length <= 0:
            return
        end = start + 12 + length
        yield start, end, first, first + struct.unpack_from(">i", data, start + _LAST_OFFSET_DELTA)[0]
        start = end
