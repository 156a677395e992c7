"""One server process' life: make the parts, serve, drain, close, in the reverse order of making."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import grpc
import psycopg
import structlog
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1._async import HealthServicer

from bulkgrpc import limits
from bulkgrpc.kafka.producer import RecordsProducer
from bulkgrpc.kafka.topics import KafkaUnavailable, ensure_topic
from bulkgrpc.postgres import schema
from bulkgrpc.postgres.catalog import Catalog
from bulkgrpc.postgres.jobs import JobStore
from bulkgrpc.redis.live import LiveJobs, RedisUnavailable
from bulkgrpc.server import handlers
from bulkgrpc.server.budget import ByteBudget
from bulkgrpc.server.caller import callers_of
from bulkgrpc.server.datasets import DatasetService
from bulkgrpc.server.gate import Gate
from bulkgrpc.server.ingest import IngestParts, IngestService
from bulkgrpc.server.jobs import JobParts, JobService
from bulkgrpc.server.notes import Notes
from bulkgrpc.server.opening import Opener
from bulkgrpc.server.storage import Storage, make_pool
from bulkgrpc.server.supervisor import WRONG_SETTINGS
from bulkgrpc.server.watching import JobWatch
from bulkgrpc.settings import ServerSettings

STARTUP_S: Final = 20.0
STOP_GRACE_S: Final = 2.0
METADATA_BYTES_MAX: Final = 16 * 1024
STREAMS_A_CONNECTION_OVER: Final = 100
"""Above `streams_max`, so that one more stream is refused by us with a reason, not held back by HTTP/2."""

_log = structlog.get_logger()


class CannotServe(Exception):
    """The server cannot start; `str()` is one line that says why and what to do.

    status: the exit status; WRONG_SETTINGS if starting again will not help.
    """

    def __init__(self, message: str, status: int = 1) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True, slots=True)
class Serving:
    """A server that serves: where, and how to end it."""

    address: str
    gate: Gate
    server: grpc.aio.Server
    health: HealthServicer
    producer: RecordsProducer


async def serve(settings: ServerSettings, announce: Callable[[str], None], *, shared_port: bool) -> int:
    """Serve until SIGTERM or SIGINT, then drain; return the exit status: 1 if the producer failed for good.

    announce: called with the address once it serves. Raises CannotServe.
    """
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with serving(settings, shared_port=shared_port) as running:
        announce(running.address)
        _log.info("serving", address=running.address, auth=settings.auth, topic=settings.topic)
        waits = {asyncio.ensure_future(stop.wait()), asyncio.ensure_future(running.producer.fatal.wait())}
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        for wait in waits:
            wait.cancel()
        failed = running.producer.fatal.is_set()
        if failed:
            _log.error("the Kafka producer failed for good: the process must start anew")
        await drain(running, 0.0 if failed else settings.drain_s)
    return 1 if failed else 0


async def drain(running: Serving, drain_s: float) -> None:
    """Refuse new streams, give open ones `drain_s` to end, end the rest."""
    _log.info("draining", open_streams=running.gate.open_streams, drain_s=drain_s)
    running.gate.drain()
    await running.health.enter_graceful_shutdown()
    with suppress(TimeoutError):
        async with asyncio.timeout(drain_s):
            await running.gate.emptied()
    running.gate.expel()


@asynccontextmanager
async def serving(settings: ServerSettings, *, shared_port: bool = False) -> AsyncIterator[Serving]:
    """Serve while the context lasts. Raises CannotServe."""
    await _check_schema(settings)
    partitions = await _partitions(settings)
    async with AsyncExitStack() as stack:
        live = await stack.enter_async_context(LiveJobs(settings.redis))
        await _warn_of_eviction(live)
        pool = make_pool(settings.postgres)
        await pool.open(wait=False)
        stack.push_async_callback(pool.close, timeout=1.0)
        producer = await stack.enter_async_context(RecordsProducer(settings, settings.in_flight_bytes_max))
        storage, notes = Storage(JobStore(pool), Catalog(pool)), Notes(live)
        watch = JobWatch(storage, live)
        stack.push_async_callback(notes.flush)
        for keeping in (notes.keep(), watch.keep()):
            stack.callback(asyncio.create_task(keeping).cancel)
        try:
            callers = callers_of(settings)
        except ValueError as error:
            raise CannotServe(str(error), WRONG_SETTINGS) from error
        gate = Gate(settings.streams_max)
        opener = Opener(storage, live, partitions, settings.when_redis_is_down, _now)
        budget = ByteBudget(settings.in_flight_bytes_max)
        parts = IngestParts(
            settings, callers, gate, opener, producer, budget, asyncio.Semaphore(1), notes, storage, watch, _now
        )
        server = grpc.aio.server(options=options(settings, shared_port=shared_port))
        server.add_generic_rpc_handlers(
            (
                handlers.ingest_handler(IngestService(parts)),
                handlers.job_handler(JobService(JobParts(callers, storage, live, watch, gate, _now))),
                handlers.dataset_handler(DatasetService(callers, storage)),
            )
        )
        health = HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(health, server)
        for name in handlers.SERVICES:
            await health.set(name, health_pb2.HealthCheckResponse.SERVING)
        handlers.add_reflection(server)
        address = _bind(server, settings)
        await server.start()
        stack.push_async_callback(server.stop, STOP_GRACE_S)
        yield Serving(address, gate, server, health, producer)


def options(settings: ServerSettings, *, shared_port: bool) -> list[tuple[str, int]]:
    """Return gRPC's channel arguments."""
    return [
        ("grpc.so_reuseport", int(shared_port)),
        # Above our own limit, so that a batch which is too large usually gets our answer, not gRPC's.
        ("grpc.max_receive_message_length", limits.KAFKA_MESSAGE_BYTES_MAX),
        # A compressed message is refused: it could expand without bound.
        ("grpc.compression_enabled_algorithms_bitset", 1),
        ("grpc.max_metadata_size", METADATA_BYTES_MAX),
        ("grpc.absolute_max_metadata_size", 2 * METADATA_BYTES_MAX),
        ("grpc.max_concurrent_streams", settings.streams_max + STREAMS_A_CONNECTION_OVER),
        # Windows that grow with the bandwidth would let 200 streams hold hundreds of megabytes.
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
            pair = (Path(settings.tls_key).read_bytes(), Path(settings.tls_certificate).read_bytes())
            port = server.add_secure_port(settings.listen, grpc.ssl_server_credentials([pair]))
        else:
            port = server.add_insecure_port(settings.listen)
    except OSError as error:
        raise CannotServe(f"BULKGRPC_TLS_CERTIFICATE and BULKGRPC_TLS_KEY: {error}", WRONG_SETTINGS) from error
    except RuntimeError as error:
        raise CannotServe(f"cannot listen on {settings.listen}: choose another address with --listen") from error
    return f"{host}:{port}"


async def _check_schema(settings: ServerSettings) -> None:
    """Check the schema; a PostgreSQL that is away is no reason not to start, streams are accepted without it."""

    def check() -> None:
        with psycopg.connect(settings.postgres, connect_timeout=5) as connection:
            schema.check(connection)

    try:
        await asyncio.to_thread(check)
    except schema.SchemaMissing as error:
        raise CannotServe(str(error)) from error
    except psycopg.OperationalError as error:
        _log.warning("PostgreSQL does not answer; serving all the same", error=str(error).splitlines()[0])


async def _partitions(settings: ServerSettings) -> int:
    """Return the topic's partitions; brokers take a moment to tell of a topic that was just made."""
    give_up_s = asyncio.get_running_loop().time() + STARTUP_S
    while True:
        try:
            return await asyncio.to_thread(ensure_topic, settings)
        except KafkaUnavailable as error:
            if asyncio.get_running_loop().time() > give_up_s:
                raise CannotServe(f"{error}: check BULKGRPC_KAFKA") from error
        await asyncio.sleep(0.2)


async def _warn_of_eviction(live: LiveJobs) -> None:
    try:
        policy = await live.eviction_policy()
    except RedisUnavailable as error:
        _log.warning("Redis does not answer; serving all the same", error=str(error))
        return
    if policy not in ("noeviction", ""):
        _log.warning("Redis may evict live jobs; set maxmemory-policy to noeviction", maxmemory_policy=policy)


def _now() -> datetime:
    return datetime.now(UTC)
