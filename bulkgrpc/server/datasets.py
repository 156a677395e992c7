"""DatasetService: message types registered, read, listed."""

from __future__ import annotations

from bulkgrpc.datasets.columns import InvalidDataset
from bulkgrpc.datasets.definition import define
from bulkgrpc.errors import Conflict, Invalid, NotFound, Reason
from bulkgrpc.server.caller import ADMIN, READ, Callers
from bulkgrpc.server.guard import Context, metadata_of
from bulkgrpc.server.messages import DATASET_PREFIX
from bulkgrpc.server.paging import dataset_page_start, page_size, token_after_dataset
from bulkgrpc.server.storage import Storage, StoreAway, store_unavailable
from bulkgrpc.server.translate import to_dataset
from bulkgrpc.store.catalog import DatasetExists
from bulkgrpc.v1 import datasets_pb2
from bulkgrpc.words import is_dataset


class DatasetService:
    """The three RPCs; see `datasets.proto`."""

    def __init__(self, callers: Callers, storage: Storage) -> None:
        self._callers = callers
        self._storage = storage

    async def register_dataset(
        self, request: datasets_pb2.RegisterDatasetRequest, context: Context
    ) -> datasets_pb2.RegisterDatasetResponse:
        """Register a message type and make its table."""
        caller = await self._callers.identify(metadata_of(context))
        caller.require(ADMIN)
        if not request.message_type:
            raise Invalid(
                Reason.INVALID_FIELD, "message_type is empty: name the message, with its package", field="message_type"
            )
        try:
            dataset = define(request.descriptors.SerializeToString(), request.message_type)
            registered = await self._storage.register(dataset)
        except InvalidDataset as error:
            raise Invalid(Reason.INVALID_DATASET, str(error), field=error.field) from error
        except DatasetExists as error:
            raise Conflict(Reason.DATASET_EXISTS, str(error), field="message_type") from error
        except StoreAway as error:
            raise store_unavailable() from error
        return datasets_pb2.RegisterDatasetResponse(dataset=to_dataset(registered, descriptors=True))

    async def get_dataset(
        self, request: datasets_pb2.GetDatasetRequest, context: Context
    ) -> datasets_pb2.GetDatasetResponse:
        """Return one dataset with its descriptors."""
        caller = await self._callers.identify(metadata_of(context))
        caller.require(READ)
        name = request.name.removeprefix(DATASET_PREFIX)
        if not request.name.startswith(DATASET_PREFIX) or not is_dataset(name):
            raise Invalid(
                Reason.INVALID_FIELD, f"name {request.name[:200]!r} is not of the form datasets/DATASET", field="name"
            )
        try:
            registered = await self._storage.get_dataset(name)
        except StoreAway as error:
            raise store_unavailable() from error
        if registered is None:
            raise NotFound(
                Reason.DATASET_NOT_FOUND,
                f"dataset {name} is not registered: register its message with `bulkgrpc datasets register`",
                field="name",
                dataset=name,
            )
        return datasets_pb2.GetDatasetResponse(dataset=to_dataset(registered, descriptors=True))

    async def list_datasets(
        self, request: datasets_pb2.ListDatasetsRequest, context: Context
    ) -> datasets_pb2.ListDatasetsResponse:
        """Return a page of datasets by name."""
        caller = await self._callers.identify(metadata_of(context))
        caller.require(READ)
        size, after = page_size(request.page_size), dataset_page_start(request.page_token)
        try:
            found = await self._storage.list_datasets(size + 1, after)
        except StoreAway as error:
            raise store_unavailable() from error
        token = token_after_dataset(found[size - 1].dataset.name) if len(found) > size else ""
        datasets = [to_dataset(registered, descriptors=False) for registered in found[:size]]
        return datasets_pb2.ListDatasetsResponse(datasets=datasets, next_page_token=token)
