"""Blocked datasets and the ledger as operators see and change them."""

from __future__ import annotations

from bulkgrpc.blocks import DatasetState, DatasetStatus, LedgerSnapshot
from bulkgrpc.errors import NotNow, Reason
from bulkgrpc.ingest.datasets import dataset_name
from bulkgrpc.ingest.ports import Blocks, PostgresUnavailable
from bulkgrpc.ingest.refusals import dataset_not_found, invalid_field, postgres_unavailable
from bulkgrpc.limits import REASON_CHARS_MAX


class DatasetBlocks:
    """What an operator may do with blocked datasets.

    Every method raises Invalid for a wrong name, NotFound (DATASET_NOT_FOUND), Unavailable (POSTGRES_UNAVAILABLE).
    """

    def __init__(self, blocks: Blocks) -> None:
        self._blocks = blocks

    async def status(self, name: str) -> DatasetStatus:
        """Return the status of a dataset."""
        dataset = dataset_name(name)
        try:
            return _found(dataset, await self._blocks.status(dataset))
        except PostgresUnavailable as error:
            raise postgres_unavailable(error) from error

    async def pause(self, name: str, reason: str) -> DatasetStatus:
        """Pause a dataset: its messages are parked until `resume`."""
        dataset = dataset_name(name)
        if len(reason) > REASON_CHARS_MAX:
            raise invalid_field("reason", f"a reason of {len(reason)} characters; at most {REASON_CHARS_MAX}")
        try:
            return _found(dataset, await self._blocks.pause(dataset, reason))
        except PostgresUnavailable as error:
            raise postgres_unavailable(error) from error

    async def resume(self, name: str) -> DatasetStatus:
        """Lift a pause, try a blocked table now, and discard nothing more."""
        dataset = dataset_name(name)
        try:
            return _found(dataset, await self._blocks.resume(dataset))
        except PostgresUnavailable as error:
            raise postgres_unavailable(error) from error

    async def discard(self, name: str, *, validate_only: bool) -> tuple[DatasetStatus, DatasetStatus]:
        """Discard what is parked of a dataset; return its status before, with what is discarded, and after.

        validate_only: change nothing. Raises NotNow (DATASET_NOT_BLOCKED) if the dataset is writable.
        """
        dataset = dataset_name(name)
        try:
            if validate_only:
                before = after = _found(dataset, await self._blocks.status(dataset))
            else:
                found = await self._blocks.discard(dataset)
                if found is None:
                    raise dataset_not_found(dataset, "name")
                before, after = found
        except PostgresUnavailable as error:
            raise postgres_unavailable(error) from error
        if before.state is DatasetState.WRITABLE:
            raise NotNow(
                Reason.DATASET_NOT_BLOCKED,
                f"dataset {dataset} is neither blocked nor paused, so that what is parked of it is applied: pause it "
                f"first with `bulkgrpc datasets pause {dataset}`",
                field="name",
            )
        return before, after

    async def ledger(self) -> LedgerSnapshot:
        """Return the positions of the partitions and the queues of parked messages."""
        try:
            return await self._blocks.ledger()
        except PostgresUnavailable as error:
            raise postgres_unavailable(error) from error


def _found(dataset: str, status: DatasetStatus | None) -> DatasetStatus:
    if status is None:
        raise dataset_not_found(dataset, "name")
    return status
