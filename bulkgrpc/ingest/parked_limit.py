"""A bound on what is parked: streams of a blocked dataset are refused before PostgreSQL's disk is full.

| parked of the dataset          | a job without an acknowledged batch | batches of another job |
|--------------------------------|-------------------------------------|------------------------|
| up to `bytes_max`              | accepted                            | accepted               |
| above `bytes_max`              | refused                             | accepted               |
| above twice `bytes_max`        | refused                             | refused                |

The same for what is parked of one tenant's dataset while messages are isolated or wait for a blocked job of the tenant:
that refuses no other tenant.

One task of the process reads what is parked every few seconds, so a stream costs no query. Nothing that was
acknowledged is lost: a refused client resumes. While PostgreSQL is unavailable, what was read last holds: nothing is
parked or applied then.
"""

from __future__ import annotations

import asyncio
from typing import Final, NoReturn

import structlog

from bulkgrpc.blocks import BlockedDataset
from bulkgrpc.errors import Reason, TooMuch
from bulkgrpc.ingest.ports import Blocks, PostgresUnavailable

_log = structlog.get_logger()
READ_S: Final = 3.0
RETRY_AFTER_S: Final = 10.0
"""A blocked table is tried every 10 s."""


class ParkedLimit:
    """What is parked of the datasets that are blocked. Belongs to one event loop; one task calls `run`."""

    def __init__(self, blocks: Blocks, bytes_max: int) -> None:
        self._blocks = blocks
        self._bytes_max = bytes_max
        self._blocked: dict[tuple[str, str], BlockedDataset] = {}

    async def run(self) -> NoReturn:
        """Read what is parked until cancelled."""
        try:
            while True:
                try:
                    await self.read()
                except Exception as error:  # noqa: BLE001 — see below
                    # What was read last holds, and the next time may succeed: without this task there is no bound.
                    _log.exception("parked_not_read", error=str(error))
                await asyncio.sleep(READ_S)
        finally:
            # Whatever ends this task: what was read is out of date then.
            self._blocked = {}

    async def read(self) -> None:
        """Read what is parked once; what was read before stays while PostgreSQL is unavailable."""
        try:
            found = await self._blocks.blocked()
        except PostgresUnavailable:
            return
        self._blocked = {(one.dataset, one.tenant): one for one in found}

    def refusal_of_job(self, dataset: str, tenant: str) -> TooMuch | None:
        """Return the refusal of a job without an acknowledged batch, None if it is accepted."""
        return self._refusal(dataset, tenant, self._bytes_max)

    def check_batch(self, dataset: str, tenant: str) -> None:
        """Raise TooMuch (DATASET_BLOCKED) if a batch of an open job is refused."""
        refusal = self._refusal(dataset, tenant, 2 * self._bytes_max)
        if refusal is not None:
            raise refusal

    def _refusal(self, dataset: str, tenant: str, bytes_max: int) -> TooMuch | None:
        both = (self._blocked.get((dataset, whose)) for whose in ("", tenant))
        found = next((one for one in both if one is not None and one.stored_bytes > bytes_max), None)
        if found is None:
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
