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
from bulkgrpc.stack.state import StateFile
from bulkgrpc.stack.valkey import Valkey

KAFKA_HEAP_MIB = 512
_ANY_PORTS = Ports()


def default_data_dir() -> Path:
    """Return where a stack lives unless told otherwise: BULKGRPC_DATA_DIR, else a place that fits the user."""
    named = os.environ.get("BULKGRPC_DATA_DIR")
    if named:
        return Path(named)
    return Path("/var/lib/bulkgrpc") if os.geteuid() == 0 else platformdirs.user_data_path("bulkgrpc")


class Stack:
    """Kafka, PostgreSQL and Valkey under one data directory.

    A Stack holds no process: it may be built anew anywhere, by any program, and finds what runs.

    data_dir: made by `up` if missing. As root, PostgreSQL's system user must be able to enter it.
    ports: a port given here is used or refused; 0 keeps the one of the last time, or takes a free one.
    kafka_heap_mib: the most memory that Kafka's heap may take.
    """

    def __init__(self, data_dir: Path, ports: Ports = _ANY_PORTS, *, kafka_heap_mib: int = KAFKA_HEAP_MIB) -> None:
        self.data_dir = data_dir.resolve()
        self._state = StateFile(self.data_dir)
        self._parts = (
            Part(Kafka(self.data_dir / "kafka", kafka_heap_mib), self._state, ports.kafka),
            Part(Postgres(self.data_dir / "postgres"), self._state, ports.postgres),
            Part(Valkey(self.data_dir / "redis"), self._state, ports.redis),
        )

    @property
    def addresses(self) -> Addresses:
        """Where the parts answer, running or not. Raises StackError when they were never started."""
        kafka, postgres, redis = self._parts
        return Addresses(kafka.address, postgres.address, redis.address)

    def up(self, report: Report = unreported) -> Addresses:
        """Start what does not run, all at once, and return when everything answers.

        report: told each phase of each part, never two at a time, from threads of `up`'s own.
        Whatever died, in whatever way, is healed; what lives is kept. Two calls at once are safe: one waits.
        Raises StackError; the parts that came up stay up.
        """
        self._make_directory()
        telling = _Telling(report)
        with self._state.locked(), ThreadPoolExecutor(len(self._parts)) as threads:
            starts = [threads.submit(_start, part, telling) for part in self._parts]
            failures = [start.exception() for start in starts]
        for failure in failures:
            if failure is not None:
                raise failure
        return self.addresses

    def down(self) -> list[str]:
        """Stop what runs, in good order, and return the names of what was stopped."""
        if not self._state.exists():
            return []
        with self._state.locked():
            return [part.name for part in self._parts if part.stop_locked()]

    def destroy(self) -> None:
        """Stop everything and remove the stack's data, and the data directory unless it holds anything else."""
        if not self._state.exists():
            return
        self.down()
        for part in self._parts:
            shutil.rmtree(part.directory, ignore_errors=True)
        self._state.forget()
        with suppress(OSError):
            self.data_dir.rmdir()

    def status(self) -> list[PartStatus]:
        """Tell what each part is doing now."""
        return [part.status() for part in self._parts]

    def part(self, name: str) -> Part:
        """Return one part: `kafka`, `postgres` or `redis`."""
        return {part.name: part for part in self._parts}[name]

    def _make_directory(self) -> None:
        if self.data_dir.is_dir():
            return
        try:
            self.data_dir.mkdir(parents=True, exist_ok=True)
            # PostgreSQL's user passes through; what is secret below has modes of its own.
            self.data_dir.chmod(0o755)
        except OSError as error:
            raise StackError(f"{self.data_dir} cannot be made ({error.strerror}): choose another --data-dir") from error


class _Telling:
    """Hands the parts' progress to the caller, one at a time, with the seconds since the beginning."""

    def __init__(self, report: Report) -> None:
        self._report = report
        self._begun_s = time.monotonic()
        self._one_at_a_time = threading.Lock()

    def __call__(self, part: Part, phase: Phase) -> None:
        with self._one_at_a_time:
            self._report(Progress(part.name, phase, time.monotonic() - self._begun_s))


def _start(part: Part, telling: _Telling) -> None:
    try:
        part.start_locked(lambda phase: telling(part, phase))
    except StackError:
        telling(part, Phase.FAILED)
        raise
