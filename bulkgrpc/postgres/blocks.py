"""Blocked datasets and parked messages for operators and admission: adapter of the port `bulkgrpc.ingest.ports.Blocks`.

Workers use `parked`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
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
COUNTS: Final = ((1 << 60, 2.0), (50_000, 1.0), (1_000, 1.0))
"""How many messages are counted, and for how many seconds: fewer if that is too long. All before the deadline."""
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
        async with self._pool.connection() as connection:
            return await _status(connection, dataset)

    @within(CALL_DEADLINE_S)
    async def pause(self, dataset: str, reason: str) -> DatasetStatus | None:
        """Pause a dataset and return its status, None if it is not registered."""
        values = {"dataset": dataset, "reason": reason.replace("\0", "\\0"), "default_reason": PAUSE_REASON}
        async with self._pool.connection() as connection:
            async with connection.transaction():
                if await _lock(connection, dataset) is None:
                    return None
                await connection.execute(_SQL["pause"], values)
            return await _status(connection, dataset)

    @within(CALL_DEADLINE_S)
    async def resume(self, dataset: str) -> DatasetStatus | None:
        """Lift a pause, try a blocked table now, end a discard; return the status, None if it is not registered."""
        values = {"dataset": dataset}
        async with self._pool.connection() as connection:
            async with connection.transaction():
                if await _lock(connection, dataset) is None:
                    return None
                for name in ("end_discards", "lift", "try_now", "try_tasks_now"):
                    await connection.execute(_SQL[name], values)
            return await _status(connection, dataset)

    @within(CALL_DEADLINE_S)
    async def discard(self, dataset: str) -> tuple[DatasetStatus, DatasetStatus] | None:
        """Discard what is parked of a dataset that is not writable, and the staged rows of its sealed atomic jobs.

        Returns the status before, with what is discarded, and after; None if it is not registered.
        """
        async with self._pool.connection() as connection:
            # Not after the change: workers discard at once.
            tenants = await _count(connection, "parked_by_tenant", {"dataset": dataset})
            async with connection.transaction():
                before = await _lock(connection, dataset)
                if before is None or before.state is DatasetState.WRITABLE:
                    return None if before is None else (before, before)
                reason = f"discarded by an operator; dataset {dataset} was not written: {before.reason}"
                for name in ("discard", "discard_tasks"):
                    await connection.execute(_SQL[name], {"dataset": dataset, "reason": reason})
                after = await _state(connection, dataset)
        return None if after is None else (_with_parked(before, tenants), _with_parked(after, tenants))

    @within(CALL_DEADLINE_S)
    async def blocked(self) -> Sequence[BlockedDataset]:
        """Return what is not written now, with about its bytes."""
        values = {"message_overhead_bytes": PARKED_MESSAGE_OVERHEAD_BYTES}
        async with self._pool.connection() as connection:
            cursor = await connection.execute(_SQL["blocked"], values)
            return [BlockedDataset(*row) for row in await cursor.fetchall()]

    @within(CALL_DEADLINE_S)
    async def ledger(self) -> LedgerSnapshot:
        """Return the positions of the topic's partitions and its queues of parked messages."""
        values = {"topic": self._topic, "queues_max": QUEUES_MAX}
        async with self._pool.connection() as connection:
            positions = await (await connection.execute(_SQL["partitions"], values)).fetchall()
            rows = await _count(connection, "queues", values)
        queues = [
            ParkedQueue(partition, tenant, dataset, _parked(rest[:5]), reason=rest[5], trials=rest[6])
            for partition, tenant, dataset, *rest in rows
        ]
        omitted = rows[0][-1] - len(rows) if rows else 0
        return LedgerSnapshot(self._topic, [PartitionPosition(*row) for row in positions], queues, omitted)


async def _lock(connection: psycopg.AsyncConnection[Row], dataset: str) -> DatasetStatus | None:
    """Let no other call change the dataset until the transaction ends, and return its state."""
    await connection.execute(_CATALOG["lock_dataset"], {"dataset": dataset})
    return await _state(connection, dataset)


async def _status(connection: psycopg.AsyncConnection[Row], dataset: str) -> DatasetStatus | None:
    state = await _state(connection, dataset)
    if state is None:
        return None
    return _with_parked(state, await _count(connection, "parked_by_tenant", {"dataset": dataset}))


async def _state(connection: psycopg.AsyncConnection[Row], dataset: str) -> DatasetStatus | None:
    """Return the status without what is parked."""
    row = await (await connection.execute(_SQL["get_block"], {"dataset": dataset})).fetchone()
    if row is None:
        return None
    cause, reason, sqlstate, block_time, trials, next_trial_time, discard_reason, any_parked = row
    if cause == "isolating" and next_trial_time <= datetime.now(UTC) and not any_parked:
        # Over; workers delete the row later.
        cause = None
    discarding = discard_reason is not None and any_parked
    if cause is None:
        state = DatasetState.DISCARDING if discarding else DatasetState.WRITABLE
        return DatasetStatus(dataset, state, reason=discard_reason if discarding else "")
    return DatasetStatus(
        dataset,
        DatasetState.DISCARDING if discarding else _STATES[cause],
        Parked(),
        reason,
        sqlstate,
        block_time,
        trials,
        next_trial_time if cause == "table" else None,
    )


async def _count(connection: psycopg.AsyncConnection[Row], name: str, values: dict[str, Any]) -> Sequence[Row]:
    """Run a statement that counts parked messages, over ever fewer of them until it ends in time."""
    for messages_max, timeout_s in COUNTS:
        try:
            async with connection.transaction():
                await connection.execute(f"SET LOCAL statement_timeout = {int(timeout_s * 1000)}")
                cursor = await connection.execute(_SQL[name], {**values, "messages_max": messages_max})
                return await cursor.fetchall()
        except psycopg.errors.QueryCanceled:
            if (messages_max, timeout_s) == COUNTS[-1]:
                raise
    raise AssertionError


def _with_parked(status: DatasetStatus, rows: Sequence[Row]) -> DatasetStatus:
    tenants = tuple(TenantParked(tenant, _parked(rest)) for tenant, *rest in rows)
    return replace(status, parked=sum((one.parked for one in tenants), Parked()), tenants=tenants)


def _parked(values: Sequence[Any]) -> Parked:
    messages, records, payload_bytes, jobs, oldest_time = values
    return Parked(messages, int(records), int(payload_bytes), jobs, oldest_time)
