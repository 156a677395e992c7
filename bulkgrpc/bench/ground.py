"""Where the benchmark stands: an embedded stack, a database of its own in it, a topic of its own a measurement."""

from __future__ import annotations

import asyncio
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
from confluent_kafka.admin import AdminClient
from psycopg import conninfo
from psycopg_pool import AsyncConnectionPool

from bulkgrpc.datasets.ddl import table
from bulkgrpc.datasets.definition import Dataset
from bulkgrpc.kafka.topics import ensure_topic
from bulkgrpc.postgres import schema
from bulkgrpc.postgres.catalog import Catalog
from bulkgrpc.settings import PREFIX, StackSettings, load
from bulkgrpc.stack import Addresses, Stack

DATABASE = "bulkgrpc_bench"
_TEMPORARY_ROOT = Path("/var/tmp")  # noqa: S108 — a directory of a random name below; /tmp may be memory
Connection = psycopg.Connection[tuple[Any, ...]]


@dataclass(frozen=True, slots=True)
class Place:
    """What a process of one measurement is told: the stores, the topic, the consumer group."""

    kafka: str
    postgres: str
    redis: str
    topic: str
    partitions: int

    def settings(self) -> StackSettings:
        """Return the place as settings of this process."""
        return load(
            StackSettings,
            kafka=self.kafka,
            postgres=self.postgres,
            redis=self.redis,
            topic=self.topic,
            dead_letter_topic=self.dead_letter_topic,
            partitions=self.partitions,
            replication=1,
        )

    @property
    def dead_letter_topic(self) -> str:
        """The topic of what a worker cannot place; in a measurement nothing goes there."""
        return f"{self.topic}.dead-letters"

    def environment(self) -> dict[str, str]:
        """Return the environment of a server or worker of this place; no other setting of ours comes through."""
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(PREFIX)}
        ours = {
            "KAFKA": self.kafka,
            "POSTGRES": self.postgres,
            "REDIS": self.redis,
            "TOPIC": self.topic,
            "DEAD_LETTER_TOPIC": self.dead_letter_topic,
            "GROUP": self.topic,
            "PARTITIONS": str(self.partitions),
        }
        return inherited | {PREFIX + name: value for name, value in ours.items()}


@dataclass(frozen=True, slots=True)
class Ground:
    """A stack that runs, with the benchmark's database: schema there, datasets registered."""

    directory: Path
    addresses: Addresses
    postgres: str

    @contextmanager
    def place(self, name: str, partitions: int) -> Iterator[Place]:
        """Make a topic for one measurement; delete it afterwards, and what the workers made beside it."""
        topic = f"bench.{name}.{secrets.token_hex(4)}"
        place = Place(self.addresses.kafka, self.postgres, self.addresses.redis, topic, partitions)
        ensure_topic(place.settings())
        try:
            yield place
        finally:
            admin = AdminClient({"bootstrap.servers": place.kafka, "log_level": 0})
            made = {topic, place.dead_letter_topic} & admin.list_topics(timeout=10).topics.keys()
            for deleted in admin.delete_topics(list(made)).values():
                deleted.result(10)

    @contextmanager
    def connection(self) -> Iterator[Connection]:
        """Open a connection in autocommit mode."""
        with psycopg.connect(self.postgres, autocommit=True) as connection:
            yield connection

    def clear(self, dataset: Dataset) -> None:
        """Empty a dataset's table and write a checkpoint, so that every measurement starts from the same state."""
        with self.connection() as connection:
            connection.execute(psycopg.sql.SQL("TRUNCATE {}").format(table(dataset)))
            connection.execute("CHECKPOINT")


@contextmanager
def ground(data_dir: Path | None, datasets: tuple[Dataset, ...]) -> Iterator[Ground]:
    """Start a stack, below /var/tmp and deleted afterwards unless `data_dir` is given, and prepare the database.

    In a given directory a stack that runs is used and left running; only the database `bulkgrpc_bench` is made anew.
    Raises StackError.
    """
    directory = data_dir or _TEMPORARY_ROOT / f"bulkgrpc-bench-{secrets.token_hex(4)}"
    stack = Stack(directory)
    ran = data_dir is not None and all(part.pid is not None for part in stack.status())
    try:
        addresses = stack.up()
        (stack.data_dir / "bench").mkdir(exist_ok=True)
        yield Ground(stack.data_dir / "bench", addresses, _database(addresses.postgres, datasets))
    finally:
        if not ran:
            stack.down()
        if data_dir is None:
            shutil.rmtree(stack.data_dir / "bench", ignore_errors=True)
            stack.destroy()


def _database(postgres: str, datasets: tuple[Dataset, ...]) -> str:
    with psycopg.connect(postgres, autocommit=True) as connection:
        connection.execute(f"DROP DATABASE IF EXISTS {DATABASE} WITH (FORCE)")
        connection.execute(f"CREATE DATABASE {DATABASE}")
    ours = conninfo.make_conninfo(postgres, dbname=DATABASE)
    schema.migrate(ours)
    asyncio.run(_register(ours, datasets))
    return ours


async def _register(postgres: str, datasets: tuple[Dataset, ...]) -> None:
    async with AsyncConnectionPool(postgres, open=False, min_size=1, kwargs={"autocommit": True}) as pool:
        for dataset in datasets:
            await Catalog(pool).register(dataset)
