"""The values of the client: batches, progress, jobs, rejections, datasets; and their conversion from messages."""

from __future__ import annotations

from collections.abc import AsyncIterable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime

from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from bulkgrpc.client.errors import WrongInput
from bulkgrpc.datasets.binding import ExistingTable
from bulkgrpc.datasets.column_fit import ColumnFit, Verdict
from bulkgrpc.datasets.columns import Column
from bulkgrpc.datasets.definition import ConflictPolicy, Dataset, TimePartitions
from bulkgrpc.datasets.operations import Operation
from bulkgrpc.datasets.periods import PartitionPeriod
from bulkgrpc.datasets.provenance import Provenance
from bulkgrpc.model import ApplyProgress, BlockedBy, JobBlock, JobCounts, JobOptions, JobState
from bulkgrpc.v1 import datasets_pb2, ingest_pb2, jobs_pb2, options_pb2


@dataclass(frozen=True, slots=True)
class Batch:
    """An encoded batch.

    payload: the wire bytes of `repeated T records = 2`, without a sequence. records: number of records.
    """

    payload: bytes
    records: int

    @classmethod
    def of(cls, payload: bytes) -> Batch:
        """Return a batch of wire bytes. Native code counts its records. Raises DecodeError if they are not a batch."""
        return cls(payload, len(ingest_pb2.RecordBatch.FromString(payload).records))


Item = Message | bytes | Batch
"""A record, as a message of the dataset's type; or a batch, as bytes or as `Batch`."""
Source = Iterable[Item] | AsyncIterable[Item]
"""The items to submit."""


@dataclass(frozen=True, slots=True)
class Progress:
    """The progress of a submission. Acknowledged batches are durable, also those of an earlier submission."""

    sent_batches: int = 0
    sent_records: int = 0
    sent_bytes: int = 0
    acknowledged_batches: int = 0
    acknowledged_records: int = 0
    acknowledged_bytes: int = 0
    streams: int = 0
    """Streams opened so far. More than one: a stream broke."""


@dataclass(frozen=True, slots=True)
class Job:
    """A job as the server last returned it.

    name: `tenants/{tenant}/jobs/{job}`. dataset: the dataset's name. next_sequence: sequence of the next batch that it
    accepts. seal_time, end_time: None until it is sealed, until it has ended. failure_reason: why it failed, "" if it
    did not. options: as it was opened. overdue_s: seconds since the time by which it should have ended; 0 if that is
    not past, or it is blocked. block: why its batches wait; None if they do not. discard_reason: why an operator
    discarded records of it, "" if none did. late_batches: that arrived after its seal; no count has their records.
    apply_progress: of a sealed atomic job whose staged rows are applied, or wait for that; else None.
    """

    name: str
    dataset: str
    dataset_version: int
    state: JobState
    counts: JobCounts
    next_sequence: int
    idempotency_key: str
    labels: dict[str, str]
    create_time: datetime | None
    seal_time: datetime | None
    end_time: datetime | None
    failure_reason: str = ""
    options: JobOptions = JobOptions()
    overdue_s: float = 0.0
    block: JobBlock | None = None
    discard_reason: str = ""
    late_batches: int = 0
    apply_progress: ApplyProgress | None = None

    @property
    def ended(self) -> bool:
        """Whether the job has ended."""
        return self.state.ended


def job_of(proto: jobs_pb2.Job) -> Job:
    """Convert a job from its message."""
    counts = proto.counts
    return Job(
        name=proto.name,
        dataset=proto.dataset.removeprefix("datasets/"),
        dataset_version=proto.dataset_version,
        state=JobState(proto.state or JobState.OPEN),
        counts=JobCounts(
            counts.accepted, counts.written, counts.duplicate, counts.rejected, counts.expired, counts.skipped
        ),
        next_sequence=proto.next_sequence,
        idempotency_key=proto.idempotency_key,
        labels=dict(proto.labels),
        create_time=time_of(proto.create_time) if proto.HasField("create_time") else None,
        seal_time=time_of(proto.seal_time) if proto.HasField("seal_time") else None,
        end_time=time_of(proto.end_time) if proto.HasField("end_time") else None,
        failure_reason=proto.failure_reason,
        options=options_of(proto.options),
        overdue_s=_seconds(proto.overdue_duration),
        block=_block(proto.block) if proto.HasField("block") else None,
        discard_reason=proto.discard_reason,
        late_batches=proto.late_batches,
        apply_progress=_progress(proto.apply_progress) if proto.HasField("apply_progress") else None,
    )


def _progress(proto: jobs_pb2.ApplyProgress) -> ApplyProgress:
    return ApplyProgress(proto.staged_rows, proto.applied_rows)


def _block(proto: jobs_pb2.JobBlock) -> JobBlock:
    cause = jobs_pb2.JobBlock.Cause.Name(proto.cause).removeprefix("CAUSE_").lower()
    return JobBlock(BlockedBy(cause), proto.reason, time_of(proto.block_time))


def options_of(proto: jobs_pb2.JobOptions) -> JobOptions:
    """Convert a job's options from their message."""
    return JobOptions(proto.atomic, proto.rejections_max, _seconds(proto.time_to_live))


def options_message(options: JobOptions) -> jobs_pb2.JobOptions | None:
    """Convert a job's options to their message; None for the defaults."""
    if options == JobOptions():
        return None
    message = jobs_pb2.JobOptions(atomic=options.atomic, rejections_max=options.rejections_max)
    if options.time_to_live_s:
        message.time_to_live.FromMicroseconds(round(options.time_to_live_s * 1e6))
    return message


@dataclass(frozen=True, slots=True)
class Rejection:
    """A rejected record.

    sequence, record_index: its batch, and its index there. code: stable, for programs. field: path of the invalid
    field, "" if the whole record is invalid. record: its bytes; empty unless requested.
    """

    sequence: int
    record_index: int
    code: str
    field: str
    reason: str
    record: bytes


def rejection_of(proto: jobs_pb2.Rejection) -> Rejection:
    """Convert a rejection from its message."""
    return Rejection(proto.sequence, proto.record_index, proto.code, proto.field, proto.reason, proto.record)


_CONFLICT_POLICIES: dict[int, ConflictPolicy] = {
    options_pb2.CONFLICT_POLICY_UPDATE: "update",
    options_pb2.CONFLICT_POLICY_REJECT: "reject",
    options_pb2.CONFLICT_POLICY_APPEND: "append",
}
_VERDICT = datasets_pb2.ColumnFit.Verdict
_PERIODS = {
    options_pb2.PARTITION_PERIOD_DAY: PartitionPeriod.DAY,
    options_pb2.PARTITION_PERIOD_WEEK: PartitionPeriod.WEEK,
    options_pb2.PARTITION_PERIOD_MONTH: PartitionPeriod.MONTH,
}


def _verdict(proto: int) -> Verdict:
    # What a newer server may say beyond these is not known to fit.
    return next((one for one in Verdict if _VERDICT.Value(f"VERDICT_{one.name}") == proto), Verdict.REFUSED)


@dataclass(frozen=True, slots=True)
class DatasetPlan:
    """The effect that registering a dataset would have.

    dataset: the resulting dataset. statements: SQL that would run. new_version: whether it would be a new version. Of a
    dataset that is bound to a table that exists: columns: what becomes of each column. refusals: why registering it
    would be refused because of the table, one line each; empty if it would not.
    """

    dataset: Dataset
    statements: tuple[str, ...]
    new_version: bool
    columns: tuple[ColumnFit, ...] = ()
    refusals: tuple[str, ...] = ()


def plan_of(proto: datasets_pb2.RegisterDatasetResponse) -> DatasetPlan:
    """Convert a plan from its message."""
    columns = tuple(
        ColumnFit(fit.column, fit.field, fit.written_type, fit.table_type, _verdict(fit.verdict), fit.note)
        for fit in proto.column_fits
    )
    return DatasetPlan(
        dataset_of(proto.dataset), tuple(proto.statements), proto.new_version, columns, tuple(proto.refusals)
    )


def dataset_of(proto: datasets_pb2.Dataset) -> Dataset:
    """Convert a dataset from its message. `descriptors` is empty if the server omitted them."""
    period = _PERIODS.get(proto.time_partition_period)
    return Dataset(
        name=proto.name.removeprefix("datasets/"),
        version=proto.version,
        message_type=proto.message_type,
        key=tuple(proto.key),
        columns=tuple(Column(column.name, column.field, column.type, column.nullable) for column in proto.columns),
        descriptors=proto.descriptors.SerializeToString() if proto.HasField("descriptors") else b"",
        conflict_policy=_CONFLICT_POLICIES.get(proto.conflict_policy, "ignore"),
        dedupe_window_s=_seconds(proto.dedupe_window),
        lanes=proto.lanes or 1,
        time_to_live_s=_seconds(proto.time_to_live),
        hash_partitions=proto.hash_partitions,
        time_partitions=TimePartitions(proto.time_partition_column, period) if period is not None else None,
        operation=_operation(proto.operation) if proto.HasField("operation") else None,
        existing=_existing(proto.existing_table) if proto.HasField("existing_table") else None,
        provenance=_provenance(proto.provenance) if proto.HasField("provenance") else None,
    )


def _operation(proto: options_pb2.Operation) -> Operation:
    return Operation(proto.field, proto.delete, values=())


def _provenance(proto: options_pb2.Provenance) -> Provenance:
    return Provenance(proto.job, proto.sequence, proto.write_time)


def _existing(proto: options_pb2.ExistingTable) -> ExistingTable:
    in_key = bool(proto.tenant_column) and not proto.key_without_tenant
    return ExistingTable(proto.schema, proto.table, proto.tenant_column, proto.only_tenant, in_key)


def name_and_version(dataset: str | Dataset) -> tuple[str, int]:
    """Return a dataset's name and version; version 0 if none is given. Raises WrongInput for an invalid version."""
    if isinstance(dataset, Dataset):
        return dataset.name, dataset.version
    name, at, version = dataset.partition("@")
    if at and (not version.isascii() or not version.isdigit() or not 1 <= int(version) < 2**31):
        raise WrongInput(f"{version!r} in {dataset!r} is not a version: use a whole number of 1 or more")
    return name, int(version or 0)


def resource(dataset: str) -> str:
    """Return a dataset's resource name. dataset: its name, with or without `datasets/`."""
    return dataset if dataset.startswith("datasets/") else f"datasets/{dataset}"


def _seconds(duration: Duration) -> float:
    return duration.seconds + duration.nanos / 1e9


def time_of(stamp: Timestamp) -> datetime:
    """Convert a time from its message."""
    return stamp.ToDatetime(tzinfo=UTC)
