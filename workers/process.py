"""`bulkgrpc-worker`, the composition root: settings, checks, adapters, signals; then the poll loop until SIGTERM."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from types import FrameType
from typing import Annotated

# Before ptars is loaded: a hostile record makes it panic. The panic is caught; its backtrace would flood the log.
os.environ["RUST_BACKTRACE"] = "0"

import pyarrow as pa
import structlog
import typer

from bulkgrpc import allocator, logs
from bulkgrpc.consume.express_ports import ExpressPorts
from bulkgrpc.consume.ports import (
    DatasetRegistry,
    GroupNotLeft,
    RecordLogError,
    StoreError,
    StoreUnavailable,
    WorkerPorts,
)
from bulkgrpc.consume.topic_check import TopicCheck
from bulkgrpc.ingest.ports import PostgresUnavailable
from bulkgrpc.kafka.connection import KafkaMisconfigured, KafkaUnavailable
from bulkgrpc.kafka.consumer import RecordsConsumer
from bulkgrpc.kafka.dead_letters import DeadLetters
from bulkgrpc.kafka.express_log import KafkaExpressLog
from bulkgrpc.kafka.group_offsets import KafkaGroupOffsets
from bulkgrpc.kafka.message import message_of
from bulkgrpc.kafka.topic_log import KafkaTopicLog
from bulkgrpc.kafka.topics import TopicMissing, end_offsets, ensure_topic
from bulkgrpc.limits import MAINTENANCE_LEASE_ROUNDS
from bulkgrpc.metrics import Process
from bulkgrpc.postgres.apply_task_store import PostgresApplyTasks
from bulkgrpc.postgres.heartbeats import PostgresHeartbeats
from bulkgrpc.postgres.maintenance_store import PostgresMaintenanceStore
from bulkgrpc.postgres.rights import RightsMissing
from bulkgrpc.postgres.schema import SchemaMissing
from bulkgrpc.postgres.topics import PostgresTopicLedger, may_create
from bulkgrpc.postgres.worker_ports import (
    PostgresChunkWriter,
    PostgresDatasetRegistry,
    PostgresExpressWriter,
    PostgresLedger,
    PostgresParkedMessages,
    check_schema,
)
from bulkgrpc.settings import WorkerSettings, load
from bulkgrpc.telemetry import Probes, Telemetry, WrongTelemetry
from workers.apply import Apply
from workers.drain import Drain
from workers.express import Express
from workers.health import Health
from workers.ledger_watch import BeatingLedgerWatch
from workers.maintenance import MaintenanceThread
from workers.poller import Poller
from workers.topic_watch import CheckingTopicWatch
from workers.writer import WriterThread

log = structlog.get_logger()

WRONG_SETTINGS = 2
"""Exit status if a restart would not help."""
ARENAS = 2
"""Malloc arenas: one per thread that handles records."""


app = typer.Typer(add_completion=False, rich_markup_mode="markdown")


@app.command()
def run(
    group: Annotated[
        str | None, typer.Option(help="Kafka consumer group. Workers of one group share the load.")
    ] = None,
    chunk_rows_max: Annotated[int | None, typer.Option(help="Maximum number of rows in one transaction.")] = None,
) -> None:
    """Run a worker. It reads batches from Kafka and writes them to PostgreSQL, until SIGTERM.

    Kafka distributes the partitions of the records topic over the workers of a group. More workers than partitions have
    no work.

    Environment variables configure the worker. An option overrides its variable.

    - BULKGRPC_KAFKA and BULKGRPC_POSTGRES are the addresses of the stores.
    - BULKGRPC_GROUP and BULKGRPC_CHUNK_ROWS_MAX are the variables of the options.

    For example:

        bulkgrpc worker

    docs/operations.md lists the settings.
    """
    settings = load(WorkerSettings, group=group, chunk_rows_max=chunk_rows_max)
    allocator.keep_flat(ARENAS)
    pa.set_memory_pool(pa.system_memory_pool())
    logs.set_up()
    stopping = threading.Event()
    seconds_since = stop_on_signals(stopping)
    health = Health(stopping)
    try:
        telemetry = Telemetry(Process.WORKER)
        telemetry.serve(settings.metrics_listen, Probes(health.live, health.ready))
        check_schema(settings.postgres)
        open_topic(settings)
        registry = PostgresDatasetRegistry(settings.postgres)
        tasks = Apply(partial(PostgresApplyTasks, settings.postgres), stopping)
        drain = wire_drain(settings, registry, stopping, tasks.wake)
        poller = wire(settings, registry, stopping, drain.wake, tasks.wake)
        lease_s = MAINTENANCE_LEASE_ROUNDS * settings.maintenance_interval_s
        maintenance = PostgresMaintenanceStore(settings.postgres, settings.topic, lease_s)
        MaintenanceThread(settings, maintenance, lambda: end_offsets(settings), stopping).start()
        drain.start()
        tasks.start()
        sys.stdout.write(f"working on {settings.topic} as a member of {settings.group}\n")
        sys.stdout.flush()
        health.watch(lambda: poller.stepped_at_s)
        poller.run()
        tasks.stop(max(0.0, settings.drain_s - seconds_since()))
        telemetry.stop()
    except GroupNotLeft as error:
        _exit_now(error)
    except StoreUnavailable as error:
        _fail(f"PostgreSQL at BULKGRPC_POSTGRES does not answer: {error}")
    except (KafkaMisconfigured, WrongTelemetry) as error:
        _fail(str(error), WRONG_SETTINGS)
    except (SchemaMissing, RightsMissing, KafkaUnavailable) as error:
        _fail(str(error))
    except (RecordLogError, StoreError) as error:
        log.exception("worker_failed")
        _fail(str(error))


def stop_on_signals(stopping: threading.Event) -> Callable[[], float]:
    """Set `stopping` at SIGTERM or SIGINT. Returns a function that returns the seconds since the last one."""
    signalled_s = time.monotonic()

    def stop(_signal: int, _frame: FrameType | None) -> None:
        nonlocal signalled_s
        signalled_s = time.monotonic()
        stopping.set()

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    return lambda: time.monotonic() - signalled_s


def open_topic(settings: WorkerSettings) -> None:
    """Create the topic if nothing knows of one. A topic that was deleted is awaited: others of the worker's tasks run.

    Raises KafkaUnavailable, StoreUnavailable.
    """
    try:
        ensure_topic(settings, lambda: may_create(settings.postgres, settings.topic))
    except TopicMissing as error:
        log.warning("topic_missing", topic=settings.topic, reason=str(error))
    except PostgresUnavailable as error:
        raise StoreUnavailable(str(error)) from error


def wire_drain(
    settings: WorkerSettings,
    registry: DatasetRegistry,
    stopping: threading.Event,
    on_task: Callable[[], None] = lambda: None,
) -> Drain:
    """Return the drain on PostgreSQL. It does not connect yet. on_task: called when it may have left a task."""

    def parked() -> PostgresParkedMessages:
        return PostgresParkedMessages(settings.postgres, settings.topic, registry, message_of, on_task)

    return Drain(parked, stopping)


def wire(
    settings: WorkerSettings,
    registry: DatasetRegistry,
    stopping: threading.Event,
    on_parked: Callable[[], None] = lambda: None,
    on_task: Callable[[], None] = lambda: None,
) -> Poller:
    """Return a poll loop on Kafka and PostgreSQL. It connects to neither yet.

    on_parked: called after parking. on_task: called when an atomic job was left to a task.
    """
    check = TopicCheck(KafkaTopicLog(settings), PostgresTopicLedger(settings.postgres, settings.topic))
    ports = WorkerPorts(
        log=RecordsConsumer(settings),
        ledger=PostgresLedger(settings.postgres, settings.topic),
        writer=PostgresChunkWriter(settings.postgres, settings.topic, on_task),
        registry=registry,
        dead_letters=DeadLetters(settings),
        topic=CheckingTopicWatch(check, settings.topic, stopping),
        ledger_watch=BeatingLedgerWatch(
            PostgresHeartbeats(settings.postgres, settings.topic), KafkaGroupOffsets(settings), stopping
        ),
    )
    express = ExpressPorts(
        open_log=partial(KafkaExpressLog, settings),
        ledger=ports.ledger,
        writer=PostgresExpressWriter(settings.postgres, settings.topic, on_task),
        registry=registry,
    )
    writer = WriterThread(ports.writer, ports.registry, ports.dead_letters, stopping)
    return Poller(settings, ports, writer, Express(express, stopping), stopping, on_parked)


def _fail(message: str, status: int = 1) -> None:
    sys.stderr.write(f"error: {message}\n")
    raise typer.Exit(status)


def _exit_now(error: GroupNotLeft) -> None:
    """Exit without cleaning up: with status 0 if only leaving the group failed, else with 1 and the earlier error."""
    log.warning("group_not_left", reason=str(error))
    if error.__context__ is not None:
        sys.stderr.write(f"error: {error.__context__}\n")
    sys.stderr.flush()
    os._exit(0 if error.__context__ is None else 1)


def main() -> None:
    """Entry point."""
    app()


if __name__ == "__main__":
    main()
