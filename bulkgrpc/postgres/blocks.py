"""Blocked datasets and parked messages for operators and admission: adapter of the port `bulkgrpc.ingest.ports.Blocks`.

Workers use `parked`.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Final

import psycopg
from psycopg_pool import AsyncConnectionPool

from bulkgrpc.blocks import (
    BlockedDataset,
    DatasetState,
    DatasetStatus,
    LedgerSnapshot,
    Parked,
    ParkedQueue,
    PartitionPosition,
    TenantParked,
)
from bulkgrpc.limits import CALL_DEADLINE_S, PARKED_MESSAGE_OVERHEAD_BYTES
from bulkgrpc.postgres import statements
from bulkgrpc.postgres.deadlines import within

_SQL = statements.family("blocks")
_CATALOG = statements.family("catalog")
_STATES: Final = {
    "table": DatasetState.BLOCKED,
    "isolating": DatasetState.ISOLATING,
    "paused": DatasetState.PAUSED,
}
PAUSE_REASON: Final = "paused by an operator"
QUEUES_MAX: Final = 1000
Row = tuple[Any, ...]


class Blocks:
    """Reads and changes blocks through a pool that the process owns.

    Every method raises PostgresUnavailable after its deadline. See the port for what each promises.
    """

    def __init__(self, pool: AsyncConnectionPool[Any], topic: str) -> None:
        self._pool = pool
        self._topic = topic

    @within(CALL_DEADLINE_S)
    async def status(self, dataset: str) -> DatasetStatus | None:
        """Return the status of a dataset, None if it is not registered."""
        async with self._pool.connection() as connection, connection.transaction():
            return await _status(connection, dataset)

    @within(CALL_DEADLINE_S)
    async def pause(self, dataset: str, reason: str) -> DatasetStatus | None:
        """Pause a dataset and return its status, None if it is not registered."""
        values = {"dataset": dataset, "reason": reason.replace("\0", "\\0"), "default_reason": PAUSE_REASON}
        async with self._pool.connection() as connection, connection.transaction():
            if await _lock(connection, dataset) is None:
                return None
            await connection.execute(_SQL["pause"], values)
            return await _status(connection, dataset)

    @within(CALL_DEADLINE_S)
    async def resume(self, dataset: str) -> DatasetStatus | None:
        """Lift a pause, try a blocked table now, end a discard; return the status, None if it is not registered."""
        values = {"dataset": dataset}
        async with self._pool.connection() as connection, connection.transaction():
            if await _lock(connection, dataset) is None:
                return None
            for name in ("end_discards", "lift", "try_now"):
                await connection.execute(_SQL[name], values)
            return await _status(connection, dataset)

    @within(CALL_DEADLINE_S)
    async def discard(self, dataset: str) -> tuple[DatasetStatus, DatasetStatus] | None:
        """Discard what is parked of a dataset that is not writable.

        Returns the status before, with what is discarded, and after; None if it is not registered.
        """
        async with self._pool.connection() as connection, connection.transaction():
            before = await _lock(connection, dataset)
            if before is None or before.state is DatasetState.WRITABLE:
                return None if before is None else (before, before)
            reason = f"discarded by an operator; dataset {dataset} was not written: {before.reason}"
            await connection.execute(_SQL["discard"], {"dataset": dataset, "reason": reason})
            after = await _status(connection, dataset)
        return None if after is None else (before, after)

    @within(CALL_DEADLINE_S)
    async def blocked(self, bytes_max: int) -> Sequence[BlockedDataset]:
        """Return the datasets that are not written now; their bytes are counted up to `bytes_max` or a little more."""
        values = {
            "message_overhead_bytes": PARKED_MESSAGE_OVERHEAD_BYTES,
            "messages_max": bytes_max // PARKED_MESSAGE_OVERHEAD_BYTES + 1,
        }
        async with self._pool.connection() as connection:
            cursor = await connection.execute(_SQL["blocked"], values)
            return [BlockedDataset(*row) for row in await cursor.fetchall()]

    @within(CALL_DEADLINE_S)
    async def ledger(self) -> LedgerSnapshot:
        """Return the positions of the topic's partitions and its queues of parked messages."""
        values = {"topic": self._topic, "queues_max": QUEUES_MAX}
        async with self._pool.connection() as connection:
            positions = await (await connection.execute(_SQL["partitions"], values)).fetchall()
            rows = await (await connection.execute(_SQL["queues"], values)).fetchall()
        queues = [
            ParkedQueue(partition, tenant, dataset, _parked(rest[:5]), reason=rest[5], trials=rest[6])
            for partition, tenant, dataset, *rest in rows
        ]
        omitted = rows[0][-1] - len(rows) if rows else 0
        return LedgerSnapshot(self._topic, [PartitionPosition(*row) for row in positions], queues, omitted)


async def _lock(connection: psycopg.AsyncConnection[Row], dataset: str) -> DatasetStatus | None:
    """Let no other call change the dataset until the transaction ends, and return its status."""
    await connection.execute(_CATALOG["lock_dataset"], {"dataset": dataset})
    return await _status(connection, dataset)


async def _status(connection: psycopg.AsyncConnection[Row], dataset: str) -> DatasetStatus | None:
    row = await (await connection.execute(_SQL["get_block"], {"dataset": dataset})).fetchone()
    if row is None:
        return None
    cause, reason, sqlstate, block_time, trials, next_trial_time, discard_reason = row
    cursor = await connection.execute(_SQL["parked_by_tenant"], {"dataset": dataset})
    tenants = tuple(TenantParked(tenant, _parked(rest)) for tenant, *rest in await cursor.fetchall())
    if cause == "isolating" and next_trial_time <= datetime.now(UTC) and not tenants:
        # Over; workers delete the row later.
        cause = None
    parked = sum((one.parked for one in tenants), Parked())
    discarding = discard_reason is not None and bool(tenants)
    if cause is None:
        state = DatasetState.DISCARDING if discarding else DatasetState.WRITABLE
        return DatasetStatus(dataset, state, parked, discard_reason if discarding else "", tenants=tenants)
    return DatasetStatus(
        dataset,
        DatasetState.DISCARDING if discarding else _STATES[cause],
        parked,
        reason,
        sqlstate,
        block_time,
        trials,
        next_trial_time if cause == "table" else None,
        tenants,
    )


def _parked(values: Sequence[Any]) -> Parked:
    messages, records, payload_bytes, jobs, oldest_time = values
    return Parked(messages, int(records), int(payload_bytes), jobs, oldest_time)
