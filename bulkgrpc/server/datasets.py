"""DatasetService: message types registered, read, listed, and their versions."""

from __future__ import annotations

import asyncio

import psycopg

from bulkgrpc.datasets.columns import InvalidDataset
from bulkgrpc.datasets.definition import define
from bulkgrpc.datasets.evolution import Incompatible
from bulkgrpc.errors import Conflict, Invalid, NotFound, NotNow, Reason, Unavailable
from bulkgrpc.model import is_dataset
from bulkgrpc.postgres.catalog import DatasetExists, JobsNotEnded, Plan, Registered, TableInUse
from bulkgrpc.postgres.dry_run import dry_run
from bulkgrpc.server.caller import ADMIN, READ, Callers
from bulkgrpc.server.guard import Context, metadata_of
from bulkgrpc.server.messages import DATASET_PREFIX
from bulkgrpc.server.paging import (
    dataset_page_start,
    page_size,
    token_after_dataset,
    token_after_version,
    version_page_start,
)
from bulkgrpc.server.storage import PostgresUnavailable, Storage, postgres_unavailable
from bulkgrpc.server.translate import to_dataset
from bulkgrpc.v1 import datasets_pb2


class DatasetService:
    """The RPCs of `datasets.proto`."""

    def __init__(self, callers: Callers, storage: Storage) -> None:
        self._callers = callers
        self._storage = storage

    async def register_dataset(
        self, request: datasets_pb2.RegisterDatasetRequest, context: Context
    ) -> datasets_pb2.RegisterDatasetResponse:
        """Register a message type and make or change its table, or tell what would be done."""
        caller = await self._callers.identify(metadata_of(context))
        caller.require(ADMIN)
        if not request.message_type:
            raise Invalid(
                Reason.INVALID_FIELD, "message_type is empty: name the message, with its package", field="message_type"
            )
        try:
            dataset = define(request.descriptors.SerializeToString(), request.message_type)
            await asyncio.to_thread(dry_run, dataset)
            if request.validate_only:
                return _planned(await self._storage.plan(dataset))
            registered = await self._storage.register(dataset)
        except Incompatible as error:
            raise NotNow(Reason.DATASET_INCOMPATIBLE, str(error), field=error.field) from error
        except InvalidDataset as error:
            raise Invalid(Reason.INVALID_DATASET, str(error), field=error.field) from error
        except DatasetExists as error:
            raise Conflict(Reason.DATASET_EXISTS, str(error), field="message_type") from error
        except PostgresUnavailable as error:
            raise _unavailable(error, dataset.name) from error
        return datasets_pb2.RegisterDatasetResponse(dataset=_public(registered, descriptors=True))

    async def get_dataset(
        self, request: datasets_pb2.GetDatasetRequest, context: Context
    ) -> datasets_pb2.GetDatasetResponse:
        """Return one dataset with its descriptors."""
        caller = await self._callers.identify(metadata_of(context))
        caller.require(READ)
        name = _name(request.name)
        try:
            registered = await self._storage.get_dataset(name)
        except PostgresUnavailable as error:
            raise postgres_unavailable() from error
        if registered is None:
            raise _not_found(name)
        return datasets_pb2.GetDatasetResponse(dataset=_public(registered, descriptors=True))

    async def list_datasets(
        self, request: datasets_pb2.ListDatasetsRequest, context: Context
    ) -> datasets_pb2.ListDatasetsResponse:
        """Return a page of datasets by name."""
        caller = await self._callers.identify(metadata_of(context))
        caller.require(READ)
        size, after = page_size(request.page_size), dataset_page_start(request.page_token)
        try:
            found = await self._storage.list_datasets(size + 1, after)
        except PostgresUnavailable as error:
            raise postgres_unavailable() from error
        token = token_after_dataset(found[size - 1].dataset.name) if len(found) > size else ""
        datasets = [_public(registered, descriptors=False) for registered in found[:size]]
        return datasets_pb2.ListDatasetsResponse(datasets=datasets, next_page_token=token)

    async def list_dataset_versions(
        self, request: datasets_pb2.ListDatasetVersionsRequest, context: Context
    ) -> datasets_pb2.ListDatasetVersionsResponse:
        """Return a page of a dataset's versions, the newest first."""
        caller = await self._callers.identify(metadata_of(context))
        caller.require(READ)
        name = _name(request.name)
        size, before = page_size(request.page_size), version_page_start(request.page_token)
        try:
            found = await self._storage.versions(name, size + 1, before)
        except PostgresUnavailable as error:
            raise postgres_unavailable() from error
        if not found and not before:
            raise _not_found(name)
        token = token_after_version(found[size - 1].dataset.version) if len(found) > size else ""
        datasets = [_public(registered, descriptors=False) for registered in found[:size]]
        return datasets_pb2.ListDatasetVersionsResponse(datasets=datasets, next_page_token=token)

    async def delete_dataset(
        self, request: datasets_pb2.DeleteDatasetRequest, context: Context
    ) -> datasets_pb2.DeleteDatasetResponse:
        """Delete a dataset, and its table if asked."""
        caller = await self._callers.identify(metadata_of(context))
        caller.require(ADMIN)
        name = _name(request.name)
        try:
            there = await self._storage.delete_dataset(name, drop_table=request.drop_table)
        except JobsNotEnded as error:
            raise _has_jobs(name, error) from error
        except TableInUse as error:
            raise NotNow(
                Reason.TABLE_IN_USE,
                f"table {name} cannot be dropped, for {error}: drop that first, or leave drop_table out",
                field="drop_table",
            ) from error
        except PostgresUnavailable as error:
            raise _unavailable(error, name) from error
        if not there:
            raise _not_found(name)
        return datasets_pb2.DeleteDatasetResponse()


def _unavailable(error: PostgresUnavailable, name: str) -> Unavailable:
    if isinstance(error.__cause__, psycopg.errors.LockNotAvailable):
        return Unavailable(
            Reason.TABLE_BUSY,
            f"table {name} is held by a transaction that takes longer than 2 s: try again when it is over",
        )
    return postgres_unavailable()


def _has_jobs(name: str, error: JobsNotEnded) -> NotNow:
    more = ", …" if error.count > len(error.names) else ""
    return NotNow(
        Reason.DATASET_HAS_JOBS,
        f"dataset {name} has {error.count} jobs that have not ended ({', '.join(error.names)}{more}): wait until they "
        "have, or cancel them with `bulkgrpc jobs cancel`",
        field="name",
        jobs=str(error.count),
    )


def _public(registered: Registered, *, descriptors: bool) -> datasets_pb2.Dataset:
    return to_dataset(registered.dataset, registered.create_time, descriptors=descriptors)


def _planned(plan: Plan) -> datasets_pb2.RegisterDatasetResponse:
    return datasets_pb2.RegisterDatasetResponse(
        dataset=to_dataset(plan.dataset, descriptors=True),
        statements=[statement.as_string(None) for statement in plan.statements],
        new_version=plan.new_version,
    )


def _name(resource: str) -> str:
    name = resource.removeprefix(DATASET_PREFIX)
    if not resource.startswith(DATASET_PREFIX) or not is_dataset(name):
        raise Invalid(
            Reason.INVALID_FIELD, f"name {resource[:200]!r} is not of the form datasets/DATASET", field="name"
        )
    return name


def _not_found(name: str) -> NotFound:
    return NotFound(
        Reason.DATASET_NOT_FOUND,
        f"dataset {name} is not registered: register its message with `bulkgrpc datasets register`",
        field="name",
        dataset=name,
    )
