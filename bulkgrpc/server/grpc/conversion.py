"""Converts the model to the public messages. Pure."""

from __future__ import annotations

from datetime import datetime

from google.protobuf.descriptor_pb2 import FileDescriptorSet
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from bulkgrpc.datasets.binding import ExistingTable
from bulkgrpc.datasets.column_fit import ColumnFit
from bulkgrpc.datasets.definition import Dataset
from bulkgrpc.datasets.provenance import Provenance
from bulkgrpc.ingest.messages import DATASET_PREFIX
from bulkgrpc.model import ApplyProgress, Job, JobBlock, JobCounts, JobOptions, to_us
from bulkgrpc.rejections import Rejection
from bulkgrpc.v1 import datasets_pb2, jobs_pb2, options_pb2


def to_job(job: Job, now: datetime) -> jobs_pb2.Job:
    """Return a job's public form, as it is at `now`."""
    spec, overdue_s = job.spec, job.overdue_s(now)
    return jobs_pb2.Job(
        name=spec.key.name,
        dataset=DATASET_PREFIX + spec.dataset,
        dataset_version=spec.dataset_version,
        state=jobs_pb2.JobState.Name(job.state),
        counts=_counts(job.counts),
        next_sequence=job.next_sequence,
        idempotency_key=spec.idempotency_key,
        labels=spec.labels,
        create_time=to_time(job.create_time),
        seal_time=to_time(job.seal_time),
        end_time=to_time(job.end_time),
        failure_reason=job.failure_reason,
        options=_options(spec.options),
        overdue_duration=_duration(overdue_s) if overdue_s else None,
        block=_block(job.block),
        discard_reason=job.discard_reason,
        late_batches=job.late_batches,
        apply_progress=_progress(job.apply_progress),
    )


def to_rejection(rejection: Rejection) -> jobs_pb2.Rejection:
    """Return a rejection's public form."""
    return jobs_pb2.Rejection(
        sequence=rejection.sequence,
        record_index=rejection.record_index,
        code=rejection.code,
        field=rejection.field,
        reason=rejection.reason,
        record=rejection.record,
    )


def to_dataset(dataset: Dataset, create_time: datetime | None = None, *, descriptors: bool) -> datasets_pb2.Dataset:
    """Return a dataset's public form, with or without its descriptors."""
    partitions, operation = dataset.time_partitions, dataset.operation
    return datasets_pb2.Dataset(
        name=DATASET_PREFIX + dataset.name,
        version=dataset.version,
        message_type=dataset.message_type,
        table=dataset.table,
        key=dataset.key,
        conflict_policy=f"CONFLICT_POLICY_{dataset.conflict_policy.upper()}",
        columns=[
            datasets_pb2.Column(name=column.name, field=column.field, type=column.type, nullable=column.nullable)
            for column in dataset.columns
        ],
        descriptors=FileDescriptorSet.FromString(dataset.descriptors) if descriptors else None,
        create_time=to_time(create_time),
        dedupe_window=_duration(dataset.dedupe_window_s) if dataset.dedupe_window_s else None,
        lanes=dataset.lanes,
        time_to_live=_duration(dataset.time_to_live_s) if dataset.time_to_live_s else None,
        hash_partitions=dataset.hash_partitions,
        time_partition_column="" if partitions is None else partitions.column,
        time_partition_period=f"PARTITION_PERIOD_{partitions.period.name}" if partitions is not None else None,
        operation=None if operation is None else options_pb2.Operation(field=operation.field, delete=operation.delete),
        existing_table=_existing(dataset.existing),
        provenance=_provenance(dataset.provenance),
    )


def to_column_fit(found: ColumnFit) -> datasets_pb2.ColumnFit:
    """Return the public form of what becomes of a column."""
    return datasets_pb2.ColumnFit(
        column=found.column,
        field=found.field,
        written_type=found.written_type,
        table_type=found.table_type,
        verdict=f"VERDICT_{found.verdict.name}",
        note=found.note,
    )


def _provenance(found: Provenance | None) -> options_pb2.Provenance | None:
    if found is None:
        return None
    return options_pb2.Provenance(job=found.job, sequence=found.sequence, write_time=found.write_time)


def _existing(found: ExistingTable | None) -> options_pb2.ExistingTable | None:
    if found is None:
        return None
    table = options_pb2.ExistingTable(schema=found.schema, table=found.table)
    if found.tenant_column:
        table.tenant_column, table.key_without_tenant = found.tenant_column, not found.tenant_in_key
    elif found.only_tenant:
        table.only_tenant = found.only_tenant
    else:
        table.tenant_not_stored = True
    return table


def _block(block: JobBlock | None) -> jobs_pb2.JobBlock | None:
    if block is None:
        return None
    return jobs_pb2.JobBlock(
        cause=f"CAUSE_{block.cause.name}", reason=block.reason, block_time=to_time(block.block_time)
    )


def _progress(progress: ApplyProgress | None) -> jobs_pb2.ApplyProgress | None:
    if progress is None:
        return None
    return jobs_pb2.ApplyProgress(staged_rows=progress.staged_rows, applied_rows=progress.applied_rows)


def _counts(counts: JobCounts) -> jobs_pb2.JobCounts:
    return jobs_pb2.JobCounts(
        accepted=counts.accepted,
        written=counts.written,
        duplicate=counts.duplicate,
        rejected=counts.rejected,
        expired=counts.expired,
        skipped=counts.skipped,
    )


def _options(options: JobOptions) -> jobs_pb2.JobOptions:
    return jobs_pb2.JobOptions(
        atomic=options.atomic,
        rejections_max=options.rejections_max,
        time_to_live=_duration(options.time_to_live_s) if options.time_to_live_s else None,
    )


def _duration(seconds: float) -> Duration:
    duration = Duration()
    duration.FromMicroseconds(round(seconds * 1e6))
    return duration


def to_time(time: datetime | None) -> Timestamp | None:
    """Return a time's public form; None stays None."""
    if time is None:
        return None
    stamp = Timestamp()
    stamp.FromMicroseconds(to_us(time))
    return stamp
