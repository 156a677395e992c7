"""The environment of a benchmark: an embedded stack, a database of its own, a topic for each measurement."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

from bulkgrpc.bench.model import BenchFailed
from bulkgrpc.datasets.definition import Dataset
from bulkgrpc.kafka.administration import KafkaAdministration
from bulkgrpc.kafka.topics import ensure_topic
from bulkgrpc.postgres.bench_state import prepare_database
from bulkgrpc.postgres.connection import Connection
from bulkgrpc.postgres.databases import connection_to
from bulkgrpc.settings import PREFIX, StackSettings, load
from bulkgrpc.stack import Addresses, Stack

DATABASE = "bulkgrpc_bench"
_TEMPORARY_ROOT = Path("/var/tmp")  # noqa: S108 — a directory with a random name below it; /tmp may be in memory


@dataclass(frozen=True, slots=True)
class Deployment:
    """What the server and workers of one measurement use: the stores, and a topic that is the group's name too."""

    kafka: str
    postgres: str
    redis: str
    topic: str
    partitions: int

    def settings(self) -> StackSettings:
        """Return the deployment as settings of this process."""
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
        """The dead-letter topic; a measurement leaves it empty."""
        return f"{self.topic}.dead-letters"

    def variables(self) -> dict[str, str]:
        """Return the environment variables of a server or worker. No other BULKGRPC_ variable is inherited."""
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
class Environment:
    """A running stack with the benchmark's database.

    directory: for logs. postgres: connection string of the benchmark's database. postgres_pid: the postmaster's.
    kafka_pid: the broker's.
    """

    directory: Path
    addresses: Addresses
    postgres: str
    postgres_pid: int
    kafka_pid: int

    @contextmanager
    def deployment(self, name: str, partitions: int) -> Iterator[Deployment]:
        """Create a topic for one measurement. Delete it afterwards, and the dead-letter topic."""
        topic = f"bench.{name}.{secrets.token_hex(4)}"
        deployment = Deployment(self.addresses.kafka, self.postgres, self.addresses.redis, topic, partitions)
        ensure_topic(deployment.settings())
        try:
            yield deployment
        finally:
            KafkaAdministration(deployment.kafka).delete_topics([topic, deployment.dead_letter_topic])

    def connection(self) -> AbstractContextManager[Connection]:
        """Open a connection to the benchmark's database, in autocommit mode."""
        return connection_to(self.postgres)


@contextmanager
def prepared(data_dir: Path | None, datasets: tuple[Dataset, ...]) -> Iterator[Environment]:
    """Start a stack and prepare the database `bulkgrpc_bench` in it.

    data_dir: None starts a stack below /var/tmp and deletes it afterwards. A given directory is kept, and a stack that
    already runs there is used and left running. Raises StackError, PostgresError.
    """
    directory = data_dir or _TEMPORARY_ROOT / f"bulkgrpc-bench-{secrets.token_hex(4)}"
    stack = Stack(directory)
    already_running = data_dir is not None and all(part.pid is not None for part in stack.status())
    try:
        addresses = stack.up()
        (stack.data_dir / "bench").mkdir(exist_ok=True)
        postmaster, kafka = stack.part("postgres").pid, stack.part("kafka").pid
        if postmaster is None or kafka is None:
            raise BenchFailed("PostgreSQL or Kafka exited right after it started")
        database = prepare_database(addresses.postgres, DATABASE, datasets)
        yield Environment(stack.data_dir / "bench", addresses, database, postmaster, kafka)
    finally:
        if not already_running:
            stack.down()
        if data_dir is None:
            shutil.rmtree(stack.data_dir / "bench", ignore_errors=True)
            stack.destroy()
