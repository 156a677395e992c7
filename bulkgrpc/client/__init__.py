"""The client library: submit records, follow jobs, register datasets. All public names are here."""

from bulkgrpc.client.client import AsyncBulkClient, AsyncJobHandle
from bulkgrpc.client.config import ClientConfig, Tls
from bulkgrpc.client.errors import BulkError, CallFailed, GaveUp, NotEnded, Refused, Unreachable, WrongInput
from bulkgrpc.client.model import Batch, DatasetPlan, Job, Progress, Rejection
from bulkgrpc.client.sync import BulkClient, JobHandle
from bulkgrpc.datasets.definition import Dataset
from bulkgrpc.errors import Reason
from bulkgrpc.model import JobCounts, JobOptions, JobState

__all__ = [
    "AsyncBulkClient",
    "AsyncJobHandle",
    "Batch",
    "BulkClient",
    "BulkError",
    "CallFailed",
    "ClientConfig",
    "Dataset",
    "DatasetPlan",
    "GaveUp",
    "Job",
    "JobCounts",
    "JobHandle",
    "JobOptions",
    "JobState",
    "NotEnded",
    "Progress",
    "Reason",
    "Refused",
    "Rejection",
    "Tls",
    "Unreachable",
    "WrongInput",
]
