"""Every metric, with its unit and meaning, through OpenTelemetry: exported only if a meter provider is configured."""

from __future__ import annotations

from collections.abc import Iterable

from opentelemetry import metrics

from bulkgrpc.model import JobCounts

_meter = metrics.get_meter("bulkgrpc")

jobs_overdue = _meter.create_gauge(
    "bulkgrpc.jobs.overdue", unit="{job}", description="Jobs that have not ended 300 s after their seal"
)
jobs_abandoned = _meter.create_counter(
    "bulkgrpc.jobs.abandoned",
    unit="{job}",
    description="Open jobs ended as EXPIRED because their client did not resume them in time, or sealed ones as FAILED",
)
records_written = _meter.create_counter(
    "bulkgrpc.records.written", unit="{record}", description="Records that this worker wrote to their table"
)
records_rejected = _meter.create_counter(
    "bulkgrpc.records.rejected", unit="{record}", description="Records that this worker rejected and reported"
)
records_expired = _meter.create_counter(
    "bulkgrpc.records.expired",
    unit="{record}",
    description="Records that this worker discarded: past their time to live, of an ended job, or by an operator",
)
batches_late = _meter.create_counter(
    "bulkgrpc.batches.late",
    unit="{batch}",
    description="Batches that arrived after the end of their job or lane; reported apart, neither written nor counted",
)
jobs_lost = _meter.create_counter(
    "bulkgrpc.jobs.lost",
    unit="{job}",
    description="Jobs that failed because a later message shows that Kafka lost acknowledged batches of them",
)
chunk_rows = _meter.create_gauge(
    "bulkgrpc.chunk.rows", unit="{row}", description="Rows at which a chunk of this worker is full, as tuned"
)
chunk_seconds = _meter.create_histogram(
    "bulkgrpc.chunk.duration", unit="s", description="Duration of a chunk's transaction, commit included"
)
chunks_not_applied = _meter.create_counter(
    "bulkgrpc.chunks.not_applied",
    unit="{chunk}",
    description="Chunks that were not applied and are read again: replayed, gap, fenced, or too slow",
)
partitions_stalled = _meter.create_counter(
    "bulkgrpc.partitions.stalled",
    unit="{partition}",
    description="Partitions whose messages Kafka had and did not deliver; the worker joined its group again",
)
partitions_held = _meter.create_gauge(
    "bulkgrpc.partitions.held",
    unit="{partition}",
    description="Partitions of this worker whose next message is of a newer format: they wait for a newer worker",
)
offsets_passed_over = _meter.create_counter(
    "bulkgrpc.offsets.passed_over",
    unit="{offset}",
    description="Offsets without a message that this worker passed over: control records, aborted transactions",
)
partitions_stopped = _meter.create_gauge(
    "bulkgrpc.partitions.stopped",
    unit="{partition}",
    description="Partitions of this worker that it does not apply: their logs do not match the ledger",
)
ledger_older = _meter.create_counter(
    "bulkgrpc.ledger.older",
    unit="{restore}",
    description="Times that this worker found the ledger older than what was applied, as after a restore of PostgreSQL",
)
messages_dead = _meter.create_counter(
    "bulkgrpc.messages.dead",
    unit="{message}",
    description="Messages of no job that this worker stored on the dead-letter topic",
)
server_calls = _meter.create_counter(
    "bulkgrpc.server.calls", unit="{call}", description="Calls that this server has ended, by RPC and status code"
)
server_call_seconds = _meter.create_histogram(
    "bulkgrpc.server.call.duration",
    unit="s",
    description="Time from a call's start to its status; of streams, all of it",
)
messages_parked = _meter.create_counter(
    "bulkgrpc.messages.parked",
    unit="{message}",
    description="Messages that this worker parked: their datasets or jobs are blocked",
)
messages_express = _meter.create_counter(
    "bulkgrpc.messages.express",
    unit="{message}",
    description="Messages that this worker applied ahead of others, because they waited behind a hot tenant's",
)
messages_drained = _meter.create_counter(
    "bulkgrpc.messages.drained", unit="{message}", description="Parked messages that this worker applied"
)
datasets_blocked = _meter.create_counter(
    "bulkgrpc.datasets.blocked", unit="{dataset}", description="Times that this worker blocked a dataset"
)
jobs_blocked = _meter.create_counter(
    "bulkgrpc.jobs.blocked", unit="{job}", description="Times that this worker blocked a job"
)

task_seconds = _meter.create_histogram(
    "bulkgrpc.apply_task.duration",
    unit="s",
    description="Time in which this worker applied an atomic job's staged rows",
)


def count_records(counts: Iterable[JobCounts]) -> None:
    """Count what a chunk, or a task, did to the records of its jobs."""
    total = sum(counts, JobCounts())
    records_written.add(total.written)
    records_rejected.add(total.rejected)
    records_expired.add(total.expired)
