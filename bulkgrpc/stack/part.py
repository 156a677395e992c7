"""The life of one part: start, know again, wait until it answers, stop, kill."""

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
from bulkgrpc.stack.server import NotReadyError, Server
from bulkgrpc.stack.state import State, StateFile

_ASK_EVERY_S = 0.05
_KILLED_WITHIN_S = 10.0


def _unheard(_: Phase) -> None:
    """Drop the phases."""


class Part:
    """One server of a stack, with its process. Every method may be called by any process that has the data directory.

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
        """The daemon's pid (PostgreSQL: the postmaster's), None when it does not run."""
        process = self._process()
        return None if process is None else process.pid

    @property
    def address(self) -> str:
        """Where clients find it, running or not. Raises StackError when it was never started."""
        port = self._port(self._state.read())
        if not port or not self._server.is_prepared():
            raise StackError(f"{self._server.title} was never started here: `bulkgrpc up`")
        return self._server.address(port)

    def status(self) -> PartStatus:
        """Tell what the part is doing now."""
        process = self._process()
        known = self._server.is_prepared() and self._port(self._state.read())
        address = self.address if known else None
        if process is None:
            return PartStatus(self.name, PartState.STOPPED if known else PartState.ABSENT, None, address, None)
        since = datetime.fromtimestamp(process.create_time(), UTC)
        return PartStatus(self.name, PartState.RUNNING, process.pid, address, since)

    def start(self) -> None:
        """Start it unless it runs, and return once it answers. Raises StackError."""
        with self._state.locked():
            self.start_locked()

    def start_locked(self, enter: Callable[[Phase], None] = _unheard) -> None:
        """`start` for a caller who holds the state file's lock. Tells `enter` each phase."""
        if self._adopted() is not None:
            self._refuse_move()
        # One that was seen alive may be dying of a signal already: then it is started like one that is gone.
        if not self._await_answer(self._deadline_s()):
            self._launch(enter)
            self.wait_ready(self._deadline_s())
        enter(Phase.READY)

    def _deadline_s(self) -> float:
        return time.monotonic() + self._server.ready_within_s

    def _launch(self, enter: Callable[[Phase], None]) -> None:
        command = self._server.prepare(self._claim_ports(), enter)
        enter(Phase.STARTING)
        identity = identify(spawn(command))
        self._state.change(lambda state: state.with_process(self.name, identity))

    def wait_ready(self, deadline_s: float) -> None:
        """Return once the part answers its protocol.

        deadline_s: in `time.monotonic()`'s seconds. Raises StackError when that passes or the process ends.
        """
        if not self._await_answer(deadline_s):
            raise self._failure(f"ended while starting: {last_line(self._telling_log())}")

    def _await_answer(self, deadline_s: float) -> bool:
        """Return True once it answers, False when it does not run. Raises StackError past the deadline."""
        port = self._port(self._state.read())
        process = self._process()
        while process is not None:
            try:
                self._server.ask(port)
            except NotReadyError as silence:
                if time.monotonic() > deadline_s:
                    raise self._failure(f"(pid {process.pid}) does not answer: {silence}") from silence
            else:
                return True
            if await_end([process], _ASK_EVERY_S):
                break
        return False

    def stop(self) -> bool:
        """Stop it in good order; kill it when it takes too long. Returns False when it did not run."""
        with self._state.locked():
            return self.stop_locked()

    def stop_locked(self) -> bool:
        """`stop` for a caller who holds the state file's lock."""
        identity = self._adopted()
        process = living(identity)
        if process is not None:
            members = family(process)
            send([process], self._server.stop_signal)
            send(members, signal.SIGCONT)  # one that is paused would not see the signal
            if not await_end([process], self._server.stop_within_s):
                send(members, signal.SIGKILL)
                await_end(members, _KILLED_WITHIN_S)
        self._state.change(lambda state: state.with_process(self.name, None))
        return process is not None

    def kill(self, number: signal.Signals = signal.SIGKILL) -> None:
        """Signal the process and its children, as a crash would. After SIGKILL, return once all are gone.

        Does nothing when it does not run.
        """
        process = self._process()
        if process is None:
            return
        members = family(process)
        send(members, number)
        if number is signal.SIGKILL and not await_end(members, _KILLED_WITHIN_S):
            raise self._failure(f"(pid {process.pid}) outlived SIGKILL")

    def _process(self) -> psutil.Process | None:
        return living(self._state.read().processes.get(self.name))

    def _adopted(self) -> Identity | None:
        identity = self._state.read().processes.get(self.name)
        if living(identity) is not None:
            return identity
        found = find(self._server.trace())
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
            f"port {port} for {self._server.title} is taken by {holder(port)}: stop that, or choose another port "
            f"by --{self.name}-port"
        )

    def _refuse_move(self) -> None:
        port = self._port(self._state.read())
        if self._asked_port not in (0, port):
            raise StackError(
                f"{self._server.title} runs on port {port}, not {self._asked_port}: `bulkgrpc down` first to move it"
            )

    def _failure(self, what: str) -> StackError:
        return StackError(f"{self._server.title} {what} (log: {self._telling_log()})")

    def _telling_log(self) -> Path:
        written = [log for log in self._server.logs if log.exists() and log.stat().st_size]
        return max(written, key=lambda log: log.stat().st_mtime, default=self._server.log)
