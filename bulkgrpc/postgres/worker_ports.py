"""The worker's ports on PostgreSQL: ledger, dataset registry and chunk writer.

Each translates psycopg's errors into those of `bulkgrpc.consume.ports`. What a failure leads to is decided in
`bulkgrpc.consume.failures`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import psycopg

from bulkgrpc.consume.decode import PreparedChunk
from bulkgrpc.consume.failures import Failure, Where
from bulkgrpc.consume.ports import Applied, DatasetNotFound, StoreError, StoreUnavailable, WriteFailed
from bulkgrpc.datasets.codec import BatchCodec
from bulkgrpc.datasets.columns import InvalidDataset
from bulkgrpc.model import Ownership
from bulkgrpc.postgres import ledger, schema
from bulkgrpc.postgres.catalog import get_dataset
from bulkgrpc.postgres.connection import Connection, connect
from bulkgrpc.postgres.transaction import write_chunk
from bulkgrpc.postgres.unavailable import Meaning, meaning_of
from bulkgrpc.postgres.writers.table import TableWriter

ACQUIRE_LOCK_TIMEOUT = "SET lock_timeout = '1s'"


@contextmanager
def translated() -> Iterator[None]:
    """Raise StoreUnavailable for an error that can end by itself, StoreError for any other of psycopg."""
    try:
        yield
    except psycopg.Error as error:
        raised = StoreError if meaning_of(error) is Meaning.OTHER else StoreUnavailable
        raise raised(str(error).strip()) from error


def failure_of(error: psycopg.Error, where: Where) -> Failure:
    """Return what PostgreSQL or the connection to it reported.

    where: the step. An error without a SQLSTATE that is not about the call itself counts as one of the connection.
    """
    unanswered = error.sqlstate is None and isinstance(
        error, (psycopg.OperationalError, psycopg.InterfaceError, psycopg.InternalError)
    )
    return Failure(
        sqlstate=error.sqlstate or "",
        exception=type(error).__name__,
        where=Where.CONNECTION if unanswered else where,
        message=str(error).strip(),
        table=error.diag.table_name or "",
    )


def check_schema(postgres: str) -> None:
    """Check that the schema `bulk` is migrated. Raises schema.SchemaMissing, StoreUnavailable, StoreError."""
    with translated(), connect(postgres, "bulkgrpc-worker-check") as connection:
        schema.check(connection)


class PostgresLedger:
    """Implements `Ledger`, with a connection per call: calls are rare."""

    def __init__(self, postgres: str, topic: str) -> None:
        self._postgres, self._topic = postgres, topic

    def acquire(self, partitions: Sequence[int]) -> Mapping[int, Ownership]:
        """Acquire partitions under a new epoch. Raises StoreUnavailable if a former owner locks one for over 1 s."""
        with translated(), connect(self._postgres, "bulkgrpc-worker-acquire") as connection:
            # The former owner may be in a long transaction. Do not wait for it: other partitions are to be read.
            connection.execute(ACQUIRE_LOCK_TIMEOUT)
            return ledger.acquire(connection, self._topic, partitions)

    def read(self, partitions: Sequence[int]) -> Mapping[int, Ownership]:
        """Return the positions of partitions and the epochs of their owners."""
        with translated(), connect(self._postgres, "bulkgrpc-worker-read") as connection:
            return ledger.read(connection, self._topic, partitions)


class PostgresDatasetRegistry:
    """Implements `DatasetRegistry`. Caches every decoder: a registered version never changes."""

    def __init__(self, postgres: str) -> None:
        self._postgres = postgres
        self._codecs: dict[tuple[str, int], BatchCodec] = {}

    def codec(self, name: str, version: int) -> BatchCodec:
        """Return the decoder of a dataset version. Raises DatasetNotFound, StoreUnavailable, StoreError."""
        codec = self._codecs.get((name, version))
        if codec is None:
            codec = self._codecs[name, version] = self._load(name, version)
        return codec

    def _load(self, name: str, version: int) -> BatchCodec:
        try:
            with translated(), connect(self._postgres, "bulkgrpc-worker-catalog") as connection:
                dataset = get_dataset(connection, name, version)
            if dataset is not None:
                return BatchCodec(dataset)
        except InvalidDataset as error:
            raise DatasetNotFound(f"dataset {name} version {version} is no longer valid: {error}") from error
        raise DatasetNotFound(f"dataset {name} version {version} is not in the registry")


class PostgresChunkWriter:
    """Implements `ChunkWriter`. Owns one connection, opened when it is needed and closed after every failure."""

    def __init__(self, postgres: str, topic: str) -> None:
        self._postgres, self._topic = postgres, topic
        self._connection: Connection | None = None
        self._tables = TableWriter()

    def write(self, prepared: PreparedChunk) -> Applied:
        """Apply a chunk in one transaction and commit it. Raises NotNext, WriteFailed."""
        where = Where.CONNECTION
        try:
            connection = self._connect()
            where = Where.STATEMENT
            return write_chunk(connection, self._topic, prepared, self._tables)
        except psycopg.Error as error:
            self.close()
            raise WriteFailed(failure_of(error, where)) from error

    def close(self) -> None:
        """Close the connection. The next `write` opens another."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _connect(self) -> Connection:
        if self._connection is None or self._connection.closed:
            self._connection = connect(self._postgres, "bulkgrpc-worker")
            # Every chunk runs the same few statements. Planning one over all days takes longer than running it.
            self._connection.execute("SET plan_cache_mode = force_generic_plan")
        return self._connection
