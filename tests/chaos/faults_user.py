"""Faults of users: those of tests/blast, on the tables that a storm writes to or on datasets of their own."""

from __future__ import annotations

import random
import re
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial

import psycopg

from tests.blast.catalog import FAULTS, Case, policies_of
from tests.blast.fault import Effect, sql_names
from tests.blast.fault import Fault as UserFault
from tests.blast.faults_batch import BATCH_FAULTS
from tests.blast.faults_ddl import CONSTRAINT_FAULTS
from tests.blast.faults_kinds import KIND_FAULTS, existing_table
from tests.blast.faults_trigger import TRIGGER_FAULTS
from tests.blast.records import Kind
from tests.blast.run import COLUMNS, KEEP
from tests.chaos.fault import Fault, Hurt
from tests.chaos.rig import Rig

TABLES = ("sensor_readings", "fleet_readings", "appended_readings")
DONE_WITHIN_S = 60.0
ATOMIC = 0.25
"""How likely the jobs of a dataset of its own are atomic."""
_COLUMNS = {
    "key": "value",
    "keys": "sensor_id, sampled_at",
    "time": "sampled_at",
    "text": "sensor_id",
    "double": "value",
}
_DEPENDENT = frozenset({"drop table"})
"""Nor the type of `value`: a view of the evidence is made of these."""


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
                _hold(rig, held, fault.holds.format(**names))
            try:
                yield
            finally:
                held.close()
                _execute(rig, fault.repair.format(**names))
                _execute(rig, "DROP TABLE IF EXISTS {kept}".format(**names))

    return hurt


def _hold(rig: Rig, held: ExitStack, statements: str) -> None:
    """Execute statements in a transaction that stays open until `held` is closed."""
    connection = held.enter_context(rig.database())
    connection.execute("SET idle_in_transaction_session_timeout = 0; SET transaction_timeout = 0")
    connection.execute("BEGIN")
    connection.execute(statements.encode())


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


def _hits_own(fault: UserFault, kind: Kind = "created") -> Hurt:
    """A dataset that the fault alone hits: its jobs come before, meanwhile and afterwards."""

    @contextmanager
    def hurt(rig: Rig, chance: random.Random) -> Iterator[None]:
        assert rig.victims is not None, "only in a storm"
        case = Case(fault, chance.choice(policies_of(kind, fault)), chance.random() < ATOMIC, kind)
        run = f"u{chance.randrange(10**9)}"
        names = sql_names(case.table(run), COLUMNS)
        if kind == "existing":
            _execute(rig, existing_table().format(**names))
        victim = rig.victims.add(rig.address, case, run)
        rig.victims.submit(rig.address, victim, "before", 1)
        with ExitStack() as held:
            _execute(rig, ((KEEP if fault.keeps else "") + fault.apply).format(**names))
            if fault.holds:
                _hold(rig, held, fault.holds.format(**names))
            try:
                rig.victims.submit(rig.address, victim, "during", 2)
                yield
            finally:
                held.close()
                _execute(rig, fault.repair.format(**names))
        rig.victims.submit(rig.address, victim, "after", 1)

    return hurt


def _own(fault: UserFault) -> bool:
    """Return whether a storm can use a fault on a dataset of its own."""
    return not (fault.whole or fault.slow or fault.around or fault.from_outside or "partition" in fault.fields)


def _of(kind: str, hurt: Callable[[UserFault], Hurt], faults: Iterable[UserFault]) -> tuple[Fault, ...]:
    return tuple(Fault(f"user: {kind}: {fault.name}", "user", hurt(fault), 3.0) for fault in faults)


USER_FAULTS: dict[str, tuple[Fault, ...]] = {
    "table": _of("table", _hurt, (fault for fault in FAULTS.values() if _fits(fault) and not fault.whole)),
    "database": _of("database", _hurt, (fault for fault in FAULTS.values() if _fits(fault) and fault.whole)),
    "trigger": _of("trigger", _hits_own, filter(_own, TRIGGER_FAULTS)),
    "batch": _of("batch", _hits_own, filter(_own, BATCH_FAULTS)),
    "constraint": _of("constraint", _hits_own, filter(_own, CONSTRAINT_FAULTS)),
}
for kind_, faults_ in KIND_FAULTS.items():
    USER_FAULTS[kind_] = _of(kind_, partial(_hits_own, kind=kind_), filter(_own, faults_))
"""By kind. A storm draws the kind first, because there are many faults of some."""
