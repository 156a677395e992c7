"""The service under test: real parts, a server and two workers under a role that is not a superuser.

Nothing restarts a process that ends: the tests check that no process ends.
"""

from __future__ import annotations

import contextlib
import signal
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg
from psycopg.conninfo import make_conninfo

from bulkgrpc.postgres import schema
from bulkgrpc.stack import Stack
from bulkgrpc.stack.kafka import Kafka
from bulkgrpc.stack.part import Part
from tests.blast.catalog import PARTITIONS
from tests.support.ends import end_offsets
from tests.support.processes import Process, Service, service
from tests.support.role import PASSWORD, ROLE, add_service_role

Connection = psycopg.Connection[tuple[Any, ...]]
TOPIC = "bulkgrpc.records"
SESSION_MS = 10_000
_TAIL_CHARS = 1500
SET_UP = f"""
CREATE SCHEMA blast;
CREATE TABLE blast.audit_of_others (id bigint);
CREATE ROLE blast_nobody;
GRANT blast_nobody TO {ROLE};
GRANT USAGE ON SCHEMA blast TO {ROLE};
CREATE FUNCTION blast.recurse(depth integer) RETURNS integer LANGUAGE plpgsql AS
  $$ BEGIN RETURN blast.recurse(depth + 1) + 1; END $$;
CREATE FUNCTION blast.stamp() RETURNS trigger LANGUAGE plpgsql AS
  $$ BEGIN new.stamp := 'stamped'; RETURN new; END $$;
"""


class _Kafka(Kafka):
    """A broker that soon misses a worker that ended without leaving its group."""

    def settings(self, ports: Mapping[str, int]) -> str:
        """Return the usual settings, then what differs."""
        return super().settings(ports) + (
            f"group.consumer.session.timeout.ms={SESSION_MS}\ngroup.consumer.heartbeat.interval.ms=1000\n"
        )


class _Stack(Stack):
    def __init__(self, data_dir: Path) -> None:
        super().__init__(data_dir)
        self._parts = (Part(_Kafka(self.data_dir / "kafka", 384), self._state), *self._parts[1:])


@dataclass(frozen=True, slots=True)
class Exit:
    """A process that ended by itself."""

    name: str
    code: int
    tail: str

    def __str__(self) -> str:
        lines = self.tail.strip().splitlines() or [""]
        why = next((line for line in lines if line.startswith("error:")), lines[-1])
        return f"{self.name} exited with {self.code}: {why}"


@dataclass(slots=True)
class Stand:
    """The running service. postgres: connection string of a superuser."""

    stack: Stack
    running: Service
    postgres: str
    exits: list[Exit] = field(default_factory=list)

    @property
    def processes(self) -> list[Process]:
        """The server and the workers."""
        return [self.running.server, *self.running.workers]

    @contextmanager
    def database(self, *, other: bool = False) -> Iterator[Connection]:
        """A superuser's connection in autocommit mode, whatever the database's settings; other: to another one."""
        with psycopg.connect(
            make_conninfo(self.postgres, dbname="postgres") if other else self.postgres,
            autocommit=True,
            application_name="blast",
            options="-c default_transaction_read_only=off -c lock_timeout=10s",
        ) as connection:
            yield connection

    def note_exits(self) -> list[Exit]:
        """Note the processes that have ended since the last call, and return all that have."""
        known = {process.name for process in self.exits}
        for process in self.processes:
            code, name = process.ended, process.log.stem
            if code is not None and name not in known:
                self.exits.append(Exit(name, code, process.log.read_text()[-_TAIL_CHARS:]))
        return self.exits

    def restart_ended(self) -> None:
        """Start the processes that have ended, so that the checks can run; they stay noted until `forget`."""
        self.note_exits()
        for process in self.processes:
            if process.ended is not None:
                process.start()

    def log_sizes(self) -> dict[str, int]:
        """Return how long each log is."""
        return {process.log.stem: len(process.log.read_bytes()) for process in self.processes}

    def logged(self, since: Mapping[str, int]) -> str:
        """Return what the processes have logged since `log_sizes`."""
        return "\n".join(p.log.read_bytes()[since[p.log.stem] :].decode(errors="replace") for p in self.processes)

    def start_over(self) -> None:
        """Reset the state after a violated promise: every partition resumes at its end, every job has ended."""
        for process in self.processes:
            # So that a worker leaves its group, and its partitions need not wait for it to be missed.
            with contextlib.suppress(subprocess.TimeoutExpired, ProcessLookupError):
                process.kill(signal.SIGTERM)
            process.stop()
        with self.database() as connection, connection.transaction():
            connection.execute("SET LOCAL session_replication_role = replica")
            # A session outlives its killed worker for as long as its statement takes.
            connection.execute(
                "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE usename = %s", [ROLE]
            )
            for place in end_offsets(self.stack.addresses.kafka, TOPIC, PARTITIONS).items():
                connection.execute("UPDATE bulk.offsets SET next_offset = %s WHERE partition = %s", place[::-1])
            connection.execute(
                "UPDATE bulk.jobs SET state = 6, end_time = now(), expired = expired + staged, staged = 0 "
                "WHERE state < 3"
            )
            connection.execute("TRUNCATE bulk.parked, bulk.blocked_datasets, bulk.blocked_jobs, bulk.discards")
        for process in self.processes:
            process.start()
        self.exits = []


@contextmanager
def stand(data_dir: Path, logs: Path, more: Mapping[str, str] | None = None) -> Iterator[Stand]:
    """Run everything; end and remove it afterwards. more: settings of the processes."""
    logs.mkdir(parents=True, exist_ok=True)
    with ExitStack() as undo:
        stack = _Stack(data_dir)
        undo.callback(stack.destroy)
        stack.up(lambda _progress: None)
        postgres = stack.addresses.postgres
        own = add_service_role(postgres)
        schema.migrate(own)
        with psycopg.connect(postgres, autocommit=True) as connection:
            connection.execute(SET_UP)
        environment = {
            "BULKGRPC_KAFKA": stack.addresses.kafka,
            "BULKGRPC_POSTGRES": own,
            "BULKGRPC_REDIS": stack.addresses.redis,
            "BULKGRPC_PARTITIONS": str(PARTITIONS),
            "BULKGRPC_DRAIN_S": "5",
            **(more or {}),
        }
        running = undo.enter_context(service(environment, logs))
        yield Stand(stack, running, postgres)


__all__ = ["PASSWORD", "ROLE", "SET_UP", "TOPIC", "Exit", "Stand", "stand"]
