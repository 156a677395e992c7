"""Faults of PostgreSQL: killed, frozen, sessions ended, deadlocks, a full disk."""

from __future__ import annotations

import contextlib
import os
import random
import re
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import psycopg

from tests.chaos.fault import Fault, Hurt, repeating
from tests.chaos.proxy import Mood
from tests.chaos.rig import Rig
from tests.support.disk import small_disk
from tests.support.waiting import wait_for

ENDS_WITHIN_S = 20.0
_OURS = "application_name LIKE 'bulkgrpc%'"


def _down(number: signal.Signals) -> Hurt:
    @contextmanager
    def hurt(rig: Rig, _: random.Random) -> Iterator[None]:
        part = rig.stack.part("postgres")
        pid = part.pid
        assert pid is not None
        if number is signal.SIGKILL:
            part.kill()
        else:
            os.kill(pid, number)
        wait_for(lambda: part.pid is None, ENDS_WITHIN_S)
        yield
        part.start()

    return hurt


@contextmanager
def _frozen(rig: Rig, _: random.Random) -> Iterator[None]:
    part = rig.stack.part("postgres")
    part.kill(signal.SIGSTOP)
    try:
        yield
    finally:
        part.kill(signal.SIGCONT)


def _each_backend(function: str) -> Hurt:
    @contextmanager
    def hurt(rig: Rig, _: random.Random) -> Iterator[None]:
        struck = 0

        def step() -> None:
            nonlocal struck
            with rig.database() as connection:
                struck += connection.execute(
                    f"SELECT {function}(pid) FROM pg_stat_activity WHERE {_OURS} AND state <> 'idle'"
                ).rowcount

        with repeating(step, 0.1):
            yield
            wait_for(lambda: struck > 0, ENDS_WITHIN_S)
        assert struck, "no backend of ours was busy"

    return hurt


def _cut(mood: Mood) -> Hurt:
    @contextmanager
    def hurt(rig: Rig, chance: random.Random) -> Iterator[None]:
        proxy = rig.proxies["worker-postgres"]
        before = proxy.cuts
        after_bytes = chance.randrange(50, 2000) if mood.cut_after_bytes else None
        proxy.set(Mood(cut_before=mood.cut_before, cut_after_bytes=after_bytes, cuts_left=mood.cuts_left))
        yield
        wait_for(lambda: proxy.cuts > before, ENDS_WITHIN_S)
        proxy.set(Mood())
        assert proxy.cuts > before, "nothing was cut"

    return hurt


def _errors(rig: Rig, text: str) -> int:
    return sum(len(re.findall(text, worker.log.read_text())) for worker in rig.workers)


def _waits_for(rig: Rig, pid: int) -> bool:
    """Return whether a worker waits for a lock of this backend."""
    with rig.database() as other:
        row = other.execute(
            "SELECT count(*) FROM pg_stat_activity "
            "WHERE application_name = 'bulkgrpc-worker' AND %s = ANY (pg_blocking_pids(pid))",
            [pid],
        ).fetchone()
    return row is not None and row[0] > 0


@contextmanager
def _deadlock(rig: Rig, _: random.Random) -> Iterator[None]:
    """Another session locks the jobs, then the ledger's rows; a worker locks them the other way round.

    It holds the jobs until a worker waits for one, and is never the deadlock victim.
    """
    before = _errors(rig, "deadlock detected")

    def step() -> None:
        with rig.database() as connection, connection.transaction():
            connection.execute("SET LOCAL deadlock_timeout = '60s'")
            connection.execute("SET LOCAL lock_timeout = '5s'")
            with contextlib.suppress(psycopg.errors.LockNotAvailable):
                connection.execute("SELECT FROM bulk.jobs WHERE state < 3 FOR UPDATE")
                if wait_for(lambda: _waits_for(rig, connection.info.backend_pid), 1):
                    connection.execute("SELECT FROM bulk.offsets FOR UPDATE")

    with repeating(_forgiving(step), 0.02):
        yield
        wait_for(lambda: _errors(rig, "deadlock detected") > before, 8)
    assert _errors(rig, "deadlock detected") > before, "no deadlock came to be"


@contextmanager
def _serialization(rig: Rig, _: random.Random) -> Iterator[None]:
    """The database asks for repeatable reads; the service reads committed rows whatever the default is."""
    before = _errors(rig, "could not serialize")
    with rig.database() as connection:
        name = connection.info.dbname
        connection.execute(f"ALTER DATABASE {name} SET default_transaction_isolation = 'repeatable read'")
        connection.execute(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {_OURS}")

    def step() -> None:
        with rig.database() as connection, connection.transaction():
            # So that a serialization failure in PostgreSQL's log can only be the service's.
            connection.execute("SET TRANSACTION ISOLATION LEVEL READ COMMITTED")
            connection.execute("UPDATE bulk.offsets SET owner_epoch = owner_epoch")
            connection.execute("SELECT pg_sleep(0.02)")

    try:
        with repeating(_forgiving(step), 0.02):
            yield
    finally:
        with rig.database() as connection:
            connection.execute(f"ALTER DATABASE {name} RESET default_transaction_isolation")
            connection.execute(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {_OURS}")
    assert _errors(rig, "could not serialize") == before, "a connection of the service took the database's default"


def _forgiving(step: Callable[[], None]) -> Callable[[], None]:
    def forgiving() -> None:
        with contextlib.suppress(psycopg.Error):
            step()

    return forgiving


@contextmanager
def _crowded(rig: Rig, _: random.Random) -> Iterator[None]:
    """Another client takes all connections."""
    with ExitStack() as held:

        def take() -> None:
            with contextlib.suppress(psycopg.OperationalError):
                while True:
                    held.enter_context(psycopg.connect(rig.postgres, connect_timeout=5, application_name="crowd"))

        first = held.enter_context(psycopg.connect(rig.postgres, autocommit=True, application_name="crowd"))
        with repeating(take, 0.05):
            wait_for(lambda: False, 1)
            first.execute(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {_OURS}")
            yield


@contextmanager
def _full_disk(rig: Rig, _: random.Random) -> Iterator[None]:
    """The table moves to a small disk, which is then filled."""
    with small_disk() as disk:
        with rig.database() as connection:
            connection.execute(f"CREATE TABLESPACE small LOCATION '{disk}'")
            connection.execute("SET statement_timeout = '60s'")
            connection.execute("CREATE TABLE chaos.ballast (filler text) TABLESPACE small")
            connection.execute("ALTER DATABASE bulkgrpc SET statement_timeout = '60s'")
            connection.execute("ALTER TABLE sensor_readings SET TABLESPACE small")
        before = _errors(rig, "No space left|could not extend")
        ballast = disk / "ballast"
        with ballast.open("wb") as file, contextlib.suppress(OSError):
            while True:
                file.write(b"\0" * 65536)
                file.flush()
        yield
        struck = wait_for(lambda: _errors(rig, "No space left|could not extend") > before, ENDS_WITHIN_S)
        ballast.unlink()
        with rig.database() as connection:
            connection.execute("ALTER DATABASE bulkgrpc RESET statement_timeout")
            connection.execute("DROP TABLE chaos.ballast")
            connection.execute("ALTER TABLE sensor_readings SET TABLESPACE pg_default")
            connection.execute("CHECKPOINT")
            connection.execute("DROP TABLESPACE small")
        assert struck, "the disk was not full"


@contextmanager
def _taken_over(rig: Rig, _: random.Random) -> Iterator[None]:
    """The ledger is locked until the workers pause. Other owners acquire it, and the chunk of the first is fenced."""
    with rig.database() as connection, connection.transaction():
        connection.execute("SET LOCAL idle_in_transaction_session_timeout = 0")
        connection.execute("SELECT FROM bulk.offsets FOR UPDATE")
        yield
        wait_for(lambda: False, 2)
        connection.execute("UPDATE bulk.offsets SET owner_epoch = owner_epoch + 1")


@contextmanager
def _forgotten(rig: Rig, _: random.Random) -> Iterator[None]:
    """The registry lacks the datasets, as that of a standby which was behind; the workers that knew them are gone."""
    with rig.database() as connection:
        connection.execute("CREATE TABLE chaos.forgotten AS SELECT * FROM bulk.datasets")
        connection.execute("DELETE FROM bulk.datasets")
    for worker in rig.workers:
        rig.signal(worker, signal.SIGKILL)
    try:
        yield
        struck = wait_for(lambda: _blocks_jobs(rig), ENDS_WITHIN_S)
    finally:
        with rig.database() as connection:
            connection.execute("INSERT INTO bulk.datasets SELECT * FROM chaos.forgotten")
            connection.execute("DROP TABLE chaos.forgotten")
    assert struck, "no job was blocked"


def _blocks_jobs(rig: Rig) -> bool:
    with rig.database() as connection:
        return connection.execute("SELECT FROM bulk.blocked_jobs WHERE missing_version > 0").fetchone() is not None


POSTGRES_FAULTS = (
    Fault("postgres: ledger locked, then taken over", "postgres", _taken_over, 3.0),
    Fault("postgres: SIGKILL of all", "postgres", _down(signal.SIGKILL)),
    Fault("postgres: immediate shutdown", "postgres", _down(signal.SIGQUIT)),
    Fault("postgres: SIGSTOP of all backends", "postgres", _frozen, 4.0),
    Fault("postgres: backends cancelled", "postgres", _each_backend("pg_cancel_backend"), 2.0),
    Fault("postgres: backends terminated", "postgres", _each_backend("pg_terminate_backend"), 2.0),
    Fault("postgres: cut before the COMMIT's reply", "postgres", _cut(Mood(cut_before=b"COMMIT\0", cuts_left=3))),
    Fault("postgres: cut after some bytes", "postgres", _cut(Mood(cut_after_bytes=1, cuts_left=5))),
    Fault("postgres: deadlocks", "postgres", _deadlock, 2.0),
    Fault("postgres: serialization failures", "postgres", _serialization, 2.0),
    Fault("postgres: no connection left", "postgres", _crowded, 3.0),
    Fault("postgres: disk full", "postgres", _full_disk, 2.0),
    Fault("postgres: the registry forgets dataset versions", "postgres", _forgotten, 2.0),
)
