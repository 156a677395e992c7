"""The ledger's memory of the records topic: its ID, the logs of its partitions, which of them are stopped and why."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import psycopg
from psycopg_pool import AsyncConnectionPool

from bulkgrpc.consume.log_identity import LogRange, Recorded, Stop, StopCause
from bulkgrpc.ingest.ports import PostgresUnavailable
from bulkgrpc.limits import STREAM_DEADLINE_S
from bulkgrpc.postgres import statements
from bulkgrpc.postgres.connection import Connection, connect
from bulkgrpc.postgres.deadlines import within
from bulkgrpc.postgres.unavailable import Meaning, meaning_of
from bulkgrpc.postgres.worker_ports import translated

_SQL = statements.family("topics")


@dataclass(frozen=True, slots=True)
class RecordedPartition:
    """What the ledger has of a partition, and since when it is stopped if it is."""

    recorded: Recorded
    stop_time: datetime | None


def topic_id(connection: Connection, topic: str) -> uuid.UUID | None:
    """Return the ID that the ledger has of a topic, None if it has none."""
    row = connection.execute(_SQL["get_topic"], {"topic": topic}).fetchone()
    return None if row is None else row[0]


def record(connection: Connection, topic: str, found: uuid.UUID) -> uuid.UUID:
    """Record a topic's ID if the ledger has none; return the one that it has."""
    connection.execute(_SQL["record_topic"], {"topic": topic, "topic_id": found})
    return topic_id(connection, topic) or found


def partitions(connection: Connection, topic: str) -> dict[int, RecordedPartition]:
    """Return what the ledger has of a topic's partitions."""
    rows = connection.execute(_SQL["recorded_partitions"], {"topic": topic})
    return {partition: _recorded(*columns) for partition, *columns in rows}


def save(
    connection: Connection, topic: str, stops: Mapping[int, Stop | None], logs: Mapping[int, LogRange | None]
) -> None:
    """Store why partitions are stopped, None: they are not, and what Kafka has of them. logs: of the same ones."""
    numbers = sorted(stops)
    found = [stops[number] for number in numbers]
    seen = [logs.get(number) for number in numbers]
    values = {
        "topic": topic,
        "partitions": numbers,
        "log_starts": [None if log is None else log.start for log in seen],
        "log_ends": [None if log is None else log.end for log in seen],
        "stop_causes": [None if stop is None else stop.cause.value for stop in found],
        "lost_froms": [None if stop is None else stop.from_offset for stop in found],
        "lost_tos": [None if stop is None else stop.to_offset for stop in found],
    }
    connection.execute(_SQL["save_logs"], values)


class PostgresTopicLedger:
    """Implements `bulkgrpc.consume.ports.TopicLedger`, with a connection per call: calls are rare."""

    def __init__(self, postgres: str, topic: str) -> None:
        self._postgres, self._topic = postgres, topic

    def recorded(self) -> tuple[uuid.UUID | None, Mapping[int, Recorded]]:
        """Return the recorded ID of the topic, and what the ledger has of its partitions."""
        with translated(), self._connect() as connection:
            found = partitions(connection, self._topic)
            return topic_id(connection, self._topic), {number: one.recorded for number, one in found.items()}

    def record(self, found: uuid.UUID) -> uuid.UUID:
        """Record the topic's ID if there is none; return the recorded one."""
        with translated(), self._connect() as connection:
            return record(connection, self._topic, found)

    def save(self, stops: Mapping[int, Stop | None], logs: Mapping[int, LogRange | None]) -> None:
        """Store why partitions are stopped, None: they are not, and what Kafka has of them."""
        with translated(), self._connect() as connection:
            save(connection, self._topic, stops, logs)

    def _connect(self) -> Connection:
        return connect(self._postgres, "bulkgrpc-topic")


def may_create(postgres: str, topic: str) -> bool:
    """Return whether a topic that Kafka does not have may be created: not if the ledger knows of it.

    Raises PostgresUnavailable: then nothing says whether it existed.
    """
    try:
        with connect(postgres, "bulkgrpc-topic") as connection:
            row = connection.execute(_SQL["has_topic"], {"topic": topic}).fetchone()
            return row is not None and not row[0]
    except psycopg.Error as error:
        if meaning_of(error) is Meaning.OTHER:
            raise
        raise PostgresUnavailable(str(error).splitlines()[0], error.sqlstate or "") from error


class TopicRecord:
    """What the ledger knows of the topic, for a server, through its pool. See the port of `bulkgrpc.ingest.ports`."""

    def __init__(self, pool: AsyncConnectionPool[Any], topic: str) -> None:
        self._pool, self._topic = pool, topic

    @within(STREAM_DEADLINE_S)
    async def recorded(self, found: uuid.UUID) -> uuid.UUID:
        """Return the ID that the ledger has; if it has none, it records `found`. Raises PostgresUnavailable."""
        async with self._pool.connection() as connection:
            await connection.execute(_SQL["record_topic"], {"topic": self._topic, "topic_id": found})
            row = await (await connection.execute(_SQL["get_topic"], {"topic": self._topic})).fetchone()
        return found if row is None else row[0]


def _recorded(next_offset: int, log_start: int | None, log_end: int | None, *stop: Any) -> RecordedPartition:
    cause, lost_from, lost_to, stop_time = stop
    log = None if log_start is None or log_end is None else LogRange(log_start, log_end)
    why = None if cause is None else Stop(StopCause(cause), lost_from, lost_to)
    return RecordedPartition(Recorded(next_offset, log, why), stop_time)
