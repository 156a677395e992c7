"""Takes CPU time and does nothing with it: a load that shares nothing with the service but the processors."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager

from bulkgrpc.bench.spawned import START, Pipe, receive, spawned

_SPIN_S = 0.002
_STOP = "stop"
_TIMEOUT_S = 60.0


@contextmanager
def burning(cores: float) -> Iterator[None]:
    """Take `cores` CPU seconds per second, in a process per processor, for the time of the context. 0 takes none."""
    processors = os.cpu_count() or 1
    with spawned(burn, [(cores / processors,)] * (processors if cores else 0)) as running:
        for process in running:
            process.send(START)
        yield
        for process in running:
            process.send(_STOP)


def burn(pipe: Pipe, share: float) -> None:
    """Take `share` of a processor between two messages. Time that it did not get in time, it takes later."""
    pipe.send(True)
    receive(pipe, _TIMEOUT_S)
    start_s, start_cpu_s = time.perf_counter(), time.process_time()
    behind = True
    while not pipe.poll(0 if behind else _SPIN_S):
        until_s = time.process_time() + _SPIN_S
        while time.process_time() < until_s:
            pass
        behind = time.process_time() - start_cpu_s < share * (time.perf_counter() - start_s)
