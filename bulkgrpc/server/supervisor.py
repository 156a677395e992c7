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

from bulkgrpc.limits import SERVER_START_S
from bulkgrpc.server.cannot_serve import WRONG_SETTINGS

RESTART_AFTER_S: Final = 1.0
KILL_AFTER_S: Final = 10.0
"""Time for a child to flush and close, after its drain."""
SERVE_SIGNAL: Final = signal.SIGUSR1
"""The signal to a child that every child serves."""

_log = structlog.get_logger()


class Supervisor:
    """Runs `count` children of `command`.

    When each of them serves, `announce` is called, once, and every child is sent SERVE_SIGNAL: only then it reports to
    health checks that it serves. A child prints a line when it serves.
    """

    def __init__(
        self,
        command: list[str],
        environment: Mapping[str, str],
        count: int,
        drain_s: float,
        announce: Callable[[], None],
        *,
        start_within_s: float = SERVER_START_S,
    ) -> None:
        self._command = command
        self._environment = dict(environment)
        self._count = count
        self._drain_s = drain_s
        self._announce = announce
        self._start_within_s = start_within_s
        self._stopping = asyncio.Event()
        self._serving: dict[int, asyncio.subprocess.Process] = {}  # by slot
        self._announced = False
        self._status = 0

    async def run(self) -> int:
        """Run until SIGTERM or SIGINT; return the exit status.

        The status is WRONG_SETTINGS if a child exits with it; 1 if a child exits before it serves, or does not serve
        within `start_within_s`, before all have served once: as one process does, which its supervisor starts again.
        After that, a child that dies or does not serve in time is started again, however often: the others serve.
        """
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stopping.set)
        gives_up = loop.call_later(self._start_within_s, self._give_up)
        try:
            async with asyncio.TaskGroup() as tasks:
                for slot in range(self._count):
                    tasks.create_task(self._keep(slot))
        finally:
            gives_up.cancel()
        return self._status

    def _give_up(self) -> None:
        """Stop if not all served yet: fewer processes than were asked for are not what was asked for."""
        if self._announced or self._stopping.is_set():
            return
        for slot in sorted(set(range(self._count)) - self._serving.keys()):
            _log.error("server_process_not_started", slot=slot, seconds=self._start_within_s)
        self._stop(1)

    def _stop(self, status: int) -> None:
        self._status = status
        self._stopping.set()

    async def _keep(self, slot: int) -> None:
        while not self._stopping.is_set():
            child = await asyncio.create_subprocess_exec(
                *self._command, env=self._environment, stdout=asyncio.subprocess.PIPE, start_new_session=True
            )
            status, served = await self._watch(slot, child)
            if self._stopping.is_set():
                return
            if status == WRONG_SETTINGS:
                self._stop(status)
                return
            _log.error("server_process_died", slot=slot, status=status)
            if not (served or self._announced):
                self._stop(1)
                return
            await self._pause()

    async def _watch(self, slot: int, child: asyncio.subprocess.Process) -> tuple[int, bool]:
        """Wait until a child has ended, or end it; return its status and whether it served."""
        ended = asyncio.ensure_future(child.wait())
        stopped = asyncio.ensure_future(self._stopping.wait())
        ready = asyncio.ensure_future(self._await_ready(slot, child))
        try:
            await asyncio.wait({ended, stopped, ready}, return_when=asyncio.FIRST_COMPLETED)
            if slot in self._serving:
                await asyncio.wait({ended, stopped}, return_when=asyncio.FIRST_COMPLETED)
            if not ended.done():
                child.send_signal(signal.SIGTERM)
                await asyncio.wait({ended}, timeout=self._drain_s + KILL_AFTER_S)
            return (await ended if ended.done() else -signal.SIGKILL), slot in self._serving
        finally:
            self._serving.pop(slot, None)
            if child.returncode is None:
                child.kill()
                await child.wait()
            for task in (ended, stopped, ready):
                task.cancel()

    async def _await_ready(self, slot: int, child: asyncio.subprocess.Process) -> None:
        """Return once a child serves, and is in `_serving`; or has ended, or did not serve for `start_within_s`."""
        assert child.stdout is not None  # noqa: S101 — it was opened as a pipe
        try:
            async with asyncio.timeout(self._start_within_s):
                if not await child.stdout.readline():
                    # It ends, which `_watch` sees, or never serves.
                    await asyncio.get_running_loop().create_future()
        except TimeoutError:
            if self._announced:
                _log.error("server_process_not_started", slot=slot, seconds=self._start_within_s)
            return
        self._serving[slot] = child
        if self._announced:
            child.send_signal(SERVE_SIGNAL)
        elif len(self._serving) == self._count:
            self._announced = True
            for serving in self._serving.values():
                serving.send_signal(SERVE_SIGNAL)
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
