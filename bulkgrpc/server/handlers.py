"""The services' methods as gRPC handlers. Streams of records come as raw bytes; all else as messages."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import grpc
from grpc_health.v1 import health
from grpc_reflection.v1alpha import reflection

from bulkgrpc.server.datasets import DatasetService
from bulkgrpc.server.guard import guarded
from bulkgrpc.server.ingest import IngestService
from bulkgrpc.server.jobs import JobService
from bulkgrpc.v1 import datasets_pb2, ingest_pb2, jobs_pb2

INGEST: Final = ingest_pb2.DESCRIPTOR.services_by_name["IngestService"].full_name
JOBS: Final = jobs_pb2.DESCRIPTOR.services_by_name["JobService"].full_name
DATASETS: Final = datasets_pb2.DESCRIPTOR.services_by_name["DatasetService"].full_name
SERVICES: Final = (INGEST, JOBS, DATASETS)


def ingest_handler(service: IngestService) -> Any:
    """Return IngestService's handler: without a request deserializer, so a batch stays bytes."""
    submit, stream = ingest_pb2.SubmitRecordsResponse, ingest_pb2.StreamRecordsResponse
    return grpc.method_handlers_generic_handler(
        INGEST,
        {
            "SubmitRecords": grpc.stream_unary_rpc_method_handler(
                guarded("SubmitRecords", service.submit_records),
                response_serializer=submit.SerializeToString,
            ),
            "StreamRecords": grpc.stream_stream_rpc_method_handler(
                guarded("StreamRecords", service.stream_records),
                response_serializer=stream.SerializeToString,
            ),
        },
    )


def job_handler(service: JobService) -> Any:
    """Return JobService's handler."""
    return grpc.method_handlers_generic_handler(
        JOBS,
        {
            "GetJob": _unary(service.get_job, jobs_pb2.GetJobRequest, jobs_pb2.GetJobResponse),
            "ListJobs": _unary(service.list_jobs, jobs_pb2.ListJobsRequest, jobs_pb2.ListJobsResponse),
            "WatchJob": grpc.unary_stream_rpc_method_handler(
                guarded("WatchJob", service.watch_job),
                request_deserializer=jobs_pb2.WatchJobRequest.FromString,
                response_serializer=jobs_pb2.WatchJobResponse.SerializeToString,
            ),
            "CancelJob": _unary(service.cancel_job, jobs_pb2.CancelJobRequest, jobs_pb2.CancelJobResponse),
            "DeleteJob": _unary(service.delete_job, jobs_pb2.DeleteJobRequest, jobs_pb2.DeleteJobResponse),
            "ListRejections": _unary(
                service.list_rejections, jobs_pb2.ListRejectionsRequest, jobs_pb2.ListRejectionsResponse
            ),
        },
    )


def dataset_handler(service: DatasetService) -> Any:
    """Return DatasetService's handler."""
    pb2 = datasets_pb2
    return grpc.method_handlers_generic_handler(
        DATASETS,
        {
            "RegisterDataset": _unary(
                service.register_dataset, pb2.RegisterDatasetRequest, pb2.RegisterDatasetResponse
            ),
            "DeleteDataset": _unary(service.delete_dataset, pb2.DeleteDatasetRequest, pb2.DeleteDatasetResponse),
            "GetDataset": _unary(service.get_dataset, pb2.GetDatasetRequest, pb2.GetDatasetResponse),
            "ListDatasets": _unary(service.list_datasets, pb2.ListDatasetsRequest, pb2.ListDatasetsResponse),
            "ListDatasetVersions": _unary(
                service.list_dataset_versions, pb2.ListDatasetVersionsRequest, pb2.ListDatasetVersionsResponse
            ),
        },
    )


def add_reflection(server: grpc.aio.Server) -> None:
    """Let clients ask which services there are."""
    reflection.enable_server_reflection((*SERVICES, health.SERVICE_NAME, reflection.SERVICE_NAME), server)


def _unary(method: Callable[..., Any], request: Any, response: Any) -> Any:
    return grpc.unary_unary_rpc_method_handler(
        guarded(method.__name__, method),
        request_deserializer=request.FromString,
        response_serializer=response.SerializeToString,
    )
