"""The dataset registry in PostgreSQL: registered by the server, read by everyone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import psycopg
from psycopg_pool import AsyncConnectionPool

from bulkgrpc.datasets.ddl import create_table
from bulkgrpc.datasets.definition import Dataset, define
from bulkgrpc.store import held, statements

_SQL = statements.family("catalog")
Row = tuple[Any, ...]


class DatasetExists(Exception):
    """A dataset, or a table, of this name is there with another definition."""


@dataclass(frozen=True, slots=True)
class Registered:
    """A dataset and when it was registered."""

    dataset: Dataset
    create_time: datetime


class Catalog:
    """The registry through a pool that somebody else owns.

    Every method raises psycopg.Error if PostgreSQL refuses or is away, psycopg_pool.PoolTimeout if no connection comes
    free in time.
    """

    def __init__(self, pool: AsyncConnectionPool[Any]) -> None:
        self._pool = pool

    async def get(self, name: str, version: int = 0) -> Registered | None:
        """Return a version of a dataset (0: the newest), or None."""
        async with self._pool.connection() as connection:
            cursor = await connection.execute(_SQL["get_dataset"], {"dataset": name, "version": version})
            row = await cursor.fetchone()
        return None if row is None else _registered(row)

    async def list(self, page_size: int, after: str = "") -> Sequence[Registered]:
        """Return up to `page_size` datasets by name, those after `after`, each in its newest version."""
        async with self._pool.connection() as connection:
            cursor = await connection.execute(_SQL["list_datasets"], {"page_size": page_size, "after": after})
            return [_registered(row) for row in await cursor.fetchall()]

    async def register(self, dataset: Dataset) -> Registered:
        """Register a new dataset and create its table; the same definition again changes nothing.

        Raises DatasetExists if a dataset or a table of this name is there with another definition.
        """
        known = await self.get(dataset.name)
        if known is not None:
            return _same(known, dataset)
        try:
            async with self._pool.connection() as connection, connection.transaction():
                await connection.execute(create_table(dataset))
                await connection.execute(held.create(dataset))
                cursor = await connection.execute(_SQL["add_dataset"], _values(dataset))
                row = await cursor.fetchone()
        except (psycopg.errors.UniqueViolation, psycopg.errors.DuplicateTable) as error:
            known = await self.get(dataset.name)
            if known is None:
                raise DatasetExists(
                    f"table {dataset.name} is there and no dataset's: name another table in the message's option"
                ) from error
            return _same(known, dataset)
        assert row is not None  # noqa: S101 — INSERT … RETURNING gives a row
        return Registered(dataset, row[0])


def get_dataset(connection: psycopg.Connection[Row], name: str, version: int) -> Dataset | None:
    """Return a version of a dataset, or None: the worker's way, on its own connection."""
    row = connection.execute(_SQL["get_dataset"], {"dataset": name, "version": version}).fetchone()
    return None if row is None else _registered(row).dataset


def _same(known: Registered, dataset: Dataset) -> Registered:
    """Return what is known if it is the same definition; descriptors may differ in comments and order only."""
    other = known.dataset
    if (other.message_type, other.key, other.columns) != (dataset.message_type, dataset.key, dataset.columns):
        raise DatasetExists(
            f"dataset {dataset.name} is registered with another definition: give the message another table"
        )
    return known


def _values(dataset: Dataset) -> dict[str, object]:
    return {
        "dataset": dataset.name,
        "version": dataset.version,
        "message_type": dataset.message_type,
        "descriptors": dataset.descriptors,
    }


def _registered(row: Row) -> Registered:
    _, version, message_type, descriptors, create_time = row
    return Registered(define(descriptors, message_type, version), create_time)
