"""Server and workers as the processes that a deployment runs, started and stopped here."""

from __future__ import annotations

import select
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from bulkgrpc.bench.ground import Place
from bulkgrpc.bench.model import BenchFailed

_READY_WITHIN_S = 30.0
_STOP_WITHIN_S = 30.0


@dataclass(frozen=True, slots=True)
class Program:
    """A process of ours that said it is ready. announced: the line in which it did; log: its stderr."""

    name: str
    process: subprocess.Popen[str]
    announced: str
    log: Path

    @property
    def pid(self) -> int:
        """Its process id."""
        return self.process.pid

    def send(self, number: signal.Signals) -> None:
        """Signal it."""
        self.process.send_signal(number)

    def check(self) -> None:
        """Raise BenchFailed if it ended."""
        if self.process.poll() is not None:
            raise BenchFailed(f"the {self.name} ended with status {self.process.returncode}: {_last_line(self.log)}")


@contextmanager
def workers(
    place: Place, count: int, logs: Path, settings: Mapping[str, str] = MappingProxyType({})
) -> Iterator[list[Program]]:
    """Run `count` workers. settings: variables beside those of the place."""
    with ExitStack() as stack:
        yield [
            stack.enter_context(_running(f"worker {number + 1}", ["workers.process"], place, logs, settings))
            for number in range(count)
        ]


@contextmanager
def server(place: Place, logs: Path) -> Iterator[tuple[Program, str]]:
    """Run one server on a free port; give it and its address."""
    with _running("server", ["bulkgrpc.server.process", "--listen", "127.0.0.1:0"], place, logs) as program:
        yield program, program.announced.split()[-1]


@contextmanager
def _running(
    name: str, module: list[str], place: Place, logs: Path, settings: Mapping[str, str] = MappingProxyType({})
) -> Iterator[Program]:
    log = logs / f"{place.topic}.{name.replace(' ', '-')}.log"
    with log.open("w") as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", *module],
            env={**place.environment(), **settings},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )
    try:
        yield Program(name, process, _first_line(process, name, log), log)
    finally:
        _stop(process)


def _first_line(process: subprocess.Popen[str], name: str, log: Path) -> str:
    assert process.stdout is not None  # noqa: S101 — narrows the type: it is piped
    readable, _, _ = select.select([process.stdout], [], [], _READY_WITHIN_S)
    line = process.stdout.readline() if readable else ""
    if not line:
        raise BenchFailed(f"the {name} did not start: {_last_line(log)}")
    return line.strip()


def _last_line(log: Path) -> str:
    told = log.read_text(errors="replace").strip().splitlines()
    return told[-1] if told else "it did not say why"


def _stop(process: subprocess.Popen[str]) -> None:
    if process.poll() is None:
        process.send_signal(signal.SIGCONT)
        process.terminate()
        try:
            process.wait(_STOP_WITHIN_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    if process.stdout is not None:
        process.stdout.close()
