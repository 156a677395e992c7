"""Functions of ours in processes of their own, with a pipe: no two measured loads share an interpreter."""

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
"""Messages that two processes send each other."""
READY = "ready"
GO = "go"
_READY_WITHIN_S = 60.0
_END_WITHIN_S = 10.0


@dataclass(frozen=True, slots=True)
class Child:
    """A process that runs a function of ours, and our end of its pipe."""

    name: str
    process: BaseProcess
    pipe: Pipe

    def send(self, message: Any) -> None:
        """Send it a message."""
        self.pipe.send(message)

    def receive(self, within_s: float) -> Any:
        """Return what it sends next. Raises BenchFailed if it ends first, or in time sends nothing."""
        return receive(self.pipe, within_s)

    def check(self) -> None:
        """Raise BenchFailed if it failed."""
        if self.process.exitcode not in (None, 0):
            raise BenchFailed(f"{self.name} failed; it said why above")


@contextmanager
def children(body: Callable[..., None], arguments: Sequence[tuple[Any, ...]]) -> Iterator[list[Child]]:
    """Run `body(pipe, *arguments)` in a new process for each arguments.

    body: a module's function. Each process has said READY when they are given. Afterwards each is waited for, and
    killed if it does not end.
    """
    # Not forked: neither librdkafka's nor gRPC's threads would live on in the child.
    context = multiprocessing.get_context("spawn")
    pairs = [context.Pipe() for _ in arguments]
    running = [
        Child(body.__name__, context.Process(target=body, args=(theirs, *values), daemon=True), ours)
        for (ours, theirs), values in zip(pairs, arguments, strict=True)
    ]
    for child in running:
        child.process.start()
    for _, theirs in pairs:
        theirs.close()
    try:
        for child in running:
            child.receive(_READY_WITHIN_S)
        yield running
    except BaseException:
        for child in running:
            child.process.kill()
        raise
    finally:
        for child in running:
            _end(child)


def receive(pipe: Pipe, within_s: float) -> Any:
    """Return what the other process sends next. Raises BenchFailed if it ends first, or in time sends nothing."""
    try:
        if pipe.poll(within_s):
            return pipe.recv()
    except EOFError as error:
        raise BenchFailed("a process of the benchmark ended early; it said why above") from error
    raise BenchFailed(f"a process of the benchmark said nothing for {within_s:.0f} s")


def _end(child: Child) -> None:
    child.process.join(_END_WITHIN_S)
    if child.process.is_alive():
        child.process.kill()
        child.process.join()
    child.pipe.close()
