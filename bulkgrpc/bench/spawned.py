"""Functions of ours in their own processes, each with a pipe: no two measured loads share an interpreter."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

from bulkgrpc.bench.model import BenchFailed

Pipe = Connection
"""One end of the pipe between two processes."""
START = "start"
_READY_TIMEOUT_S = 60.0
_EXIT_TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True)
class Spawned:
    """A process that runs a function of ours, and this process's end of its pipe."""

    name: str
    process: BaseProcess
    pipe: Pipe

    @property
    def pid(self) -> int:
        """The process ID."""
        return self.process.pid or 0

    def send(self, message: Any) -> None:
        """Send it a message."""
        self.pipe.send(message)

    def receive(self, timeout_s: float) -> Any:
        """Return its next message. Raises BenchFailed if it exits first, or sends nothing in time."""
        return receive(self.pipe, timeout_s)

    def check(self) -> None:
        """Raise BenchFailed if it failed."""
        if self.process.exitcode not in (None, 0):
            raise BenchFailed(f"{self.name} failed; its error is above")


@contextmanager
def spawned(body: Callable[..., None], arguments: Sequence[tuple[Any, ...]]) -> Iterator[list[Spawned]]:
    """Run `body(pipe, *arguments)` in a new process for each item of `arguments`.

    body: a function of a module. Its first message says that it is ready: all are ready when the context starts. When
    the context ends, each process is awaited, and killed if it does not exit. Raises BenchFailed.
    """
    # Not forked: the threads of librdkafka and gRPC do not survive a fork.
    context = multiprocessing.get_context("spawn")
    pairs = [context.Pipe() for _ in arguments]
    running = [
        Spawned(body.__name__, context.Process(target=body, args=(theirs, *values), daemon=True), ours)
        for (ours, theirs), values in zip(pairs, arguments, strict=True)
    ]
    for child in running:
        child.process.start()
    for _, theirs in pairs:
        theirs.close()
    try:
        for child in running:
            child.receive(_READY_TIMEOUT_S)
        yield running
    except BaseException:
        for child in running:
            child.process.kill()
        raise
    finally:
        for child in running:
            _end(child)


def receive(pipe: Pipe, timeout_s: float) -> Any:
    """Return the other process's next message. Raises BenchFailed if it exits first, or sends nothing in time."""
    try:
        if pipe.poll(timeout_s):
            return pipe.recv()
    except EOFError as error:
        raise BenchFailed("a process of the benchmark exited early; its error is above") from error
    raise BenchFailed(f"a process of the benchmark sent nothing for {timeout_s:.0f} s")


def _end(child: Spawned) -> None:
    child.process.join(_EXIT_TIMEOUT_S)
    if child.process.is_alive():
        child.process.kill()
        child.process.join()
    child.pipe.close()
