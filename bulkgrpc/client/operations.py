"""The values of operators' calls, converted from messages: the status of datasets, what was discarded, the ledger."""

from __future__ import annotations

from dataclasses import dataclass

from bulkgrpc.blocks import (
    DatasetState,
    DatasetStatus,
    LedgerSnapshot,
    Parked,
    ParkedQueue,
    PartitionPosition,
    TenantParked,
)
from bulkgrpc.client.model import time_of
from bulkgrpc.v1 import datasets_pb2, ledger_pb2


@dataclass(frozen=True, slots=True)
class Discarded:
    """What a call discards, or would discard. status: after the call. tenants: of `parked`, most bytes first."""

    status: DatasetStatus
    parked: Parked
    tenants: tuple[TenantParked, ...]


def status_of(proto: datasets_pb2.DatasetStatus) -> DatasetStatus:
    """Convert the status of a dataset from its message. `tenants` is empty."""
    return DatasetStatus(
        dataset=proto.dataset.removeprefix("datasets/"),
        state=DatasetState(proto.state or DatasetState.WRITABLE.value),
        parked=_parked(proto.parked),
        reason=proto.reason,
        sqlstate=proto.sqlstate,
        block_time=time_of(proto.block_time) if proto.HasField("block_time") else None,
        trials=proto.trials,
        next_trial_time=time_of(proto.next_trial_time) if proto.HasField("next_trial_time") else None,
    )


def discarded_of(proto: datasets_pb2.DiscardParkedResponse) -> Discarded:
    """Convert what is discarded from its message."""
    tenants = tuple(TenantParked(one.tenant.removeprefix("tenants/"), _parked(one.parked)) for one in proto.tenants)
    return Discarded(status_of(proto.status), _parked(proto.discarded), tenants)


def ledger_of(proto: ledger_pb2.GetLedgerResponse) -> LedgerSnapshot:
    """Convert the ledger from its message."""
    return LedgerSnapshot(
        topic=proto.topic,
        partitions=tuple(
            PartitionPosition(
                one.partition,
                one.next_offset,
                one.owner_epoch,
                one.stop_reason,
                time_of(one.stop_time) if one.HasField("stop_time") else None,
            )
            for one in proto.partitions
        ),
        queues=tuple(
            ParkedQueue(
                partition=one.partition,
                tenant=one.tenant.removeprefix("tenants/"),
                dataset=one.dataset.removeprefix("datasets/"),
                parked=_parked(one.parked),
                reason=one.reason,
                trials=one.trials,
            )
            for one in proto.queues
        ),
        omitted_queues=proto.omitted_queues,
    )


def _parked(proto: datasets_pb2.ParkedMessages) -> Parked:
    return Parked(
        messages=proto.messages,
        records=proto.records,
        payload_bytes=proto.payload_bytes,
        jobs=proto.jobs,
        oldest_time=time_of(proto.oldest_time) if proto.HasField("oldest_time") else None,
    )
