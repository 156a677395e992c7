"""LedgerService: maps its RPC to `bulkgrpc.ingest.dataset_blocks`."""

from __future__ import annotations

from bulkgrpc.ingest.dataset_blocks import DatasetBlocks
from bulkgrpc.server.grpc.block_conversion import to_ledger
from bulkgrpc.server.grpc.interceptors import Context
from bulkgrpc.v1 import ledger_pb2, ledger_pb2_grpc


class LedgerServicer(ledger_pb2_grpc.LedgerServiceServicer):
    """The RPCs of `ledger.proto`."""

    def __init__(self, blocks: DatasetBlocks) -> None:
        self._blocks = blocks

    async def GetLedger(self, request: ledger_pb2.GetLedgerRequest, context: Context) -> ledger_pb2.GetLedgerResponse:
        """Return the positions of the partitions and the queues of parked messages."""
        return to_ledger(await self._blocks.ledger())
