"""DatasetService: maps its RPCs to `bulkgrpc.ingest.datasets`."""

from __future__ import annotations

from typing import Final

from bulkgrpc.ingest.dataset_blocks import DatasetBlocks
from bulkgrpc.ingest.datasets import Datasets
from bulkgrpc.ingest.jobs import PageRequest
from bulkgrpc.ingest.ports import RegisteredDataset
from bulkgrpc.server.grpc.block_conversion import to_parked, to_status, to_tenant_parked
from bulkgrpc.server.grpc.conversion import to_column_fit, to_dataset
from bulkgrpc.server.grpc.interceptors import Context
from bulkgrpc.v1 import datasets_pb2, datasets_pb2_grpc

TENANTS_MAX: Final = 1000


class DatasetServicer(datasets_pb2_grpc.DatasetServiceServicer):
    """The RPCs of `datasets.proto`."""

    def __init__(self, datasets: Datasets, blocks: DatasetBlocks) -> None:
        self._datasets = datasets
        self._blocks = blocks

    async def RegisterDataset(
        self, request: datasets_pb2.RegisterDatasetRequest, context: Context
    ) -> datasets_pb2.RegisterDatasetResponse:
        """Register a message type and create or change its table, or return what would be done."""
        descriptors = request.descriptors.SerializeToString()
        if not request.validate_only:
            registered = await self._datasets.register(descriptors, request.message_type)
            return datasets_pb2.RegisterDatasetResponse(dataset=_public(registered, descriptors=True))
        plan = await self._datasets.plan(descriptors, request.message_type)
        return datasets_pb2.RegisterDatasetResponse(
            dataset=to_dataset(plan.dataset, descriptors=True),
            statements=plan.statements,
            new_version=plan.new_version,
            column_fits=[to_column_fit(found) for found in plan.report.columns],
            refusals=plan.report.refusals,
        )

    async def GetDataset(
        self, request: datasets_pb2.GetDatasetRequest, context: Context
    ) -> datasets_pb2.GetDatasetResponse:
        """Return one dataset with its descriptors."""
        registered = await self._datasets.get(request.name)
        return datasets_pb2.GetDatasetResponse(dataset=_public(registered, descriptors=True))

    async def ListDatasets(
        self, request: datasets_pb2.ListDatasetsRequest, context: Context
    ) -> datasets_pb2.ListDatasetsResponse:
        """Return a page of datasets by name."""
        found = await self._datasets.list(PageRequest(request.page_size, request.page_token))
        return datasets_pb2.ListDatasetsResponse(
            datasets=[_public(registered, descriptors=False) for registered in found.datasets],
            next_page_token=found.next_page_token,
        )

    async def ListDatasetVersions(
        self, request: datasets_pb2.ListDatasetVersionsRequest, context: Context
    ) -> datasets_pb2.ListDatasetVersionsResponse:
        """Return a page of a dataset's versions, the newest first."""
        found = await self._datasets.versions(request.parent, PageRequest(request.page_size, request.page_token))
        return datasets_pb2.ListDatasetVersionsResponse(
            datasets=[_public(registered, descriptors=False) for registered in found.datasets],
            next_page_token=found.next_page_token,
        )

    async def DeleteDataset(
        self, request: datasets_pb2.DeleteDatasetRequest, context: Context
    ) -> datasets_pb2.DeleteDatasetResponse:
        """Delete a dataset, and its table if requested."""
        await self._datasets.delete(request.name, drop_table=request.drop_table)
        return datasets_pb2.DeleteDatasetResponse()

    async def GetDatasetStatus(
        self, request: datasets_pb2.GetDatasetStatusRequest, context: Context
    ) -> datasets_pb2.GetDatasetStatusResponse:
        """Return whether a dataset is written, and what is parked of it."""
        return datasets_pb2.GetDatasetStatusResponse(status=to_status(await self._blocks.status(request.name)))

    async def PauseDataset(
        self, request: datasets_pb2.PauseDatasetRequest, context: Context
    ) -> datasets_pb2.PauseDatasetResponse:
        """Pause a dataset."""
        status = await self._blocks.pause(request.name, request.reason)
        return datasets_pb2.PauseDatasetResponse(status=to_status(status))

    async def ResumeDataset(
        self, request: datasets_pb2.ResumeDatasetRequest, context: Context
    ) -> datasets_pb2.ResumeDatasetResponse:
        """Lift a pause, or try a blocked table now."""
        return datasets_pb2.ResumeDatasetResponse(status=to_status(await self._blocks.resume(request.name)))

    async def DiscardParked(
        self, request: datasets_pb2.DiscardParkedRequest, context: Context
    ) -> datasets_pb2.DiscardParkedResponse:
        """Discard what is parked of a dataset, or return what would be discarded."""
        before, after = await self._blocks.discard(request.name, validate_only=request.validate_only)
        return datasets_pb2.DiscardParkedResponse(
            status=to_status(after),
            discarded=to_parked(before.parked),
            tenants=[to_tenant_parked(one) for one in before.tenants[:TENANTS_MAX]],
        )


def _public(registered: RegisteredDataset, *, descriptors: bool) -> datasets_pb2.Dataset:
    return to_dataset(registered.dataset, registered.create_time, descriptors=descriptors)
