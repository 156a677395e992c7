"""Several server processes on one address: started, restarted when one dies, stopped together.

The parent never loads librdkafka, which does not survive a fork.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from collections.abc import Callable, Mapping
from typing import Final

import structlog

from bulkgrpc.server.cannot_serve import WRONG_SETTINGS

RESTART_AFTER_S: Final = 1.0
KILL_AFTER_S: Final = 10.0
"""Time for a child to flush and close, after its drain."""

_log = structlog.get_logger()


class Supervisor:
    """Runs `count` children of `command`; `announce` is called once, when all serve."""

    def __init__(
        self,
        command: list[str],
        environment: Mapping[str, str],
        count: int,
        drain_s: float,
        announce: Callable[[], None],
    ) -> None:
        self._command = command
        self._environment = dict(environment)
        self._count = count
        self._drain_s = drain_s
        self._announce = announce
        self._stopping = asyncio.Event()
        self._ready = 0
        self._status = 0

    async def run(self) -> int:
        """Run until SIGTERM or SIGINT, or until a child exits with WRONG_SETTINGS; return the exit status."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stopping.set)
        async with asyncio.TaskGroup() as tasks:
            for slot in range(self._count):
                tasks.create_task(self._keep(slot))
        return self._status

    async def _keep(self, slot: int) -> None:
        while not self._stopping.is_set():
            child = await asyncio.create_subprocess_exec(
                *self._command, env=self._environment, stdout=asyncio.subprocess.PIPE, start_new_session=True
            )
            status = await self._watch(child)
            if self._stopping.is_set():
                return
            if status == WRONG_SETTINGS:
                self._status = status
                self._stopping.set()
                return
            _log.error("server_process_died", slot=slot, status=status)
            await self._pause()

    async def _watch(self, child: asyncio.subprocess.Process) -> int:
        ended = asyncio.ensure_future(child.wait())
        stopped = asyncio.ensure_future(self._stopping.wait())
        ready = asyncio.ensure_future(self._await_ready(child))
        try:
            await asyncio.wait({ended, stopped}, return_when=asyncio.FIRST_COMPLETED)
            if not ended.done():
                child.send_signal(signal.SIGTERM)
                await asyncio.wait({ended}, timeout=self._drain_s + KILL_AFTER_S)
            return await ended if ended.done() else -signal.SIGKILL
        finally:
            if child.returncode is None:
                child.kill()
                await child.wait()
            for task in (ended, stopped, ready):
                task.cancel()

    async def _await_ready(self, child: asyncio.subprocess.Process) -> None:
        assert child.stdout is not None  # noqa: S101 — it was opened as a pipe
        if await child.stdout.readline():
            self._ready += 1
            if self._ready == self._count:
                self._announce()

    async def _pause(self) -> None:
        try:
            async with asyncio.timeout(RESTART_AFTER_S):
                await self._stopping.wait()
        except TimeoutError:
            return


def reserve(listen: str) -> tuple[socket.socket, str]:
    """Bind an address without listening, so that port 0 becomes one that all children can share.

    Returns the socket, to be kept open, and the address. Raises OSError if the address is taken.
    """
    host, _, port = listen.rpartition(":")
    bare = host.strip("[]")
    family = socket.AF_INET6 if ":" in bare else socket.AF_INET
    reserved = socket.socket(family, socket.SOCK_STREAM)
    reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    reserved.bind((bare, int(port)))
    return reserved, f"{host}:{reserved.getsockname()[1]}"


def child_command(listen: str) -> list[str]:
    """Return the command line of a child that shares `listen`."""
    return [sys.executable, "-m", "bulkgrpc.server.process", "--listen", listen, "--parent", str(os.getpid())]


def end_with(parent: int) -> None:
    """Have the kernel send SIGTERM to this process when its parent dies, so that no orphan keeps serving (Linux)."""
    if sys.platform == "linux":
        import ctypes  # noqa: PLC0415 — needed by children only

        pr_set_pdeathsig = 1
        ctypes.CDLL(None, use_errno=True).prctl(pr_set_pdeathsig, signal.SIGTERM)
    if os.getppid() != parent:
        raise SystemExit(1)
