"""The worker's ports on PostgreSQL: ledger, dataset registry and chunk writer.

Each translates psycopg's errors into those of `bulkgrpc.consume.ports`. What a failure leads to is decided in
`bulkgrpc.consume.failures`.
"""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from types import MappingProxyType

import psycopg

from bulkgrpc import limits
from bulkgrpc.consume.decode import DatasetNotFound, DecodableChunk, PreparedChunk
from bulkgrpc.consume.deferral import QueueKey
from bulkgrpc.consume.express import LeftToMainPath
from bulkgrpc.consume.failures import BlockCause, Failure, Where
from bulkgrpc.consume.ports import (
    Applied,
    DatasetRegistry,
    NewerFormat,
    NotNext,
    Pace,
    ParkedQueue,
    SliceFailed,
    StoreError,
    StoreUnavailable,
    WriteFailed,
)
from bulkgrpc.datasets.codec import BatchCodec
from bulkgrpc.datasets.columns import InvalidDataset
from bulkgrpc.datasets.table_fit import TableMisfit
from bulkgrpc.model import JobKey
from bulkgrpc.positions import Ownership
from bulkgrpc.postgres import ledger, parked, schema
from bulkgrpc.postgres.apply import RowsFailed
from bulkgrpc.postgres.catalog import get_dataset
from bulkgrpc.postgres.connection import Connection, Deadlines, connect
from bulkgrpc.postgres.outage import explained
from bulkgrpc.postgres.parked import Undecodable
from bulkgrpc.postgres.table_contract import TableContracts
from bulkgrpc.postgres.transaction import Drain, SliceAborted, drain_slice, write_ahead, write_chunk
from bulkgrpc.postgres.unavailable import Meaning, meaning_of
from bulkgrpc.postgres.writers.row_errors import context_of
from bulkgrpc.postgres.writers.table import TableWriter

ACQUIRE_LOCK_TIMEOUT = "SET LOCAL lock_timeout = '1s'"


@contextmanager
def translated() -> Iterator[None]:
    """Raise StoreUnavailable for an error that can end by itself, StoreError for any other of psycopg."""
    try:
        yield
    except psycopg.Error as error:
        raised = StoreError if meaning_of(error) is Meaning.OTHER else StoreUnavailable
        raise raised(explained(error)) from error


def failure_of(error: BaseException, where: Where, dataset: str = "") -> Failure:
    """Return a failure as a value. where: what was under way. dataset: whose rows were written or decoded."""
    if isinstance(error, Undecodable):
        return error.failure
    if not isinstance(error, psycopg.Error):
        missing = error.missing_version if isinstance(error, DatasetNotFound) else 0
        return Failure(where, "", type(error).__name__, str(error).strip(), dataset=dataset, missing_version=missing)
    # An InternalError without a code is libpq's: the server's answer did not fit the protocol.
    name = "OperationalError" if isinstance(error, psycopg.InternalError) else type(error).__name__
    if error.sqlstate is None and isinstance(error, psycopg.OperationalError):
        name = "OperationalError"
    message = error.diag.message_primary or str(error).strip()
    return Failure(where, error.sqlstate or "", name, message, context_of(error), dataset)


def check_schema(postgres: str) -> None:
    """Check the schema and the role's rights. Raises SchemaMissing, RightsMissing, StoreUnavailable, StoreError."""
    with translated(), connect(postgres, "bulkgrpc-worker-check") as connection:
        schema.check(connection)


class PostgresLedger:
    """Implements `Ledger`, with a connection per call: calls are rare."""

    def __init__(self, postgres: str, topic: str) -> None:
        self._postgres, self._topic = postgres, topic

    def acquire(self, partitions: Sequence[int]) -> Mapping[int, Ownership]:
        """Acquire partitions under a new epoch. Raises StoreUnavailable if a former owner locks one for over 1 s."""
        with translated(), connect(self._postgres, "bulkgrpc-worker-acquire") as connection, connection.transaction():
            # The former owner may be in a long transaction. Do not wait for it: other partitions are to be read.
            connection.execute(ACQUIRE_LOCK_TIMEOUT)
            return ledger.acquire(connection, self._topic, partitions)

    def read(self, partitions: Sequence[int]) -> Mapping[int, Ownership]:
        """Return the positions of partitions and the epochs of their owners."""
        with translated(), connect(self._postgres, "bulkgrpc-worker-read") as connection:
            return ledger.read(connection, self._topic, partitions)


class PostgresDatasetRegistry:
    """Implements `DatasetRegistry`. Caches every decoder: a registered version never changes, unless it is restored."""

    def __init__(self, postgres: str) -> None:
        self._postgres = postgres
        self._codecs: dict[tuple[str, int], BatchCodec] = {}
        self._loading: dict[tuple[str, int], threading.Lock] = {}

    def codec(self, name: str, version: int) -> BatchCodec:
        """Return the decoder of a dataset version. Raises DatasetNotFound, StoreUnavailable, StoreError.

        Threads that ask for the same version at once wait for one of them to load it.
        """
        if (codec := self._codecs.get((name, version))) is not None:
            return codec
        with self._loading.setdefault((name, version), threading.Lock()):
            codec = self._codecs.get((name, version))
            if codec is None:
                try:
                    codec = self._codecs[name, version] = self._load(name, version)
                finally:
                    # Names that are not registered may be any number.
                    self._loading.pop((name, version), None)
            return codec

    def forget(self) -> None:
        """Load every decoder again."""
        self._codecs = {}

    def _load(self, name: str, version: int) -> BatchCodec:
        try:
            with translated(), connect(self._postgres, "bulkgrpc-worker-catalog") as connection:
                dataset = get_dataset(connection, name, version)
            if dataset is not None:
                return BatchCodec(dataset)
        except InvalidDataset as error:
            raise DatasetNotFound(f"dataset {name} version {version} is no longer valid: {error}") from error
        raise DatasetNotFound(
            f"version {version} of dataset {name} is not in the registry: register its message type again, or restore "
            "the registry; the records are kept and are written then",
            version,
        )

    def has_job(self, job: JobKey) -> bool:
        """Return whether the ledger has a job."""
        with translated(), connect(self._postgres, "bulkgrpc-worker-catalog") as connection:
            return ledger.has_job(connection, job)


class WorkerSession:
    """A connection that is opened when it is needed, and closed after a failure of PostgreSQL.

    more: settings, and deadlines: as for `connection.connect`.
    """

    def __init__(
        self,
        postgres: str,
        name: str,
        deadlines: Deadlines | None = None,
        more: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self._postgres, self._name, self._deadlines, self._more = postgres, name, deadlines, more
        self._connection: Connection | None = None

    def open(self) -> Connection:
        """Return the connection."""
        if self._connection is None or self._connection.closed:
            # Every chunk runs the same few statements. Planning one over all days takes longer than running it.
            settings = {"plan_cache_mode": "force_generic_plan", **self._more}
            self._connection = connect(self._postgres, self._name, self._deadlines, settings)
        return self._connection

    def close(self) -> None:
        """Close the connection. `open` opens another."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None


@contextmanager
def _write_failed(session: WorkerSession) -> Iterator[Connection]:
    """Open the session, and raise WriteFailed for whatever fails; the errors of the ports as they are."""
    where = Where.CONNECT
    try:
        connection = session.open()
        where = Where.LEDGER
        yield connection
    except RowsFailed as error:
        cause = error.__cause__ or error
        raise WriteFailed(failure_of(cause, Where.ROWS, error.dataset)) from error
    except (NotNext, LeftToMainPath, WriteFailed):
        raise
    except Exception as error:
        # Any exception: one that is not PostgreSQL's is of this code, and must not end the process either.
        session.close()
        raise WriteFailed(failure_of(error, where)) from error


class PostgresChunkWriter:
    """Implements `ChunkWriter`. on_task: called after a chunk that left an atomic job to a task."""

    def __init__(self, postgres: str, topic: str, on_task: Callable[[], None] = lambda: None) -> None:
        self._topic, self._on_task = topic, on_task
        self._session = WorkerSession(postgres, "bulkgrpc-worker")
        self._tables = TableWriter(TableContracts(limits.ROWS_TIMEOUT_S))

    def write(self, chunk: DecodableChunk, blocked: Collection[str] = ()) -> Applied:
        """Apply a chunk in one transaction and commit it. Raises NotNext, WriteFailed."""
        with _write_failed(self._session) as connection:
            applied = write_chunk(connection, self._topic, chunk, self._tables, blocked)
        if applied.tasks:
            self._on_task()
        return applied

    def block(self, dataset: str, cause: BlockCause, failure: Failure) -> None:
        """Block a dataset: the next `write` parks its messages. Raises WriteFailed."""
        try:
            parked.block_dataset(self._session.open(), dataset, cause, failure)
        except psycopg.Error as error:
            self.close()
            raise WriteFailed(failure_of(error, Where.LEDGER)) from error

    def close(self) -> None:
        """Close the connection. The next `write` opens another."""
        self._session.close()


class PostgresExpressWriter:
    """Implements `ExpressWriter`. on_task: as for `PostgresChunkWriter`."""

    def __init__(self, postgres: str, topic: str, on_task: Callable[[], None] = lambda: None) -> None:
        self._topic, self._on_task = topic, on_task
        self._session = WorkerSession(postgres, "bulkgrpc-worker-express")
        self._tables = TableWriter(TableContracts(limits.EXPRESS_ROWS_TIMEOUT_S))

    def write(self, prepared: PreparedChunk) -> Applied:
        """Apply messages in one transaction and commit it. Raises LeftToMainPath, NotNext, WriteFailed."""
        with _write_failed(self._session) as connection:
            applied = write_ahead(connection, self._topic, prepared, self._tables)
        if applied.tasks:
            self._on_task()
        return applied

    def close(self) -> None:
        """Close the connection. The next `write` opens another."""
        self._session.close()


class PostgresParkedMessages:
    """Implements `ParkedMessages`. on_applied: called after a slice, which may have left an atomic job to a task."""

    def __init__(
        self,
        postgres: str,
        topic: str,
        registry: DatasetRegistry,
        read: parked.MessageReader,
        on_applied: Callable[[], None] = lambda: None,
    ) -> None:
        self._topic, self._registry, self._read = topic, registry, read
        self._on_applied = on_applied
        self._session = WorkerSession(postgres, "bulkgrpc-worker-drain")
        seconds = {
            Pace.USUAL: limits.ROWS_TIMEOUT_S,
            Pace.LONG: limits.DRAIN_ROWS_TIMEOUT_S,
            Pace.LONGEST: limits.STATEMENT_TIMEOUT_S,
        }
        self._tables = {pace: TableWriter(TableContracts(timeout_s)) for pace, timeout_s in seconds.items()}

    def queues(self) -> Sequence[ParkedQueue]:
        """Return the queues with parked messages that may be applied or are to be discarded."""
        with self._translated():
            return parked.queues(self._session.open(), self._topic)

    def drain(self, queue: QueueKey, messages_max: int, *, pace: Pace, merges: bool) -> int:
        """Apply the first parked messages of a queue that may be applied. Raises SliceFailed, NewerFormat."""
        return self._drain(queue, messages_max, pace, merges=merges)

    def claim_trial(self) -> str | None:
        """Claim a blocked dataset whose next trial is due."""
        with self._translated():
            return parked.claim_trial(self._session.open())

    def try_dataset(self, dataset: str) -> bool:
        """Check the table of a blocked dataset, apply one parked message of it, and unblock it. Raises SliceFailed."""
        with self._translated():
            connection = self._session.open()
            newest = get_dataset(connection, dataset, 0)
            queue = parked.queue_of_dataset(connection, self._topic, dataset)
        if newest is not None:
            try:
                contracts = self._tables[Pace.USUAL].contracts
                with connection.transaction(), contracts.one_transaction(connection):
                    contracts.check(connection, newest)
            except (psycopg.Error, TableMisfit) as error:
                raise SliceFailed(failure_of(error, Where.ROWS, dataset), []) from error
            if queue is not None:
                # A newer worker tries a message that this one does not read.
                with suppress(NewerFormat):
                    return self._drain(queue, 1, Pace.USUAL, trial=True) > 0
        # Nothing may be tried: the main path tries.
        with self._translated():
            return parked.unblock_dataset(connection, dataset)

    def end_isolation(self) -> Sequence[str]:
        """Forget isolation that has been over for a while."""
        with self._translated():
            return parked.end_isolation(self._session.open())

    def end_discards(self) -> None:
        """Delete the discards that have no parked message left."""
        with self._translated():
            parked.end_discards(self._session.open(), self._topic)

    def block(self, dataset: str, cause: BlockCause, failure: Failure) -> None:
        """Block a dataset, or change why it is blocked."""
        with self._translated():
            parked.block_dataset(self._session.open(), dataset, cause, failure)

    def prolong_isolation(self, dataset: str) -> None:
        """Keep the main path off a dataset that is isolating for longer."""
        with self._translated():
            parked.prolong_isolation(self._session.open(), dataset)

    def block_job(self, job_id: uuid.UUID, failure: Failure) -> None:
        """Defer a job as a whole, until its next trial."""
        with self._translated():
            parked.block_job(self._session.open(), job_id, failure)

    def close(self) -> None:
        """Close the connection. The next call opens another."""
        self._session.close()

    def _drain(
        self, queue: QueueKey, messages_max: int, pace: Pace, *, trial: bool = False, merges: bool = False
    ) -> int:
        how = Drain(self._topic, queue, messages_max, self._registry.codec, self._read, trial, merges)
        with self._translated():
            connection = self._session.open()
        try:
            applied = drain_slice(connection, how, self._tables[pace])
        except SliceAborted as error:
            failure = failure_of(error.__cause__ or error, Where.ROWS if error.dataset else Where.LEDGER, error.dataset)
            raise SliceFailed(failure, [item.message.spec.key.job_id for item in error.items]) from error
        if applied:
            self._on_applied()
        return applied

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            with translated():
                yield
        except StoreError:
            self.close()
            raise
