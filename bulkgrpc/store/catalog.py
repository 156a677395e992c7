"""The dataset registry in PostgreSQL: registered by the server, read by everyone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

import psycopg
from psycopg import sql
from psycopg_pool import AsyncConnectionPool

from bulkgrpc.datasets.ddl import create_table
from bulkgrpc.datasets.definition import Dataset, define
from bulkgrpc.datasets.evolution import evolve, same
from bulkgrpc.store import held, statements

_SQL = statements.family("catalog")
# Changing a table waits for its writers, and they for it: give up while they can bear it.
_LOCK_TIMEOUT = "SET LOCAL lock_timeout = '2s'"
Row = tuple[Any, ...]


class DatasetExists(Exception):
    """A table of this name is there, and is no dataset's."""


@dataclass(frozen=True, slots=True)
class Registered:
    """A dataset and when it was registered."""

    dataset: Dataset
    create_time: datetime


@dataclass(frozen=True, slots=True)
class Plan:
    """What registering a dataset does. dataset: with its version. statements: on its table."""

    dataset: Dataset
    statements: tuple[sql.Composed, ...]
    new_version: bool


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

    async def versions(self, name: str, page_size: int, before: int = 0) -> Sequence[Registered]:
        """Return up to `page_size` versions of a dataset, the newest first, those below `before` (0: all)."""
        async with self._pool.connection() as connection:
            values = {"dataset": name, "page_size": page_size, "before": before}
            cursor = await connection.execute(_SQL["list_versions"], values)
            return [_registered(row) for row in await cursor.fetchall()]

    async def plan(self, dataset: Dataset) -> Plan:
        """Return what registering a dataset would do. Raises Incompatible if it is no next version of what is there."""
        known = await self.get(dataset.name)
        return plan(None if known is None else known.dataset, dataset)

    async def register(self, dataset: Dataset) -> Registered:
        """Register a dataset and create its table, or its next version and change it; the same changes nothing.

        dataset: its version is chosen here. Raises DatasetExists if a table of this name is there and no dataset's,
        Incompatible if it is no next version of what is there, psycopg.errors.LockNotAvailable if the table is in use
        for longer than it takes to wait for.
        """
        try:
            async with self._pool.connection() as connection, connection.transaction():
                await connection.execute(_LOCK_TIMEOUT)
                await connection.execute(_SQL["lock_dataset"], {"dataset": dataset.name})
                cursor = await connection.execute(_SQL["get_dataset"], {"dataset": dataset.name, "version": 0})
                row = await cursor.fetchone()
                known = None if row is None else _registered(row)
                planned = plan(None if known is None else known.dataset, dataset)
                if known is not None and not planned.new_version:
                    return known
                for statement in planned.statements:
                    await connection.execute(statement)
                await connection.execute(held.create(planned.dataset))
                cursor = await connection.execute(_SQL["add_dataset"], _values(planned.dataset))
                row = await cursor.fetchone()
        except psycopg.errors.DuplicateTable as error:
            raise DatasetExists(
                f"table {dataset.name} is there and no dataset's: name another table in the message's option"
            ) from error
        assert row is not None  # noqa: S101 — INSERT … RETURNING gives a row
        return Registered(planned.dataset, row[0])


def plan(known: Dataset | None, dataset: Dataset) -> Plan:
    """Return what registering `dataset` does where `known` is the newest version of its name.

    Raises Incompatible if it is no next version of it.
    """
    if known is None:
        return Plan(replace(dataset, version=1), (create_table(dataset),), new_version=True)
    if same(known, dataset):
        return Plan(known, (), new_version=False)
    return Plan(replace(dataset, version=known.version + 1), evolve(known, dataset), new_version=True)


def get_dataset(connection: psycopg.Connection[Row], name: str, version: int) -> Dataset | None:
    """Return a version of a dataset, or None: the worker's way, on its own connection."""
    row = connection.execute(_SQL["get_dataset"], {"dataset": name, "version": version}).fetchone()
    return None if row is None else _registered(row).dataset


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
