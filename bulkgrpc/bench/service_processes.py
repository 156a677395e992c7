"""The server and the workers as a deployment runs them: each a process, started and stopped here."""

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

from bulkgrpc.bench.environment import Deployment
from bulkgrpc.bench.model import BenchFailed

_READY_TIMEOUT_S = 30.0
_STOP_TIMEOUT_S = 30.0


@dataclass(frozen=True, slots=True)
class ServiceProcess:
    """A running server or worker. ready_line: the line with which it reported that it is ready. log: its stderr."""

    name: str
    process: subprocess.Popen[str]
    ready_line: str
    log: Path

    @property
    def pid(self) -> int:
        """The process ID."""
        return self.process.pid

    def send(self, number: signal.Signals) -> None:
        """Send it a signal."""
        self.process.send_signal(number)

    def check(self) -> None:
        """Raise BenchFailed if it has exited."""
        if self.process.poll() is not None:
            raise BenchFailed(f"the {self.name} exited with status {self.process.returncode}: {_last_line(self.log)}")


@contextmanager
def workers(
    deployment: Deployment, count: int, logs: Path, settings: Mapping[str, str] = MappingProxyType({})
) -> Iterator[list[ServiceProcess]]:
    """Run `count` workers. logs: directory for their stderr. settings: further environment variables."""
    with ExitStack() as stack:
        yield [
            stack.enter_context(_running(f"worker {number + 1}", ["workers.process"], deployment, logs, settings))
            for number in range(count)
        ]


@contextmanager
def server(deployment: Deployment, logs: Path) -> Iterator[tuple[ServiceProcess, str]]:
    """Run one server on a free port; yield it and its address."""
    with _running("server", ["bulkgrpc.server.process", "--listen", "127.0.0.1:0"], deployment, logs) as process:
        yield process, process.ready_line.split()[-1]


@contextmanager
def _running(
    name: str, module: list[str], deployment: Deployment, logs: Path, settings: Mapping[str, str] = MappingProxyType({})
) -> Iterator[ServiceProcess]:
    log = logs / f"{deployment.topic}.{name.replace(' ', '-')}.log"
    with log.open("w") as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", *module],
            env={**deployment.variables(), **settings},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )
    try:
        yield ServiceProcess(name, process, _ready_line(process, name, log), log)
    finally:
        _stop(process)


def _ready_line(process: subprocess.Popen[str], name: str, log: Path) -> str:
    assert process.stdout is not None  # noqa: S101 — narrows the type: it is piped
    readable, _, _ = select.select([process.stdout], [], [], _READY_TIMEOUT_S)
    line = process.stdout.readline() if readable else ""
    if not line:
        raise BenchFailed(f"the {name} did not start: {_last_line(log)}")
    return line.strip()


def _last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").strip().splitlines()
    return lines[-1] if lines else "its log is empty"


def _stop(process: subprocess.Popen[str]) -> None:
    if process.poll() is None:
        process.send_signal(signal.SIGCONT)
        process.terminate()
        try:
            process.wait(_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    if process.stdout is not None:
        process.stdout.close()
