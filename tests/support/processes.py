"""Servers and workers as processes of their own, to be stopped and killed."""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from bulkgrpc.stack.ports import choose_free

READY_S = 30.0
EXIT_S = 30.0


@dataclass(slots=True)
class Process:
    """A process that says a line when it is ready. Its standard error is in `log`."""

    module: str
    arguments: tuple[str, ...]
    environment: Mapping[str, str]
    log: Path
    _running: subprocess.Popen[str] | None = field(default=None)

    @property
    def pid(self) -> int:
        assert self._running is not None
        return self._running.pid

    @property
    def ended(self) -> int | None:
        """Its exit code; None while it runs."""
        return None if self._running is None else self._running.poll()

    def start(self) -> None:
        """Start it and wait until it is ready."""
        lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        with self.log.open("a") as log:
            self._running = running = subprocess.Popen(
                [sys.executable, "-m", self.module, *self.arguments],
                env={**os.environ, **self.environment},
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        assert running.stdout is not None
        output = running.stdout

        def read() -> None:
            with output:
                for line in output:
                    lines.put(line)
            lines.put("")

        threading.Thread(target=read, daemon=True).start()
        if not lines.get(timeout=READY_S):
            code = running.wait(EXIT_S)
            raise AssertionError(f"{self.module} ended with {code} instead of starting:\n{self.log.read_text()}")

    def kill(self, number: signal.Signals = signal.SIGKILL) -> int:
        """Send a signal and wait until it is gone; return its exit code."""
        assert self._running is not None
        self._running.send_signal(number)
        return self._running.wait(EXIT_S)

    def wait(self) -> int:
        """Wait until it ends by itself; return its exit code."""
        assert self._running is not None
        return self._running.wait(EXIT_S)

    def stop(self) -> None:
        """Kill it if it still runs."""
        if self._running is not None and self._running.poll() is None:
            self.kill()


@dataclass(frozen=True, slots=True)
class Service:
    """A server and its workers."""

    server: Process
    workers: list[Process]
    address: str


@contextmanager
def service(environment: Mapping[str, str], logs: Path, workers: int = 2) -> Iterator[Service]:
    """Run a server and workers; kill what is left at the end."""
    address = f"127.0.0.1:{choose_free()}"
    with ExitStack() as stop:
        server = Process("bulkgrpc.server.process", ("--listen", address), environment, logs / "server.log")
        stop.callback(server.stop)
        server.start()
        fleet = []
        for number in range(workers):
            worker = Process("workers.process", (), environment, logs / f"worker-{number}.log")
            stop.callback(worker.stop)
            worker.start()
            fleet.append(worker)
        yield Service(server, fleet, address)
