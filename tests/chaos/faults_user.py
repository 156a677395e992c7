"""Faults of users: the faults of tests/blast that block a dataset or pass, on the tables that a storm writes to."""

from __future__ import annotations

import asyncio
import contextlib
import random
import re
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import psycopg

from bulkgrpc.client import AsyncBulkClient, Batch, BulkError, ClientConfig
from tests.blast.catalog import FAULTS, Case
from tests.blast.fault import Effect, sql_names
from tests.blast.fault import Fault as UserFault
from tests.blast.records import Shape
from tests.blast.run import KEEP
from tests.chaos.fault import Fault, Hurt
from tests.chaos.rig import Rig

TABLES = ("sensor_readings", "fleet_readings")
DONE_WITHIN_S = 60.0
_COLUMNS = {
    "key": "value",
    "keys": "sensor_id, sampled_at",
    "time": "sampled_at",
    "text": "sensor_id",
    "double": "value",
}
_DEPENDENT = frozenset({"drop table"})
"""Nor the type of `value`: a view of the evidence is made of these."""
_PATIENCE = ClientConfig(call_deadline_s=5, open_deadline_s=5, acknowledge_deadline_s=10, retry_deadline_s=20)


def _fits(fault: UserFault) -> bool:
    """Return whether a storm can use a fault: its checker does not know records that PostgreSQL rejects."""
    text = fault.apply + fault.repair + fault.holds
    return (
        fault.effect in (Effect.BLOCKED, Effect.CONVERTED, Effect.UNAVAILABLE)
        and "ignore" in fault.policies
        and fault.fields <= sql_names("", _COLUMNS).keys()
        and "{name}_pkey" not in text
        and fault.poison is None
        and fault.around is None
        and not fault.from_outside
        and fault.name not in _DEPENDENT
        and not re.search("COLUMN {double}", text)
    )


def _hurt(fault: UserFault) -> Hurt:
    @contextmanager
    def hurt(rig: Rig, chance: random.Random) -> Iterator[None]:
        names = sql_names(chance.choice(TABLES), _COLUMNS)
        with ExitStack() as held:
            _execute(rig, ((KEEP if fault.keeps else "") + fault.apply).format(**names))
            if fault.holds:
                connection = held.enter_context(rig.database())
                connection.execute("SET idle_in_transaction_session_timeout = 0; SET transaction_timeout = 0")
                connection.execute("BEGIN")
                connection.execute(fault.holds.format(**names).encode())
            try:
                yield
            finally:
                held.close()
                _execute(rig, fault.repair.format(**names))
                _execute(rig, "DROP TABLE IF EXISTS {kept}".format(**names))

    return hurt


def _execute(rig: Rig, statements: str) -> None:
    """Execute statements in one transaction, as often as it takes: the fault must be repaired."""
    if not statements:
        return
    ends_at_s = time.monotonic() + DONE_WITHIN_S
    options = "-c default_transaction_read_only=off -c lock_timeout=5s"
    while True:
        try:
            with psycopg.connect(rig.postgres, autocommit=True, options=options, connect_timeout=5) as connection:
                connection.execute(statements.encode())
        except (psycopg.OperationalError, psycopg.errors.DeadlockDetected):
            if time.monotonic() > ends_at_s:
                raise
        else:
            return


@contextmanager
def _poisoned(rig: Rig, chance: random.Random) -> Iterator[None]:
    """Jobs of bad records, each to a dataset of its own."""
    cases = [
        Case(fault, chance.choice(fault.policies))
        for fault in FAULTS.values()
        if fault.poison is not None and not fault.slow and not fault.apply
    ]
    asyncio.run(_submit(rig.address, chance.sample(cases, 3), chance.randrange(10**9)))
    yield


async def _submit(address: str, cases: list[Case], serial: int) -> None:
    async with AsyncBulkClient(address, tenant=f"poison-{serial}", config=_PATIENCE) as client:
        for case in cases:
            poison, shape = case.fault.poison, Shape(case.table("storm"), case.policy, case.fault.message)
            assert poison is not None
            # Whatever else is hurt at the time may keep it from being submitted.
            with contextlib.suppress(BulkError):
                await client.register_dataset(shape.descriptors(), shape.message_type)
                for _ in range(1 + poison.twice):
                    await client.submit(shape.table, [Batch(data, count) for data, count in poison.batches(0)])


USER_FAULTS = (
    *(Fault(f"user: {fault.name}", "user", _hurt(fault), 3.0) for fault in FAULTS.values() if _fits(fault)),
    Fault("user: poison batches", "user", _poisoned, 1.0),
)
