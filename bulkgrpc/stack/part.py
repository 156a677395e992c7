"""The life cycle of one part: start it, find its process again, wait until it is ready, stop it, kill it."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import psutil

from bulkgrpc.stack.model import PartState, PartStatus, Phase, StackError
from bulkgrpc.stack.ports import choose_free, holder, is_free
from bulkgrpc.stack.process import Identity, await_end, family, find, identify, last_line, living, send, spawn
from bulkgrpc.stack.server import Server
from bulkgrpc.stack.space import shortage
from bulkgrpc.stack.state import State, StateFile

_PROBE_INTERVAL_S = 0.05
_KILL_TIMEOUT_S = 10.0


def _ignore(_: Phase) -> None:
    """Ignore phases: the default."""


class Part:
    """One server of a stack, with its process. Any process that has the data directory may call every method.

    name: `kafka`, `postgres` or `redis`.
    """

    def __init__(self, server: Server, state: StateFile, asked_port: int = 0) -> None:
        self.name = server.name
        self.directory = server.directory
        self._server = server
        self._state = state
        self._asked_port = asked_port

    @property
    def pid(self) -> int | None:
        """The daemon's process ID (PostgreSQL: the postmaster's); None if it is not running."""
        process = self._process()
        return None if process is None else process.pid

    @property
    def address(self) -> str:
        """The address for clients, also if it is not running. Raises StackError if it was never started."""
        port = self._port(self._state.read())
        if not port or not self._server.is_prepared():
            raise StackError(f"{self._server.title} was never started here: `bulkgrpc up`")
        return self._server.address(port)

    def status(self) -> PartStatus:
        """Return the part's current status."""
        process = self._process()
        known = self._server.is_prepared() and self._port(self._state.read())
        address = self.address if known else None
        if process is None:
            return PartStatus(self.name, PartState.STOPPED if known else PartState.ABSENT, None, address, None)
        since = datetime.fromtimestamp(process.create_time(), UTC)
        return PartStatus(self.name, PartState.RUNNING, process.pid, address, since)

    def start(self) -> None:
        """Start it unless it is running, and return once it is ready. Raises StackError."""
        with self._state.locked():
            self.start_locked()

    def start_locked(self, enter: Callable[[Phase], None] = _ignore) -> None:
        """`start` for a caller that holds the state file's lock. Calls `enter` with each phase."""
        if self._adopted() is not None:
            self._refuse_move()
        # A process that was found alive may exit now because of a signal: then start it like one that has exited.
        if not self._await_ready(self._deadline_s()):
            self._launch(enter)
            self.wait_ready(self._deadline_s())
        enter(Phase.READY)

    def _deadline_s(self) -> float:
        return time.monotonic() + self._server.ready_timeout_s

    def _launch(self, enter: Callable[[Phase], None]) -> None:
        command = self._server.prepare(self._claim_ports(), enter)
        enter(Phase.STARTING)
        identity = identify(spawn(command))
        self._state.change(lambda state: state.with_process(self.name, identity))

    def wait_ready(self, deadline_s: float) -> None:
        """Return once the part is ready.

        deadline_s: in seconds of `time.monotonic()`. Raises StackError if it passes or the process exits.
        """
        if not self._await_ready(deadline_s):
            raise self._failure(f"exited while starting: {last_line(self._newest_log())}")

    def _await_ready(self, deadline_s: float) -> bool:
        """Return True once it is ready, False if it is not running. Raises StackError after the deadline."""
        port = self._port(self._state.read())
        process = self._process()
        while process is not None:
            reason = self._server.why_not_ready(port)
            if reason is None:
                return True
            if time.monotonic() > deadline_s:
                raise self._failure(f"(pid {process.pid}) is not ready: {reason}")
            if await_end([process], _PROBE_INTERVAL_S):
                break
        return False

    def stop(self) -> bool:
        """Shut it down; kill it if that takes too long. Returns False if it was not running."""
        with self._state.locked():
            return self.stop_locked()

    def stop_locked(self) -> bool:
        """`stop` for a caller that holds the state file's lock."""
        identity = self._adopted()
        process = living(identity)
        if process is not None:
            members = family(process)
            send([process], self._server.stop_signal)
            send(members, signal.SIGCONT)  # a stopped process does not receive the signal
            if not await_end([process], self._server.stop_timeout_s):
                send(members, signal.SIGKILL)
                await_end(members, _KILL_TIMEOUT_S)
        self._state.change(lambda state: state.with_process(self.name, None))
        return process is not None

    def kill(self, number: signal.Signals = signal.SIGKILL) -> None:
        """Send a signal to the process and its children, like a crash. After SIGKILL, return once all have exited.

        Does nothing if it is not running.
        """
        process = self._process()
        if process is None:
            return
        members = family(process)
        send(members, number)
        if number is signal.SIGKILL and not await_end(members, _KILL_TIMEOUT_S):
            raise self._failure(f"(pid {process.pid}) did not exit after SIGKILL")

    def _process(self) -> psutil.Process | None:
        return living(self._state.read().processes.get(self.name))

    def _adopted(self) -> Identity | None:
        identity = self._state.read().processes.get(self.name)
        if living(identity) is not None:
            return identity
        found = find(self._server.process_arguments())
        self._state.change(lambda state: state.with_process(self.name, found))
        return found

    def _port(self, state: State) -> int:
        return state.ports.get(self._server.port_names[0], 0)

    def _claim_ports(self) -> dict[str, int]:
        public, *private = self._server.port_names
        remembered = self._state.read().ports
        wanted = {public: self._asked_port or remembered.get(public, 0)}
        wanted |= {name: remembered.get(name, 0) for name in private}
        claimed = {name: self._claim(name, port) for name, port in wanted.items()}
        self._state.change(lambda state: state.with_ports(claimed))
        return claimed

    def _claim(self, name: str, port: int) -> int:
        if port and is_free(port):
            return port
        if port == 0 or name != self._server.port_names[0]:
            return choose_free()
        raise StackError(
            f"port {port} for {self._server.title} is in use by {holder(port)}: stop that, or choose another port "
            f"with --{self.name}-port"
        )

    def _refuse_move(self) -> None:
        port = self._port(self._state.read())
        if self._asked_port not in (0, port):
            raise StackError(
                f"{self._server.title} runs on port {port}, not {self._asked_port}: run `bulkgrpc down` first"
            )

    def _failure(self, what: str) -> StackError:
        return StackError(f"{self._server.title} {what}{shortage(self.directory)} (log: {self._newest_log()})")

    def _newest_log(self) -> Path:
        written = [log for log in self._server.logs if log.exists() and log.stat().st_size]
        return max(written, key=lambda log: log.stat().st_mtime, default=self._server.log)
