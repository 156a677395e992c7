"""The gRPC server of a process: its services, address, TLS, limits and health."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_health.v1._async import HealthServicer

from bulkgrpc import limits
from bulkgrpc.ingest.dataset_blocks import DatasetBlocks
from bulkgrpc.ingest.datasets import Datasets
from bulkgrpc.ingest.identity import Identification
from bulkgrpc.ingest.job_watch import WATCHERS_MAX
from bulkgrpc.ingest.jobs import Jobs
from bulkgrpc.ingest.reverts import Reverts
from bulkgrpc.ingest.session import SessionParts
from bulkgrpc.server.cannot_serve import WRONG_SETTINGS, CannotServe
from bulkgrpc.server.grpc import reflection, tls
from bulkgrpc.server.grpc.access import SERVICES
from bulkgrpc.server.grpc.datasets import DatasetServicer
from bulkgrpc.server.grpc.ingest import IngestServicer, ingest_handler
from bulkgrpc.server.grpc.interceptors import interceptors
from bulkgrpc.server.grpc.jobs import JobServicer
from bulkgrpc.server.grpc.ledger import LedgerServicer
from bulkgrpc.settings import ServerSettings
from bulkgrpc.v1 import datasets_pb2_grpc, jobs_pb2_grpc, ledger_pb2_grpc

STOP_GRACE_S: Final = 2.0
METADATA_BYTES_MAX: Final = 16 * 1024
EXTRA_STREAMS_PER_CONNECTION: Final = WATCHERS_MAX + 100
"""Above `streams_max`, so that a stream or watcher too many is refused by us with a reason, not delayed by HTTP/2."""


@dataclass(frozen=True, slots=True)
class FrontDoorParts:
    """What the RPCs are mapped to."""

    identification: Identification
    session: SessionParts
    jobs: Jobs
    datasets: Datasets
    blocks: DatasetBlocks
    reverts: Reverts


@dataclass(frozen=True, slots=True)
class GrpcEndpoint:
    """A gRPC server that serves at `address`."""

    address: str
    health: HealthServicer

    async def announce_serving(self) -> None:
        """Report SERVING to health checks from now on."""
        await _report(self.health, health_pb2.HealthCheckResponse.SERVING)

    async def announce_drain(self) -> None:
        """Report NOT_SERVING to health checks from now on."""
        await self.health.enter_graceful_shutdown()


@asynccontextmanager
async def grpc_endpoint(
    settings: ServerSettings, parts: FrontDoorParts, *, shared_port: bool
) -> AsyncIterator[GrpcEndpoint]:
    """Serve gRPC while the context lasts; open calls get STOP_GRACE_S to end.

    shared_port: whether other processes serve the same address: health checks are then answered with NOT_SERVING until
    `announce_serving`. Raises CannotServe.
    """
    server = grpc.aio.server(
        options=options(settings, shared_port=shared_port), interceptors=interceptors(parts.identification)
    )
    session = parts.session
    server.add_generic_rpc_handlers((ingest_handler(IngestServicer(session)),))
    jobs = JobServicer(parts.jobs, parts.reverts, session.admission, session.now)
    jobs_pb2_grpc.add_JobServiceServicer_to_server(jobs, server)  # type: ignore[no-untyped-call]
    datasets = DatasetServicer(parts.datasets, parts.blocks)
    datasets_pb2_grpc.add_DatasetServiceServicer_to_server(datasets, server)  # type: ignore[no-untyped-call]
    ledger_pb2_grpc.add_LedgerServiceServicer_to_server(LedgerServicer(parts.blocks), server)  # type: ignore[no-untyped-call]
    health_servicer = HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(health_servicer, server)
    response = health_pb2.HealthCheckResponse
    await _report(health_servicer, response.NOT_SERVING if shared_port else response.SERVING)
    reflection.enable(server, (*SERVICES, health.SERVICE_NAME))
    address = _bind(server, settings)
    await server.start()
    try:
        yield GrpcEndpoint(address, health_servicer)
    finally:
        await server.stop(STOP_GRACE_S)


async def _report(servicer: HealthServicer, status: health_pb2.HealthCheckResponse.ServingStatus) -> None:
    """Set the status of the server as a whole, which has no name, and of each service."""
    for name in ("", *SERVICES):
        await servicer.set(name, status)


def options(settings: ServerSettings, *, shared_port: bool) -> list[tuple[str, int]]:
    """Return gRPC's channel arguments."""
    return [
        ("grpc.so_reuseport", int(shared_port)),
        # Above our own limit, so that a batch that is too large usually gets our refusal, not gRPC's.
        ("grpc.max_receive_message_length", limits.GRPC_MESSAGE_BYTES_MAX),
        # A compressed message is refused: it could expand without bound.
        ("grpc.compression_enabled_algorithms_bitset", 1),
        ("grpc.max_metadata_size", METADATA_BYTES_MAX),
        ("grpc.absolute_max_metadata_size", 2 * METADATA_BYTES_MAX),
        ("grpc.max_concurrent_streams", settings.streams_max + EXTRA_STREAMS_PER_CONNECTION),
        # Windows that grow with the bandwidth would let 200 streams buffer hundreds of megabytes.
        ("grpc.http2.bdp_probe", 0),
        ("grpc.http2.lookahead_bytes", 64 * 1024),
        ("grpc.keepalive_time_ms", 60_000),
        ("grpc.keepalive_timeout_ms", 20_000),
        ("grpc.http2.min_recv_ping_interval_without_data_ms", 10_000),
        ("grpc.keepalive_permit_without_calls", 1),
    ]


def _bind(server: grpc.aio.Server, settings: ServerSettings) -> str:
    host = settings.listen.rpartition(":")[0]
    try:
        if settings.tls_certificate or settings.tls_key:
            port = server.add_secure_port(settings.listen, tls.credentials(settings))
        else:
            port = server.add_insecure_port(settings.listen)
    except tls.WrongTls as error:
        raise CannotServe(str(error), WRONG_SETTINGS) from error
    except RuntimeError as error:
        raise CannotServe(f"cannot listen on {settings.listen}: choose another address with --listen") from error
    return f"{host}:{port}"
