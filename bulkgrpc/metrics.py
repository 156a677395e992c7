"""Every metric, with its unit and meaning, through OpenTelemetry. `telemetry.set_up` exports them.

`REGISTRY` has them all; `docs/metrics.md` is generated from it.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from opentelemetry import metrics
from opentelemetry.metrics import CallbackOptions, Counter, Histogram, Observation
from opentelemetry.metrics import (
    _Gauge as Gauge,
)  # the API exports the type of a synchronous gauge under this name only

from bulkgrpc.model import JobCounts


class Kind(enum.StrEnum):
    """What a metric counts or measures."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


class Process(enum.StrEnum):
    """Which processes have a metric."""

    SERVER = "server"
    WORKER = "worker"


@dataclass(frozen=True, slots=True)
class Metric:
    """A metric as users see it. attributes: names of its labels, beside those of the process."""

    name: str
    kind: Kind
    process: Process
    unit: str
    description: str
    attributes: Sequence[str] = ()

    @property
    def prometheus(self) -> str:
        """Its name at the endpoint `/metrics`; of a histogram without `_bucket`, `_sum` and `_count`."""
        unit = "_seconds" if self.unit == "s" else ""
        return self.name.replace(".", "_") + unit + ("_total" if self.kind is Kind.COUNTER else "")


REGISTRY: list[Metric] = []
_counters: list[tuple[Metric, Counter]] = []
DURATION_BOUNDS_S = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 300.0)
_meter = metrics.get_meter("bulkgrpc")


def _counter(process: Process, name: str, *, unit: str, description: str, attributes: Sequence[str] = ()) -> Counter:
    metric = Metric(name, Kind.COUNTER, process, unit, description, attributes)
    counter = _meter.create_counter(name, unit, description)
    REGISTRY.append(metric)
    _counters.append((metric, counter))
    return counter


def _gauge(process: Process, name: str, *, unit: str, description: str) -> Gauge:
    REGISTRY.append(Metric(name, Kind.GAUGE, process, unit, description))
    return _meter.create_gauge(name, unit, description)


def _seconds(process: Process, name: str, *, description: str, attributes: Sequence[str] = ()) -> Histogram:
    REGISTRY.append(Metric(name, Kind.HISTOGRAM, process, "s", description, attributes))
    return _meter.create_histogram(name, "s", description, explicit_bucket_boundaries_advisory=DURATION_BOUNDS_S)


class Observed:
    """A gauge whose values are asked for when they are exported. There are none until `observe` was called."""

    def __init__(self, metric: Metric) -> None:
        REGISTRY.append(metric)
        self._values: Callable[[], Iterable[Observation]] = tuple
        _meter.create_observable_gauge(metric.name, [self._observe], metric.unit, metric.description)

    def observe(self, values: Callable[[], Iterable[Observation]]) -> None:
        """Have `values` return the current values from now on."""
        self._values = values

    def _observe(self, _options: CallbackOptions) -> Iterable[Observation]:
        return self._values()


def start_counters(process: Process) -> None:
    """Have the counters of a process begin at 0: Prometheus sees no increase in a series that begins with 1."""
    for metric, counter in _counters:
        if metric.process is process and not metric.attributes:
            counter.add(0)


queue_depth = Observed(
    Metric(
        "bulkgrpc.queue.depth",
        Kind.GAUGE,
        Process.SERVER,
        "{message}",
        "Messages of a partition that are stored and not applied yet, as the topic and the ledger say",
        ("partition",),
    )
)
message_age = Observed(
    Metric(
        "bulkgrpc.message.age",
        Kind.GAUGE,
        Process.SERVER,
        "s",
        "Age of the oldest message that is stored and not applied yet; 0 if there is none",
        ("partition",),
    )
)
backlog_work = Observed(
    Metric(
        "bulkgrpc.backlog.work",
        Kind.GAUGE,
        Process.SERVER,
        "s",
        "Seconds of work: how long the workers need for what is stored, at the rate of the last minutes; while that "
        "rate is not known, the age of the oldest message",
    )
)
streams_open = Observed(
    Metric("bulkgrpc.server.streams", Kind.GAUGE, Process.SERVER, "{stream}", "Streams that are open at this server")
)
processing_latency = _seconds(
    Process.WORKER,
    "bulkgrpc.processing.latency",
    description="Time from a batch's arrival at the server to the commit that wrote it, or parked it",
)

jobs_overdue = _gauge(
    Process.WORKER, "bulkgrpc.jobs.overdue", unit="{job}", description="Jobs that have not ended 300 s after their seal"
)
jobs_abandoned = _counter(
    Process.WORKER,
    "bulkgrpc.jobs.abandoned",
    unit="{job}",
    description="Open jobs ended as EXPIRED because their client did not resume them in time, or sealed ones as FAILED",
)
records_written = _counter(
    Process.WORKER,
    "bulkgrpc.records.written",
    unit="{record}",
    description="Records that this worker wrote to their table",
)
records_rejected = _counter(
    Process.WORKER,
    "bulkgrpc.records.rejected",
    unit="{record}",
    description="Records that this worker rejected and reported",
)
records_expired = _counter(
    Process.WORKER,
    "bulkgrpc.records.expired",
    unit="{record}",
    description="Records that this worker discarded: past their time to live, of an ended job, or by an operator",
)
batches_late = _counter(
    Process.WORKER,
    "bulkgrpc.batches.late",
    unit="{batch}",
    description="Batches that arrived after the end of their job or lane; reported apart, neither written nor counted",
)
jobs_lost = _counter(
    Process.WORKER,
    "bulkgrpc.jobs.lost",
    unit="{job}",
    description="Jobs that failed because a later message shows that Kafka lost acknowledged batches of them",
)
chunk_rows = _gauge(
    Process.WORKER,
    "bulkgrpc.chunk.rows",
    unit="{row}",
    description="Rows at which a chunk of this worker is full, as tuned",
)
chunk_seconds = _seconds(
    Process.WORKER, "bulkgrpc.chunk.duration", description="Duration of a chunk's transaction, commit included"
)
chunks_not_applied = _counter(
    Process.WORKER,
    "bulkgrpc.chunks.not_applied",
    unit="{chunk}",
    description="Chunks that were not applied and are read again: replayed, gap, fenced, or too slow",
)
partitions_stalled = _counter(
    Process.WORKER,
    "bulkgrpc.partitions.stalled",
    unit="{partition}",
    description="Partitions whose messages Kafka had and did not deliver; the worker joined its group again",
)
partitions_held = _gauge(
    Process.WORKER,
    "bulkgrpc.partitions.held",
    unit="{partition}",
    description="Partitions of this worker whose next message is of a newer format: they wait for a newer worker",
)
offsets_passed_over = _counter(
    Process.WORKER,
    "bulkgrpc.offsets.passed_over",
    unit="{offset}",
    description="Offsets without a message that this worker passed over: control records, aborted transactions",
)
partitions_stopped = _gauge(
    Process.WORKER,
    "bulkgrpc.partitions.stopped",
    unit="{partition}",
    description="Partitions of this worker that it does not apply: their logs do not match the ledger",
)
ledger_older = _counter(
    Process.WORKER,
    "bulkgrpc.ledger.older",
    unit="{restore}",
    description="Times that this worker found the ledger older than what was applied, as after a restore of PostgreSQL",
)
messages_dead = _counter(
    Process.WORKER,
    "bulkgrpc.messages.dead",
    unit="{message}",
    description="Messages of no job that this worker stored on the dead-letter topic",
)
server_calls = _counter(
    Process.SERVER,
    "bulkgrpc.server.calls",
    unit="{call}",
    description="Calls that this server has ended",
    attributes=("rpc", "code"),
)
server_call_seconds = _seconds(
    Process.SERVER,
    "bulkgrpc.server.call.duration",
    description="Time from a call's start to its status; of streams, all of it",
    attributes=("rpc", "code"),
)
messages_parked = _counter(
    Process.WORKER,
    "bulkgrpc.messages.parked",
    unit="{message}",
    description="Messages that this worker parked: their datasets or jobs are blocked",
)
messages_express = _counter(
    Process.WORKER,
    "bulkgrpc.messages.express",
    unit="{message}",
    description="Messages that this worker applied ahead of others, because they waited behind a hot tenant's",
)
messages_drained = _counter(
    Process.WORKER,
    "bulkgrpc.messages.drained",
    unit="{message}",
    description="Parked messages that this worker applied",
)
datasets_blocked = _counter(
    Process.WORKER,
    "bulkgrpc.datasets.blocked",
    unit="{dataset}",
    description="Times that this worker blocked a dataset",
)
jobs_blocked = _counter(
    Process.WORKER, "bulkgrpc.jobs.blocked", unit="{job}", description="Times that this worker blocked a job"
)

task_seconds = _seconds(
    Process.WORKER,
    "bulkgrpc.apply_task.duration",
    description="Time in which this worker applied an atomic job's staged rows",
)


def count_records(counts: Iterable[JobCounts]) -> None:
    """Count what a chunk, or a task, did to the records of its jobs."""
    total = sum(counts, JobCounts())
    records_written.add(total.written)
    records_rejected.add(total.rejected)
    records_expired.add(total.expired)
