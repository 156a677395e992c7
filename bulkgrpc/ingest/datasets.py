"""Datasets as callers see them: registered, read, listed, deleted, with their versions."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from bulkgrpc.datasets.columns import InvalidDataset
from bulkgrpc.datasets.definition import Dataset, define
from bulkgrpc.datasets.evolution import Incompatible
from bulkgrpc.errors import Conflict, Invalid, NotNow, Reason, Unavailable
from bulkgrpc.ingest.dataset_cache import DatasetCache
from bulkgrpc.ingest.jobs import PageRequest
from bulkgrpc.ingest.messages import DATASET_PREFIX
from bulkgrpc.ingest.paging import (
    dataset_page_start,
    page_size,
    token_after_dataset,
    token_after_version,
    version_page_start,
)
from bulkgrpc.ingest.ports import (
    DatasetCatalog,
    DatasetExists,
    JobsNotEnded,
    LockTimeout,
    PostgresUnavailable,
    RegisteredDataset,
    RegistrationPlan,
    RightMissing,
    TableInUse,
    TableNotOwned,
)
from bulkgrpc.ingest.refusals import dataset_not_found, invalid_field, postgres_unavailable
from bulkgrpc.model import is_dataset


@dataclass(frozen=True, slots=True)
class DatasetPage:
    """A page of datasets, or of a dataset's versions. next_page_token: "" on the last page."""

    datasets: Sequence[RegisteredDataset]
    next_page_token: str


class Datasets:
    """What a caller may do with datasets.

    Every method raises Invalid for a wrong name, page size or token, and Unavailable (POSTGRES_UNAVAILABLE).
    """

    def __init__(self, catalog: DatasetCatalog, cache: DatasetCache) -> None:
        self._catalog = catalog
        self._cache = cache

    async def plan(self, descriptors: bytes, message_type: str) -> RegistrationPlan:
        """Return what `register` would do.

        Raises Invalid (INVALID_DATASET), NotNow (DATASET_INCOMPATIBLE), Conflict (DATASET_EXISTS).
        """
        with _registering(message_type):
            return await self._catalog.plan(await self._define(descriptors, message_type))

    async def register(self, descriptors: bytes, message_type: str) -> RegisteredDataset:
        """Register a message type as a dataset, or as the next version of one.

        descriptors: a serialized FileDescriptorSet. Raises Invalid (INVALID_DATASET), NotNow (DATASET_INCOMPATIBLE),
        NotNow (RIGHT_MISSING), Conflict (DATASET_EXISTS), Unavailable (TABLE_BUSY).
        """
        with _registering(message_type):
            registered = await self._catalog.register(await self._define(descriptors, message_type))
        # Streams that open on this process from now on use the registered version.
        self._cache.forget(registered.dataset.name)
        return registered

    async def get(self, name: str) -> RegisteredDataset:
        """Return a dataset in its newest version. Raises NotFound (DATASET_NOT_FOUND)."""
        dataset = dataset_name(name)
        try:
            registered = await self._cache.get(dataset)
        except PostgresUnavailable as error:
            raise postgres_unavailable(error) from error
        if registered is None:
            raise dataset_not_found(dataset, "name")
        return registered

    async def list(self, page: PageRequest) -> DatasetPage:
        """Return a page of datasets by name, each in its newest version."""
        size, after = page_size(page.size), dataset_page_start(page.token)
        try:
            found = await self._catalog.list(size + 1, after)
        except PostgresUnavailable as error:
            raise postgres_unavailable(error) from error
        token = token_after_dataset(found[size - 1].dataset.name) if len(found) > size else ""
        return DatasetPage(found[:size], token)

    async def versions(self, parent: str, page: PageRequest) -> DatasetPage:
        """Return a page of a dataset's versions, newest first. Raises NotFound (DATASET_NOT_FOUND)."""
        dataset = dataset_name(parent, "parent")
        size, before = page_size(page.size), version_page_start(page.token)
        try:
            found = await self._catalog.versions(dataset, size + 1, before)
        except PostgresUnavailable as error:
            raise postgres_unavailable(error) from error
        if not found and not before:
            raise dataset_not_found(dataset, "parent")
        token = token_after_version(found[size - 1].dataset.version) if len(found) > size else ""
        return DatasetPage(found[:size], token)

    async def delete(self, name: str, *, drop_table: bool) -> None:
        """Delete a dataset, and its table if `drop_table`.

        Raises NotFound (DATASET_NOT_FOUND), NotNow (DATASET_HAS_JOBS, TABLE_IN_USE, TABLE_NOT_OWNED, RIGHT_MISSING),
        Unavailable (TABLE_BUSY).
        """
        dataset = dataset_name(name)
        try:
            registered = await self._catalog.delete(dataset, drop_table=drop_table)
        except JobsNotEnded as error:
            raise _has_jobs(dataset, error) from error
        except TableNotOwned as error:
            raise NotNow(
                Reason.TABLE_NOT_OWNED,
                f"table {error} is not the service's, dataset {dataset} is bound to it: omit drop_table, and drop the "
                "table yourself if its rows are not needed",
                field="drop_table",
            ) from error
        except TableInUse as error:
            raise NotNow(
                Reason.TABLE_IN_USE,
                f"table {dataset} cannot be dropped, for {error}: drop that first, or omit drop_table",
                field="drop_table",
            ) from error
        except RightMissing as error:
            raise _right_missing(error, "name") from error
        except PostgresUnavailable as error:
            raise _unavailable(error, f"table {dataset}") from error
        self._cache.forget(dataset)
        if not registered:
            raise dataset_not_found(dataset, "name")

    async def _define(self, descriptors: bytes, message_type: str) -> Dataset:
        if not message_type:
            raise invalid_field("message_type", "message_type is empty: name the message with its package")
        await self._catalog.dry_run(descriptors, message_type)
        # In a thread: large descriptors take a second.
        return await asyncio.to_thread(define, descriptors, message_type)


@contextmanager
def _registering(message_type: str) -> Iterator[None]:
    """Turn what registering a message type may raise into refusals."""
    try:
        yield
    except Incompatible as error:
        raise NotNow(Reason.DATASET_INCOMPATIBLE, str(error), field=error.field) from error
    except InvalidDataset as error:
        raise Invalid(Reason.INVALID_DATASET, str(error), field=error.field) from error
    except DatasetExists as error:
        raise Conflict(Reason.DATASET_EXISTS, str(error), field="message_type") from error
    except RightMissing as error:
        raise _right_missing(error, "message_type") from error
    except PostgresUnavailable as error:
        raise _unavailable(error, f"the table of {message_type}") from error


def _right_missing(error: RightMissing, field: str) -> NotNow:
    return NotNow(
        Reason.RIGHT_MISSING,
        f"the server's role in PostgreSQL lacks a right: {error}; an operator can run "
        "`bulkgrpc migrate --grant-to ROLE`, or make the role the owner of the table",
        field=field,
    )


def _unavailable(error: PostgresUnavailable, table: str) -> Unavailable:
    if isinstance(error, LockTimeout):
        return Unavailable(
            Reason.TABLE_BUSY,
            f"a transaction holds a lock on {table} for longer than 2 s: retry when it has ended",
        )
    return postgres_unavailable(error)


def _has_jobs(name: str, error: JobsNotEnded) -> NotNow:
    more = ", …" if error.count > len(error.names) else ""
    return NotNow(
        Reason.DATASET_HAS_JOBS,
        f"dataset {name} has {error.count} jobs that have not ended ({', '.join(error.names)}{more}): wait until they "
        "have, or cancel them with `bulkgrpc jobs cancel`",
        field="name",
        jobs=str(error.count),
    )


def dataset_name(resource: str, field: str = "name") -> str:
    """Return the name in `datasets/NAME`. Raises Invalid naming the field."""
    name = resource.removeprefix(DATASET_PREFIX)
    if not resource.startswith(DATASET_PREFIX) or not is_dataset(name):
        raise invalid_field(field, f"{field} {resource[:200]!r} is not of the form datasets/DATASET")
    return name
