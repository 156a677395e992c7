"""Converts the status of datasets and the ledger to the public messages. Pure."""

from __future__ import annotations

from bulkgrpc.blocks import DatasetStatus, LedgerSnapshot, Parked, ParkedQueue, TenantParked
from bulkgrpc.ingest.jobs import PARENT_PREFIX
from bulkgrpc.ingest.messages import DATASET_PREFIX
from bulkgrpc.server.grpc.conversion import to_time
from bulkgrpc.v1 import datasets_pb2, ledger_pb2


def to_parked(parked: Parked) -> datasets_pb2.ParkedMessages:
    """Return the public form of what is parked."""
    return datasets_pb2.ParkedMessages(
        messages=parked.messages,
        records=parked.records,
        payload_bytes=parked.payload_bytes,
        jobs=parked.jobs,
        oldest_time=to_time(parked.oldest_time),
    )


def to_tenant_parked(found: TenantParked) -> datasets_pb2.TenantParkedMessages:
    """Return the public form of what is parked of a tenant."""
    return datasets_pb2.TenantParkedMessages(tenant=PARENT_PREFIX + found.tenant, parked=to_parked(found.parked))


def to_status(status: DatasetStatus) -> datasets_pb2.DatasetStatus:
    """Return the public form of a dataset's status."""
    return datasets_pb2.DatasetStatus(
        dataset=DATASET_PREFIX + status.dataset,
        state=f"DATASET_STATE_{status.state.name}",
        reason=status.reason,
        sqlstate=status.sqlstate,
        block_time=to_time(status.block_time),
        trials=status.trials,
        next_trial_time=to_time(status.next_trial_time),
        parked=to_parked(status.parked),
    )


def to_ledger(ledger: LedgerSnapshot) -> ledger_pb2.GetLedgerResponse:
    """Return the public form of the ledger."""
    return ledger_pb2.GetLedgerResponse(
        topic=ledger.topic,
        partitions=[
            ledger_pb2.PartitionPosition(
                partition=one.partition,
                next_offset=one.next_offset,
                owner_epoch=one.owner_epoch,
                stop_reason=one.stop_reason,
                stop_time=one.stop_time,
            )
            for one in ledger.partitions
        ],
        queues=[_queue(one) for one in ledger.queues],
        omitted_queues=ledger.omitted_queues,
    )


def _queue(queue: ParkedQueue) -> ledger_pb2.ParkedQueue:
    return ledger_pb2.ParkedQueue(
        partition=queue.partition,
        tenant=PARENT_PREFIX + queue.tenant,
        dataset=DATASET_PREFIX + queue.dataset,
        parked=to_parked(queue.parked),
        reason=queue.reason,
        trials=queue.trials,
    )
