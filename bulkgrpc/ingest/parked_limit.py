"""A bound on what is parked: streams of a blocked dataset are refused before PostgreSQL's disk is full.

| parked of the dataset          | a job without an acknowledged batch | batches of another job |
|--------------------------------|-------------------------------------|------------------------|
| up to `bytes_max`              | accepted                            | accepted               |
| above `bytes_max`              | refused                             | accepted               |
| above twice `bytes_max`        | refused                             | refused                |

One task of the process reads what is parked every few seconds, so a stream costs no query. Nothing that was
acknowledged is lost: a refused client resumes. While PostgreSQL is unavailable everything is accepted: then Kafka keeps
it, and nothing is parked.
"""

from __future__ import annotations

import asyncio
from typing import Final, NoReturn

from bulkgrpc.blocks import BlockedDataset
from bulkgrpc.errors import Reason, TooMuch
from bulkgrpc.ingest.ports import Blocks, PostgresUnavailable

READ_S: Final = 3.0
RETRY_AFTER_S: Final = 10.0
"""A blocked table is tried every 10 s."""


class ParkedLimit:
    """What is parked of the datasets that are blocked. Belongs to one event loop; one task calls `run`."""

    def __init__(self, blocks: Blocks, bytes_max: int) -> None:
        self._blocks = blocks
        self._bytes_max = bytes_max
        self._blocked: dict[str, BlockedDataset] = {}

    async def run(self) -> NoReturn:
        """Read what is parked until cancelled."""
        try:
            while True:
                await self.read()
                await asyncio.sleep(READ_S)
        finally:
            # Whatever ends this task: what was read is out of date then.
            self._blocked = {}

    async def read(self) -> None:
        """Read what is parked once."""
        try:
            found = await self._blocks.blocked(2 * self._bytes_max)
        except PostgresUnavailable:
            found = []
        self._blocked = {one.dataset: one for one in found}

    def refusal_of_job(self, dataset: str) -> TooMuch | None:
        """Return the refusal of a job without an acknowledged batch, None if it is accepted."""
        return self._refusal(dataset, self._bytes_max)

    def check_batch(self, dataset: str) -> None:
        """Raise TooMuch (DATASET_BLOCKED) if a batch of an open job is refused."""
        refusal = self._refusal(dataset, 2 * self._bytes_max)
        if refusal is not None:
            raise refusal

    def _refusal(self, dataset: str, bytes_max: int) -> TooMuch | None:
        found = self._blocked.get(dataset)
        if found is None or found.stored_bytes <= bytes_max:
            return None
        how = "paused" if found.cause == "paused" else "blocked"
        return TooMuch(
            Reason.DATASET_BLOCKED,
            f"dataset {dataset} is {how}: {found.reason}; about {found.stored_bytes:,} bytes of it are parked, over "
            f"the limit of {bytes_max:,}: retry later; nothing that was acknowledged is lost",
            retry_after_s=RETRY_AFTER_S,
            dataset=dataset,
            cause=found.cause,
            limit_bytes=str(bytes_max),
        )
