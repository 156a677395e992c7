"""`bulkgrpc-worker`: settings, checks, signals; then the loop until SIGTERM."""

from __future__ import annotations

import os
import signal
import sys
import threading
from types import FrameType
from typing import Annotated

# Before ptars is loaded: a hostile record makes it panic, which is caught; its backtrace would only fill the log.
os.environ["RUST_BACKTRACE"] = "0"

import psycopg
import pyarrow as pa
import structlog
import typer
from confluent_kafka import KafkaException

from bulkgrpc import allocator, logs
from bulkgrpc.kafka.consumer import GroupNotLeft, OffsetLost
from bulkgrpc.kafka.topics import KafkaUnavailable, ensure_topic
from bulkgrpc.postgres import schema
from bulkgrpc.postgres.connection import connect
from bulkgrpc.settings import WorkerSettings, load
from workers.maintenance import Maintenance
from workers.poller import DatasetGone, Poller

log = structlog.get_logger()

ARENAS = 2
"""One for each of the threads that handle records."""


def run(
    group: Annotated[
        str | None, typer.Option(help="Kafka consumer group; workers of one group share the load.")
    ] = None,
    chunk_rows_max: Annotated[int | None, typer.Option(help="Most rows in one transaction.")] = None,
) -> None:
    """Run a worker: reads batches from Kafka, writes them to PostgreSQL, until SIGTERM.

    Start as many as there are partitions of the records topic; each takes its share by itself. Where the stores are, it
    reads from BULKGRPC_KAFKA and BULKGRPC_POSTGRES.
    """
    settings = load(WorkerSettings, group=group, chunk_rows_max=chunk_rows_max)
    allocator.keep_flat(ARENAS)
    pa.set_memory_pool(pa.system_memory_pool())
    logs.set_up()
    stopping = threading.Event()

    def stop(_signal: int, _frame: FrameType | None) -> None:
        stopping.set()

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    try:
        with connect(settings.postgres, "bulkgrpc-worker-check") as connection:
            schema.check(connection)
        ensure_topic(settings)
        poller = Poller(settings, stopping)
        Maintenance(settings, stopping).start()
        sys.stdout.write(f"working on {settings.topic} as a member of {settings.group}\n")
        sys.stdout.flush()
        poller.run()
    except GroupNotLeft as error:
        _end_at_once(error)
    except psycopg.OperationalError as error:
        _fail(f"PostgreSQL at BULKGRPC_POSTGRES does not answer: {str(error).strip()}")
    except (schema.SchemaMissing, KafkaUnavailable) as error:
        _fail(str(error))
    except OffsetLost as error:
        _fail(f"Kafka has no longer the offset that the ledger (table bulk.offsets) needs next: {error}")
    except (DatasetGone, KafkaException, psycopg.Error) as error:
        log.exception("worker_failed")
        _fail(str(error))


def _fail(message: str) -> None:
    sys.stderr.write(f"error: {message}\n")
    raise typer.Exit(1)


def _end_at_once(error: GroupNotLeft) -> None:
    """End without cleaning up: with 0 if all was done but to leave, else with 1 and what had gone wrong before."""
    log.warning("group_not_left", reason=str(error))
    if error.__context__ is not None:
        sys.stderr.write(f"error: {error.__context__}\n")
    sys.stderr.flush()
    os._exit(0 if error.__context__ is None else 1)


def main() -> None:
    """Entry point."""
    typer.run(run)


if __name__ == "__main__":
    main()
