"""The life cycle of one server process: connect the stores, serve, drain, close in reverse order."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial

import structlog
from opentelemetry.metrics import Observation

from bulkgrpc import metrics
from bulkgrpc.consume.backlog import measure
from bulkgrpc.ingest.admission import Admission
from bulkgrpc.ingest.batch_appender import LogAccess
from bulkgrpc.ingest.byte_budget import ByteBudget
from bulkgrpc.ingest.dataset_blocks import DatasetBlocks
from bulkgrpc.ingest.dataset_cache import DatasetCache
from bulkgrpc.ingest.datasets import Datasets
from bulkgrpc.ingest.identity import Identification, identification_for
from bulkgrpc.ingest.job_opener import JobOpener, OpenerStores
from bulkgrpc.ingest.job_watch import JobWatch
from bulkgrpc.ingest.jobs import Jobs
from bulkgrpc.ingest.parked_limit import ParkedLimit
from bulkgrpc.ingest.ports import (
    Blocks,
    DatasetCatalog,
    JobStore,
    LiveJobs,
    PostgresUnavailable,
    RecordLog,
    RedisUnavailable,
)
from bulkgrpc.ingest.progress_writer import ProgressWriter
from bulkgrpc.ingest.reverts import Reverts, RowsOfJobs
from bulkgrpc.ingest.session import BatchLimits, SessionParts
from bulkgrpc.ingest.topic_guard import TopicGuard
from bulkgrpc.kafka import topic_config
from bulkgrpc.kafka.connection import KafkaMisconfigured
from bulkgrpc.kafka.producer import RecordsProducer
from bulkgrpc.kafka.record_log import KafkaRecordLog, KafkaTopicIdentity
from bulkgrpc.kafka.topic_log import KafkaTopicLog
from bulkgrpc.postgres import blocks, catalog, jobs, reverts, schema, topics
from bulkgrpc.postgres.deadlines import make_pool
from bulkgrpc.postgres.rights import RightsMissing
from bulkgrpc.redis.live_jobs import RedisLiveJobs
from bulkgrpc.redis.outage import Cause
from bulkgrpc.server.backlog_watch import BacklogWatch
from bulkgrpc.server.cannot_serve import WRONG_SETTINGS, CannotServe
from bulkgrpc.server.grpc.endpoint import FrontDoorParts, GrpcEndpoint, grpc_endpoint
from bulkgrpc.server.health import Health
from bulkgrpc.server.supervisor import SERVE_SIGNAL
from bulkgrpc.server.topic import open_topic
from bulkgrpc.settings import ServerSettings
from bulkgrpc.telemetry import Probes, Telemetry, WrongTelemetry

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Serving:
    """A running server: its address and what draining it needs."""

    admission: Admission
    endpoint: GrpcEndpoint
    producer: RecordsProducer

    @property
    def address(self) -> str:
        """The address that it serves gRPC on, host:port."""
        return self.endpoint.address


@dataclass(frozen=True, slots=True)
class Stores:
    """The connected stores, behind their ports."""

    log: RecordLog
    jobs: JobStore
    catalog: DatasetCatalog
    live_jobs: LiveJobs
    blocks: Blocks
    rows: RowsOfJobs


@dataclass(frozen=True, slots=True)
class Background:
    """What tasks of the process keep up to date for all streams."""

    progress: ProgressWriter
    watch: JobWatch
    parked: ParkedLimit
    topic: TopicGuard


async def serve(settings: ServerSettings, announce: Callable[[str], None], *, shared_port: bool) -> int:
    """Serve until SIGTERM or SIGINT, then drain; return the exit status: 1 if the producer failed permanently.

    announce: called with the address once it serves. shared_port: whether a supervisor runs several processes; health
    checks then report that it serves from SERVE_SIGNAL on. Raises CannotServe.
    """
    stop, all_serve = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    # Before the announcement, after which the signal may arrive.
    loop.add_signal_handler(SERVE_SIGNAL, all_serve.set)
    health = Health()
    with _telemetry(settings, health):
        beating = asyncio.ensure_future(health.run())
        async with serving(settings, shared_port=shared_port) as running:
            if not shared_port:
                health.serves()
            announce(running.address)
            _log.info("server_started", address=running.address, auth=settings.auth, topic=settings.topic)
            waits = {asyncio.ensure_future(stop.wait()), asyncio.ensure_future(running.producer.fatal.wait())}
            reporting = asyncio.ensure_future(_report_serving(running, health, all_serve))
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            for task in (*waits, reporting):
                task.cancel()
            failed = running.producer.fatal.is_set()
            if failed:
                # Its state at the broker is lost: only a new process gets a new producer.
                _log.error("producer_failed")
            health.drains()
            await drain(running, 0.0 if failed else settings.drain_s)
        beating.cancel()
    return 1 if failed else 0


async def _report_serving(running: Serving, health: Health, all_serve: asyncio.Event) -> None:
    await all_serve.wait()
    health.serves()
    await running.endpoint.announce_serving()


async def drain(running: Serving, drain_s: float) -> None:
    """Refuse new streams, give open ones `drain_s` to end, then end the rest."""
    _log.info("server_draining", open_streams=running.admission.open_streams, drain_s=drain_s)
    running.admission.drain()
    await running.endpoint.announce_drain()
    with suppress(TimeoutError):
        async with asyncio.timeout(drain_s):
            await running.admission.until_idle()
    running.admission.disconnect()


@asynccontextmanager
async def serving(settings: ServerSettings, *, shared_port: bool = False) -> AsyncIterator[Serving]:
    """Serve while the context lasts. Raises CannotServe."""
    await _check_schema(settings)
    partitions = await open_topic(settings)
    async with AsyncExitStack() as stack:
        live_jobs = await stack.enter_async_context(_live_jobs(settings))
        await _check_redis(live_jobs)
        pool = make_pool(settings.postgres)
        await pool.open(wait=False)
        stack.push_async_callback(pool.close, timeout=1.0)
        producer = await stack.enter_async_context(_producer(settings))
        log = KafkaRecordLog(producer, partitions, partial(topic_config.message_bytes_max, settings))
        stores = Stores(
            log,
            jobs.JobStore(pool),
            catalog.Catalog(pool),
            live_jobs,
            blocks.Blocks(pool, settings.topic),
            reverts.RowsOfJobs(pool),
        )
        background = Background(
            ProgressWriter(live_jobs),
            JobWatch(stores.jobs, live_jobs),
            ParkedLimit(stores.blocks, settings.parked_bytes_max),
            TopicGuard(
                settings.topic,
                KafkaTopicIdentity(KafkaTopicLog(settings)),
                topics.TopicRecord(pool, settings.topic),
            ),
        )
        # Before the first stream: the topic may be another one since the server ended.
        await background.topic.look()
        stack.push_async_callback(background.progress.flush)
        tasks = (
            background.progress.run(),
            background.watch.run(),
            background.parked.run(),
            background.topic.run(),
            log.run(),
            _backlog_watch(settings).run(),
        )
        for task in tasks:
            stack.callback(asyncio.create_task(task).cancel)
        parts = _front_door_parts(settings, stores, background)
        endpoint = await stack.enter_async_context(grpc_endpoint(settings, parts, shared_port=shared_port))
        admission = parts.session.admission
        metrics.streams_open.observe(lambda: [Observation(admission.open_streams)])
        yield Serving(admission, endpoint, producer)


def _front_door_parts(settings: ServerSettings, stores: Stores, background: Background) -> FrontDoorParts:
    """Wire the ingest session to its stores."""
    cache = DatasetCache(stores.catalog)
    opener = JobOpener(
        OpenerStores(stores.jobs, stores.live_jobs, cache, stores.log, background.parked, background.topic),
        settings.when_redis_is_down,
        _now,
    )
    budget = ByteBudget(settings.in_flight_bytes_max)
    access = LogAccess(stores.log, budget, asyncio.Semaphore(1), _now, background.parked, background.topic)
    session = SessionParts(
        Admission(settings.streams_max),
        opener,
        access,
        background.progress,
        stores.jobs,
        background.watch,
        BatchLimits(settings.batch_bytes_max, settings.batch_records_max),
        _now,
    )
    return FrontDoorParts(
        _identification(settings),
        session,
        Jobs(stores.jobs, stores.live_jobs, background.watch),
        Datasets(stores.catalog, cache),
        DatasetBlocks(stores.blocks),
        Reverts(stores.jobs, stores.catalog, stores.rows),
    )


def _identification(settings: ServerSettings) -> Identification:
    try:
        return identification_for(settings)
    except ValueError as error:
        raise CannotServe(str(error), WRONG_SETTINGS) from error


def _producer(settings: ServerSettings) -> RecordsProducer:
    try:
        return RecordsProducer(settings, settings.in_flight_bytes_max)
    except KafkaMisconfigured as error:
        raise CannotServe(str(error), WRONG_SETTINGS) from error


@contextmanager
def _telemetry(settings: ServerSettings, health: Health) -> Iterator[None]:
    """Export metrics, and answer whether the server is live and ready, while the context lasts. Raises CannotServe."""
    try:
        telemetry = Telemetry(metrics.Process.SERVER)
        telemetry.serve(settings.metrics_listen, Probes(health.live, health.ready))
    except WrongTelemetry as error:
        raise CannotServe(str(error), WRONG_SETTINGS) from error
    try:
        yield
    finally:
        telemetry.stop()


def _backlog_watch(settings: ServerSettings) -> BacklogWatch:
    log = KafkaTopicLog(settings)
    ledger = topics.PostgresTopicLedger(settings.postgres, settings.topic)
    return BacklogWatch(lambda: measure(log, ledger, _now()))


def _live_jobs(settings: ServerSettings) -> RedisLiveJobs:
    try:
        return RedisLiveJobs(settings.redis)
    except (ValueError, TypeError) as error:
        raise CannotServe(f"BULKGRPC_REDIS: {error}", WRONG_SETTINGS) from error


async def _check_schema(settings: ServerSettings) -> None:
    """Check the schema; an unavailable PostgreSQL does not prevent the start, since streams are accepted without it."""
    try:
        for right in await asyncio.to_thread(schema.check_server, settings.postgres):
            _log.warning("right_missing", right=str(right))
    except (schema.SchemaMissing, RightsMissing) as error:
        raise CannotServe(str(error)) from error
    except PostgresUnavailable as error:
        _log.warning("postgres_unavailable_at_start", error=str(error))


async def _check_redis(live_jobs: RedisLiveJobs) -> None:
    """Check what Redis is; an unavailable one does not prevent the start."""
    try:
        if await live_jobs.is_of_cluster():
            raise CannotServe(
                f"BULKGRPC_REDIS names a server of a Redis Cluster, where keys of a job are in several slots: "
                f"{Cause.WRONG_SERVER.remedy}",
                WRONG_SETTINGS,
            )
        policy = await live_jobs.eviction_policy()
    except RedisUnavailable as error:
        _log.warning("redis_unavailable_at_start", error=str(error), cause=error.cause, remedy=error.remedy)
        return
    if policy not in ("noeviction", ""):
        # Set maxmemory-policy to noeviction: Redis may drop live jobs otherwise.
        _log.warning("redis_may_evict", maxmemory_policy=policy)


def _now() -> datetime:
    return datetime.now(UTC)
