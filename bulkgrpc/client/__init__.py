"""The client library: submit records, follow jobs, register datasets. All public names are here."""

from bulkgrpc.blocks import (
    DatasetState,
    DatasetStatus,
    LedgerSnapshot,
    Parked,
    ParkedQueue,
    PartitionPosition,
    TenantParked,
)
from bulkgrpc.client.client import AsyncBulkClient, AsyncJobHandle
from bulkgrpc.client.config import ClientConfig, Tls, Token
from bulkgrpc.client.errors import BulkError, CallFailed, GaveUp, NotEnded, Refused, Unreachable, WrongInput
from bulkgrpc.client.model import Batch, DatasetPlan, Job, Progress, Rejection
from bulkgrpc.client.operations import Discarded
from bulkgrpc.client.reverts import Reverted
from bulkgrpc.client.sync import BulkClient, JobHandle
from bulkgrpc.client.tables import ArrowTable, TableSource
from bulkgrpc.datasets.definition import Dataset
from bulkgrpc.errors import Reason
from bulkgrpc.model import ApplyProgress, BlockedBy, JobBlock, JobCounts, JobOptions, JobState
from bulkgrpc.tabular.rules import Rules, TextForms

__all__ = [
    "ApplyProgress",
    "ArrowTable",
    "AsyncBulkClient",
    "AsyncJobHandle",
    "Batch",
    "BlockedBy",
    "BulkClient",
    "BulkError",
    "CallFailed",
    "ClientConfig",
    "Dataset",
    "DatasetPlan",
    "DatasetState",
    "DatasetStatus",
    "Discarded",
    "GaveUp",
    "Job",
    "JobBlock",
    "JobCounts",
    "JobHandle",
    "JobOptions",
    "JobState",
    "LedgerSnapshot",
    "NotEnded",
    "Parked",
    "ParkedQueue",
    "PartitionPosition",
    "Progress",
    "Reason",
    "Refused",
    "Rejection",
    "Reverted",
    "Rules",
    "TableSource",
    "TenantParked",
    "TextForms",
    "Tls",
    "Token",
    "Unreachable",
    "WrongInput",
]
