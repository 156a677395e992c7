"""The server and the workers as child processes of a command: start, wait until ready, stop."""

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
READY_TIMEOUT_S = 45.0
STOP_TIMEOUT_S = 25.0
_LINE_CHARS_MAX = 300


@asynccontextmanager
async def child_process(
    name: str, command: tuple[str, ...], environment: Mapping[str, str], logs: Path
) -> AsyncIterator[str]:
    """Run a module as a child process while the context lasts. Yields the line with which it reports that it is ready.

    command: module and arguments. environment: variables in addition to this process's. logs: directory for its stderr,
    `{name}.log`. Raises CommandFailed with its last log line if it exits or is not ready within READY_TIMEOUT_S.
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
        yield await _ready_line(name, process, log)
    finally:
        await _stop(process)


def _new_file(path: Path) -> BinaryIO:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.open("wb")


async def _ready_line(name: str, process: asyncio.subprocess.Process, log: Path) -> str:
    if process.stdout is None:
        raise CommandFailed(f"the {name} has no stdout")
    try:
        line = await asyncio.wait_for(process.stdout.readline(), READY_TIMEOUT_S)
    except TimeoutError:
        raise CommandFailed(f"the {name} was not ready after {READY_TIMEOUT_S:.0f} s: see {log}") from None
    if not line:
        raise CommandFailed(f"the {name} exited at once: {last_line(log)} (see {log})")
    return line.decode().strip()


def last_line(log: Path) -> str:
    """Return the last line of a log that is not blank, cut to its last 300 characters."""
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1][-_LINE_CHARS_MAX:] if lines else "its log is empty"


async def _stop(process: asyncio.subprocess.Process) -> None:
    if process.returncode is not None:
        return
    process.terminate()
    try:
        await asyncio.wait_for(process.wait(), STOP_TIMEOUT_S)
    except TimeoutError:
        process.kill()
        await process.wait()
