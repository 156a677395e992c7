"""The three parts as one: up, down, status."""

from __future__ import annotations

import os
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import platformdirs

from bulkgrpc.stack.kafka import Kafka
from bulkgrpc.stack.model import Addresses, PartStatus, Phase, Ports, Progress, Report, StackError, unreported
from bulkgrpc.stack.part import Part
from bulkgrpc.stack.postgres import Postgres
from bulkgrpc.stack.space import MIB, of_user, require_space
from bulkgrpc.stack.state import StateFile
from bulkgrpc.stack.valkey import Valkey

KAFKA_HEAP_MIB = 512
# An empty stack has 42 MiB, and 60 more if PostgreSQL's programs are copied; its first load writes PostgreSQL's log.
_FIRST_START_BYTES = 256 * MIB
_ELSEWHERE = "choose another --data-dir, or set BULKGRPC_DATA_DIR"
_ANY_PORTS = Ports()


def default_data_dir() -> Path:
    """Return the default data directory: $BULKGRPC_DATA_DIR, or else a directory by the user.

    Raises StackError if the user has no home directory.
    """
    configured = os.environ.get("BULKGRPC_DATA_DIR")
    if configured:
        return Path(configured)
    if os.geteuid() == 0:
        return Path("/var/lib/bulkgrpc")
    return of_user(platformdirs.user_data_path, "the stack's data", _ELSEWHERE)


class Stack:
    """Kafka, PostgreSQL and Valkey under one data directory.

    A Stack owns no process: any program can construct one, and it finds the processes that run.

    data_dir: created by `up` if missing. For root, PostgreSQL's system user must be able to enter it.
    ports: a given port is used, or `up` fails; 0 is the port of the last start, or a free one.
    kafka_heap_mib: maximum size of Kafka's heap. postgres_programs: the `bin` directory of another PostgreSQL.
    """

    def __init__(
        self,
        data_dir: Path,
        ports: Ports = _ANY_PORTS,
        *,
        kafka_heap_mib: int = KAFKA_HEAP_MIB,
        postgres_programs: Path | None = None,
    ) -> None:
        self.data_dir = data_dir.resolve()
        self._state = StateFile(self.data_dir)
        self._parts = (
            Part(Kafka(self.data_dir / "kafka", kafka_heap_mib), self._state, ports.kafka),
            Part(Postgres(self.data_dir / "postgres", postgres_programs), self._state, ports.postgres),
            Part(Valkey(self.data_dir / "redis"), self._state, ports.redis),
        )

    @property
    def addresses(self) -> Addresses:
        """The addresses of the parts, also if they are not running. Raises StackError if they were never started."""
        kafka, postgres, redis = self._parts
        return Addresses(kafka.address, postgres.address, redis.address)

    def up(self, report: Report = unreported) -> Addresses:
        """Start the parts that are not running, concurrently, and return when all are ready.

        report: called with each phase of each part, one call at a time, from threads of this method.
        A part that crashed is started again with its data; one that runs is kept. Concurrent calls are safe: one waits.
        Raises StackError; parts that started keep running.
        """
        self._make_directory()
        if not self._state.exists():
            require_space(self.data_dir, _FIRST_START_BYTES, "the stack's data", _ELSEWHERE)
        report_phase = _PhaseReport(report)
        with self._state.locked(), ThreadPoolExecutor(len(self._parts)) as threads:
            starts = [threads.submit(_start, part, report_phase) for part in self._parts]
            failures = [start.exception() for start in starts]
        for failure in failures:
            if failure is not None:
                raise failure
        return self.addresses

    def down(self) -> list[str]:
        """Shut down the parts that are running, and return their names."""
        if not self._state.exists():
            return []
        with self._state.locked():
            return [part.name for part in self._parts if part.stop_locked()]

    def destroy(self) -> None:
        """Stop all parts and remove the stack's data, and the data directory unless it has other files."""
        if not self._state.exists():
            return
        self.down()
        for part in self._parts:
            shutil.rmtree(part.directory, ignore_errors=True)
        self._state.forget()
        with suppress(OSError):
            self.data_dir.rmdir()

    def status(self) -> list[PartStatus]:
        """Return the status of each part."""
        return [part.status() for part in self._parts]

    def part(self, name: str) -> Part:
        """Return one part: `kafka`, `postgres` or `redis`."""
        return {part.name: part for part in self._parts}[name]

    def _make_directory(self) -> None:
        if self.data_dir.is_dir():
            return
        try:
            self.data_dir.mkdir(parents=True, exist_ok=True)
            # PostgreSQL's user must pass through; secret files below have their own modes.
            self.data_dir.chmod(0o755)
        except OSError as error:
            raise StackError(
                f"{self.data_dir} for the stack's data cannot be created ({error.strerror}): {_ELSEWHERE}"
            ) from error


class _PhaseReport:
    """Passes the parts' phases to the caller, one at a time, with the seconds since the start."""

    def __init__(self, report: Report) -> None:
        self._report = report
        self._start_s = time.monotonic()
        self._lock = threading.Lock()

    def __call__(self, part: Part, phase: Phase) -> None:
        with self._lock:
            self._report(Progress(part.name, phase, time.monotonic() - self._start_s))


def _start(part: Part, report_phase: _PhaseReport) -> None:
    try:
        part.start_locked(lambda phase: report_phase(part, phase))
    except StackError:
        report_phase(part, Phase.FAILED)
        raise
