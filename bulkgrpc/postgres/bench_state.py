"""Puts the database of `bulkgrpc bench`, and its tables of sensor readings, into the state in which a round starts."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from psycopg import sql
from psycopg_pool import AsyncConnectionPool

from bulkgrpc.datasets.ddl import table
from bulkgrpc.datasets.definition import Dataset
from bulkgrpc.postgres import dedupe, schema
from bulkgrpc.postgres.catalog import Catalog
from bulkgrpc.postgres.connection import Connection
from bulkgrpc.postgres.databases import recreate_database
from bulkgrpc.postgres.filters import make_filters

_NUMBER = sql.SQL("(value * 4)::bigint")
"""The number of a reading: `bulkgrpc.bench.readings` derives `value` from it."""
_SAVED = sql.Identifier("bench_saved")


def prepare_database(postgres: str, name: str, datasets: Sequence[Dataset]) -> str:
    """Recreate a database with the `bulk` schema and these datasets. Return its connection string.

    postgres: connection string of another database of the server. Raises PostgresError.
    """
    database = recreate_database(postgres, name)
    schema.migrate(database)
    asyncio.run(_register(database, datasets))
    return database


def clear(connection: Connection, dataset: Dataset) -> None:
    """Empty a dataset's table and write a checkpoint."""
    connection.execute(sql.SQL("TRUNCATE {}").format(table(dataset)))
    checkpoint(connection)


def checkpoint(connection: Connection) -> None:
    """Write a checkpoint, so that no background write of an earlier round falls into the next."""
    connection.execute("CHECKPOINT")


def clear_without_autovacuum(connection: Connection, dataset: Dataset) -> None:
    """Empty a dataset's table and turn autovacuum off for it: it would run in the middle of a measurement."""
    connection.execute(sql.SQL("TRUNCATE {}").format(table(dataset)))
    connection.execute(sql.SQL("ALTER TABLE {} SET (autovacuum_enabled = false)").format(table(dataset)))


def reject_one_row_in(connection: Connection, dataset: Dataset, count: int) -> None:
    """Add a check constraint that every `count`-th reading violates."""
    check = sql.SQL("ALTER TABLE {} ADD CONSTRAINT bench_rejects CHECK ({} % {} <> 0)")
    connection.execute(check.format(table(dataset), _NUMBER, count))


def save_rows(connection: Connection, dataset: Dataset) -> None:
    """Copy a dataset's rows into a table from which `reset` takes rows."""
    connection.execute(sql.SQL("CREATE UNLOGGED TABLE {} AS SELECT * FROM {}").format(_SAVED, table(dataset)))


def reset(connection: Connection, dataset: Dataset, *, one_row_in: int) -> None:
    """Empty a dataset's table, insert every `one_row_in`-th saved row (0: none), vacuum, and write a checkpoint."""
    connection.execute(sql.SQL("TRUNCATE {}").format(table(dataset)))
    if one_row_in:
        insert = sql.SQL("INSERT INTO {} SELECT * FROM {} WHERE {} % {} = 0")
        connection.execute(insert.format(table(dataset), _SAVED, _NUMBER, one_row_in))
    connection.execute(sql.SQL("VACUUM ANALYZE {}").format(table(dataset)))
    checkpoint(connection)


def forget_records(connection: Connection, dataset: Dataset) -> None:
    """Remove all record hashes of a dataset with a dedupe window."""
    connection.execute(sql.SQL("TRUNCATE {}, {}").format(*dedupe.names(dataset.name)))
    connection.execute("UPDATE bulk.dedupe SET filter = NULL, rotate_time = now() WHERE dataset = %s", (dataset.name,))


def remember_random_records(connection: Connection, dataset: Dataset, count: int) -> None:
    """Add `count` random record hashes to the previous generation of a dataset's hashes, and build its filter."""
    _, older = dedupe.names(dataset.name)
    insert = sql.SQL("INSERT INTO {} SELECT gen_random_uuid() AS hash, now() FROM generate_series(1, %s) ORDER BY 1")
    connection.execute(insert.format(older), (count,))
    make_filters(connection)


def remember_records_of(connection: Connection, dataset: Dataset, other: Dataset) -> None:
    """Copy the record hashes of another dataset into the current generation of a dataset's hashes."""
    (current, _), (copied, _) = dedupe.names(dataset.name), dedupe.names(other.name)
    connection.execute(sql.SQL("INSERT INTO {} SELECT * FROM {} ORDER BY hash").format(current, copied))


async def _register(postgres: str, datasets: Sequence[Dataset]) -> None:
    async with AsyncConnectionPool(postgres, open=False, min_size=1, kwargs={"autocommit": True}) as pool:
        for dataset in datasets:
            await Catalog(pool).register(dataset)
