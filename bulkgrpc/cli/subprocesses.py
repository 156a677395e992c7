"""The server and the workers as children of a command: started, waited for, stopped with it."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import BinaryIO

from bulkgrpc.cli.console import CommandFailed

SERVER = ("bulkgrpc.server.process", "--listen", "127.0.0.1:0")
WORKER = ("workers.process",)
READY_WITHIN_S = 45.0
STOP_WITHIN_S = 25.0
_SAID_BYTES_MAX = 300


class Child:
    """A process of the service. `said` is the line by which it told that it is ready."""

    def __init__(self, name: str, process: asyncio.subprocess.Process, said: str) -> None:
        self.name = name
        self.process = process
        self.said = said


@asynccontextmanager
async def child(
    name: str, command: tuple[str, ...], environment: Mapping[str, str], logs: Path
) -> AsyncIterator[Child]:
    """Run a module as a child while the context lasts; enter when it says on stdout that it is ready.

    command: module and arguments. environment: variables on top of ours. logs: folder for its stderr, `{name}.log`.
    Raises CommandFailed with what it said last, if it ends or is not ready within READY_WITHIN_S.
    """
    log = logs / f"{name}.log"
    with _new_file(log) as stderr:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            *command,
            env={**os.environ, **environment},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=stderr,
        )
    try:
        yield Child(name, process, await _ready_line(name, process, log))
    finally:
        await _stop(process)


def _new_file(path: Path) -> BinaryIO:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.open("wb")


async def _ready_line(name: str, process: asyncio.subprocess.Process, log: Path) -> str:
    if process.stdout is None:
        raise CommandFailed(f"the {name} has no stdout")
    try:
        line = await asyncio.wait_for(process.stdout.readline(), READY_WITHIN_S)
    except TimeoutError:
        raise CommandFailed(f"the {name} was not ready after {READY_WITHIN_S:.0f} s: see {log}") from None
    if not line:
        raise CommandFailed(f"the {name} ended at once: {last_line(log)} (see {log})")
    return line.decode().strip()


def last_line(log: Path) -> str:
    """Return the last line of a log, cut to what fits into a line."""
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1][-_SAID_BYTES_MAX:] if lines else "it said nothing"


async def _stop(process: asyncio.subprocess.Process) -> None:
    if process.returncode is not None:
        return
    process.terminate()
    try:
        await asyncio.wait_for(process.wait(), STOP_WITHIN_S)
    except TimeoutError:
        process.kill()
        await process.wait()
