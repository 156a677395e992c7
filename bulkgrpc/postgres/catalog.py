"""The dataset registry: adapter of the port `bulkgrpc.ingest.ports.DatasetCatalog`; workers read it too."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

import psycopg
from psycopg import sql
from psycopg_pool import AsyncConnectionPool

from bulkgrpc.datasets.binding import quoted
from bulkgrpc.datasets.ddl import SCHEMA, create_periods, create_table
from bulkgrpc.datasets.ddl import drop_table as drop_table_of
from bulkgrpc.datasets.definition import Dataset, define
from bulkgrpc.datasets.evolution import FoundColumn, Incompatible, evolve, same, take_over
from bulkgrpc.datasets.meaning import digest_of_schema
from bulkgrpc.datasets.table_description import Table
from bulkgrpc.datasets.table_fit import Fit, Misfit, fit, unusable
from bulkgrpc.datasets.table_report import TableReport, report
from bulkgrpc.ingest.ports import (
    DatasetExists,
    JobsNotEnded,
    RegisteredDataset,
    RegistrationPlan,
    RightMissing,
    TableInUse,
    TableNotOwned,
)
from bulkgrpc.limits import CALL_DEADLINE_S, STREAM_DEADLINE_S
from bulkgrpc.postgres import dedupe, staged, statements
from bulkgrpc.postgres.deadlines import within
from bulkgrpc.postgres.dry_run_process import dry_run
from bulkgrpc.postgres.table_contract import describe_for_registration

_SQL = statements.family("catalog")
# Changing a table waits for its writers, and new ones wait for the change: give up before they run into timeouts.
_LOCK_TIMEOUT = "SET LOCAL lock_timeout = '2s'"
Row = tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Plan:
    """What registering a dataset does.

    dataset: with its version. statements: to be run on its table. creates_table: whether they create it.
    """

    dataset: Dataset
    statements: tuple[sql.Composed, ...]
    new_version: bool
    creates_table: bool = False


class Catalog:
    """The registry through a pool that the process owns.

    Every method raises PostgresUnavailable after its deadline. See the port for what each promises.
    """

    def __init__(self, pool: AsyncConnectionPool[Any]) -> None:
        self._pool = pool

    @within(STREAM_DEADLINE_S)
    async def get(self, name: str) -> RegisteredDataset | None:
        """Return the newest version of a dataset, or None if there is none or it is deleted."""
        async with self._pool.connection() as connection:
            found = await _newest(connection, name)
        return None if found is None or found.deleted else found

    @within(CALL_DEADLINE_S)
    async def list(self, page_size: int, after: str = "") -> Sequence[RegisteredDataset]:
        """Return up to `page_size` datasets by name, those after `after`, each in its newest version."""
        async with self._pool.connection() as connection:
            cursor = await connection.execute(_SQL["list_datasets"], {"page_size": page_size, "after": after})
            return [_registered(row) for row in await cursor.fetchall()]

    @within(CALL_DEADLINE_S)
    async def versions(self, name: str, page_size: int, before: int = 0) -> Sequence[RegisteredDataset]:
        """Return up to `page_size` versions of a dataset, newest first, those below `before` (0: all)."""
        async with self._pool.connection() as connection:
            values = {"dataset": name, "page_size": page_size, "before": before}
            cursor = await connection.execute(_SQL["list_versions"], values)
            return [_registered(row) for row in await cursor.fetchall()]

    async def dry_run(self, descriptors: bytes, message_type: str) -> None:
        """Do once what a worker does with a dataset's records. Raises InvalidDataset."""
        if not await self._is_registered(descriptors, message_type):
            await dry_run(descriptors, message_type)

    @within(CALL_DEADLINE_S)
    async def _is_registered(self, descriptors: bytes, message_type: str) -> bool:
        async with self._pool.connection() as connection:
            values = {"descriptors": descriptors, "message_type": message_type}
            return await (await connection.execute(_SQL["is_registered"], values)).fetchone() is not None

    @within(CALL_DEADLINE_S)
    async def plan(self, dataset: Dataset) -> RegistrationPlan:
        """Return what `register` would do.

        Raises Incompatible if it is not a next version of the registered one, or its table cannot be written;
        DatasetExists if its table would be created and the name is taken.
        """
        async with self._pool.connection() as connection:
            known = await _newest(connection, dataset.name)
            planned = plan(known, dataset, await _table(connection, dataset.name))
            found = await _described(connection, dataset)
            if planned.creates_table:
                await _check_name_is_free(connection, dataset)
        if dataset.existing is not None:
            return RegistrationPlan(planned.dataset, (), planned.new_version, _report(planned.dataset, found))
        if known is not None and planned.new_version and found is not None:
            _raise_if_misfit(unusable(dataset, found))
        statements = tuple(statement.as_string(None) for statement in planned.statements)
        return RegistrationPlan(planned.dataset, statements, planned.new_version)

    @within(CALL_DEADLINE_S)
    async def register(self, dataset: Dataset) -> RegisteredDataset:
        """Register a dataset and create its table, or register its next version and change the table.

        Registering the same again changes nothing. A deleted dataset gets the next version, and its table if that was
        kept and fits. dataset: its version is chosen here. Raises DatasetExists, Incompatible, RightMissing,
        LockTimeout.
        """
        try:
            async with self._pool.connection() as connection, connection.transaction():
                await connection.execute(_LOCK_TIMEOUT)
                await connection.execute(_SQL["lock_dataset"], {"dataset": dataset.name})
                known = await _newest(connection, dataset.name)
                planned = plan(known, dataset, await _table(connection, dataset.name))
                if known is not None and not planned.new_version:
                    return known
                if planned.creates_table:
                    await _check_name_is_free(connection, dataset)
                for statement in planned.statements:
                    await connection.execute(statement)
                found = await _described(connection, planned.dataset)
                _raise_if_misfit(None if found is None else fit(planned.dataset, found))
                if found is None and dataset.existing is not None:
                    raise Incompatible("existing_table", _missing(dataset))
                await connection.execute(staged.create(planned.dataset))
                if planned.dataset.dedupe_window_s:
                    await connection.execute(dedupe.create(planned.dataset))
                cursor = await connection.execute(_SQL["add_dataset"], _values(planned.dataset))
                row = await cursor.fetchone()
        except psycopg.errors.InsufficientPrivilege as error:
            raise RightMissing(error.diag.message_primary or str(error)) from error
        except (psycopg.errors.DuplicateTable, psycopg.errors.DuplicateObject) as error:
            # It was created meanwhile.
            what = "table" if isinstance(error, psycopg.errors.DuplicateTable) else "type"
            raise _exists(what, dataset) from error
        assert row is not None  # noqa: S101 — INSERT … RETURNING returns a row
        first_version = 1 if known is None else known.first_version
        registered = replace(planned.dataset, schema_digest=digest_of_schema(planned.dataset))
        return RegisteredDataset(registered, row[0], first_version)

    @within(CALL_DEADLINE_S)
    async def delete(self, name: str, *, drop_table: bool) -> bool:
        """Delete a dataset, and its table with its rows if `drop_table`; return whether it was registered.

        Its versions stay, marked as deleted, so that their numbers are not used again and batches of them can be
        decoded. Raises JobsNotEnded, TableInUse, TableNotOwned, RightMissing, LockTimeout.
        """
        values = {"dataset": name}
        try:
            async with self._pool.connection() as connection, connection.transaction():
                await connection.execute(_LOCK_TIMEOUT)
                await connection.execute(_SQL["lock_dataset"], values)
                known = await _newest(connection, name)
                if drop_table and known is not None and not known.deleted and known.dataset.existing is not None:
                    raise TableNotOwned(known.dataset.table)
                # From here on no job of it is opened: the existing ones decide.
                await connection.execute(_SQL["lock_out_jobs"], values)
                cursor = await connection.execute(_SQL["jobs_not_ended"], values)
                for count, names in await cursor.fetchall():
                    if count:
                        raise JobsNotEnded(count, names)
                cursor = await connection.execute(_SQL["delete_dataset"], values)
                versions = [version for (version,) in await cursor.fetchall()]
                for version in versions:
                    await connection.execute(staged.drop(staged.StagedTable(name, version)))
                if versions:
                    await connection.execute(dedupe.drop(name))
                if versions and drop_table:
                    await connection.execute(drop_table_of(name))
        except psycopg.errors.InsufficientPrivilege as error:
            raise RightMissing(error.diag.message_primary or str(error)) from error
        except psycopg.errors.DependentObjectsStillExist as error:
            raise TableInUse(error.diag.message_detail or str(error)) from error
        return bool(versions)


def plan(known: RegisteredDataset | None, dataset: Dataset, table: Mapping[str, FoundColumn]) -> Plan:
    """Return what registering `dataset` does.

    known: the newest version of its name, deleted or not. table: the columns of the table of its name, empty if there
    is no table. Raises Incompatible if it is not a next version of `known`, or does not fit a table that was kept.
    """
    made: tuple[sql.Composed, ...] = ()
    if dataset.existing is None:
        made = (create_table(dataset), *create_periods(dataset, datetime.now(UTC).date()))
    if known is None:
        return Plan(replace(dataset, version=1), made, new_version=True, creates_table=bool(made))
    following = replace(dataset, version=known.dataset.version + 1)
    if known.deleted:
        # A table of that name which the deleted dataset did not create is not the service's.
        owned = dataset.existing is None and known.dataset.existing is None
        if table and owned:
            return Plan(following, take_over(known.dataset, dataset, table), new_version=True)
        return Plan(following, made, new_version=True, creates_table=bool(made))
    if same(known.dataset, dataset):
        return Plan(known.dataset, (), new_version=False)
    return Plan(following, evolve(known.dataset, dataset), new_version=True)


async def _check_name_is_free(connection: psycopg.AsyncConnection[Row], dataset: Dataset) -> None:
    row = await (await connection.execute(_SQL["name_taken"], {"dataset": dataset.name})).fetchone()
    if row is not None and row[0]:
        raise _exists(row[0], dataset)


def _exists(what: str, dataset: Dataset) -> DatasetExists:
    return DatasetExists(
        f"{what} {dataset.name} exists and belongs to no dataset: bind the dataset to it with `existing_table` in the "
        "message's option, or name another table"
    )


async def _described(connection: psycopg.AsyncConnection[Row], dataset: Dataset) -> Table | None:
    """Return what a dataset's table is, None if there is none. Raises Incompatible if its schema cannot be read."""
    try:
        async with connection.transaction():
            return await describe_for_registration(connection, dataset)
    except psycopg.errors.InsufficientPrivilege as error:
        schema = SCHEMA if dataset.existing is None else quoted(dataset.existing.schema)
        raise Incompatible(
            "existing_table.schema",
            f"{error.diag.message_primary}: run GRANT USAGE ON SCHEMA {schema} TO {connection.info.user}",
        ) from error


def _report(dataset: Dataset, found: Table | None) -> TableReport:
    return TableReport(refusals=(_missing(dataset),)) if found is None else report(dataset, found)


def _missing(dataset: Dataset) -> str:
    return f"table {dataset.table} is not there: create it, or name another one in existing_table (case matters)"


def _raise_if_misfit(found: Fit | Misfit | None) -> None:
    if isinstance(found, Misfit):
        raise Incompatible("", found.reason)


async def _newest(connection: psycopg.AsyncConnection[Row], name: str) -> RegisteredDataset | None:
    cursor = await connection.execute(_SQL["get_dataset"], {"dataset": name, "version": 0})
    row = await cursor.fetchone()
    return None if row is None else _registered(row)


async def _table(connection: psycopg.AsyncConnection[Row], name: str) -> dict[str, FoundColumn]:
    cursor = await connection.execute(_SQL["table_columns"], {"dataset": name})
    return {column: FoundColumn(*rest) for column, *rest in await cursor.fetchall()}


def get_dataset(connection: psycopg.Connection[Row], name: str, version: int) -> Dataset | None:
    """Return a version of a dataset, deleted or not, or None; for workers, on their own connection."""
    row = connection.execute(_SQL["get_dataset"], {"dataset": name, "version": version}).fetchone()
    return None if row is None else _registered(row).dataset


def _values(dataset: Dataset) -> dict[str, object]:
    return {
        "dataset": dataset.name,
        "version": dataset.version,
        "message_type": dataset.message_type,
        "descriptors": dataset.descriptors,
        "schema_digest": digest_of_schema(dataset),
    }


def _registered(row: Row) -> RegisteredDataset:
    _, version, message_type, descriptors, create_time, first_version, digest = row
    dataset = replace(define(descriptors, message_type, version), schema_digest=digest)
    return RegisteredDataset(dataset, create_time, first_version)
