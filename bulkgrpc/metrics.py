"""Every metric, with its unit and meaning. Recorded through OpenTelemetry: nothing is sent unless a provider is set."""

from __future__ import annotations

from opentelemetry import metrics

_meter = metrics.get_meter("bulkgrpc")

jobs_overdue = _meter.create_gauge(
    "bulkgrpc.jobs.overdue", unit="{job}", description="Jobs that have not ended 300 s after their seal"
)
jobs_abandoned = _meter.create_counter(
    "bulkgrpc.jobs.abandoned",
    unit="{job}",
    description="Open jobs ended as EXPIRED because their client never came back",
)
records_written = _meter.create_counter(
    "bulkgrpc.records.written", unit="{record}", description="Records that are in a table because of this worker"
)
records_rejected = _meter.create_counter(
    "bulkgrpc.records.rejected", unit="{record}", description="Records that this worker put into a rejection report"
)
records_expired = _meter.create_counter(
    "bulkgrpc.records.expired", unit="{record}", description="Records that this worker discarded and counted"
)
chunk_rows = _meter.create_gauge(
    "bulkgrpc.chunk.rows", unit="{row}", description="Rows after which this worker takes a chunk for full, as tuned"
)
chunk_seconds = _meter.create_histogram(
    "bulkgrpc.chunk.duration", unit="s", description="Time of a chunk's transaction, its commit included"
)
chunks_refused = _meter.create_counter(
    "bulkgrpc.chunks.refused",
    unit="{chunk}",
    description="Chunks that the ledger did not take: replayed, after a gap, fenced",
)
partitions_stalled = _meter.create_counter(
    "bulkgrpc.partitions.stalled",
    unit="{partition}",
    description="Partitions whose messages Kafka had and did not send, so that this worker joined its group anew",
)
messages_dead = _meter.create_counter(
    "bulkgrpc.messages.dead", unit="{message}", description="Messages that this worker put on the dead-letter topic"
)
