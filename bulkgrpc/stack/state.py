"""The state of a data directory: the ports of its parts, and the processes that were started last."""

from __future__ import annotations

import fcntl
import json
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from bulkgrpc.stack.model import StackError
from bulkgrpc.stack.process import Identity

_VERSION = 1
_LOCK = "stack.lock"


@dataclass(frozen=True, slots=True)
class State:
    """The content of `stack.json`, by part name. `ports` also has `kafka_controller`."""

    ports: Mapping[str, int] = field(default_factory=dict)
    processes: Mapping[str, Identity] = field(default_factory=dict)

    def with_ports(self, ports: Mapping[str, int]) -> State:
        """Return the state with these ports replaced."""
        return replace(self, ports={**self.ports, **ports})

    def with_process(self, name: str, identity: Identity | None) -> State:
        """Return the state in which the part `name` has this process, or none."""
        others = {key: value for key, value in self.processes.items() if key != name}
        return replace(self, processes=others if identity is None else {**others, name: identity})


class StateFile:
    """`stack.json` in a data directory: written atomically, mode 0600, changed by one process at a time."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._path = directory / "stack.json"
        self._threads = threading.Lock()

    def read(self) -> State:
        """Return the state; an empty one if nothing was ever started. Needs no lock."""
        try:
            return _decode(json.loads(self._path.read_text()))
        except FileNotFoundError:
            return State()
        except PermissionError as error:
            raise self._foreign() from error
        except (ValueError, KeyError, TypeError) as error:
            raise StackError(f"{self._path} is not readable ({error}): delete it, then run `bulkgrpc up`") from error

    def change(self, step: Callable[[State], State]) -> State:
        """Replace the state by `step(state)`. The caller holds `locked()`; its threads may call this concurrently."""
        with self._threads:
            state = step(self.read())
            draft = self._path.with_suffix(".draft")
            descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            with os.fdopen(descriptor, "w") as file:
                json.dump(_encode(state), file, indent=2)
            draft.replace(self._path)
            return state

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Prevent other processes from starting and stopping parts. The kernel releases the lock of a dead process."""
        try:
            lock = (self._directory / _LOCK).open("a")
        except PermissionError as error:
            raise self._foreign() from error
        except OSError as error:
            raise StackError(
                f"{self._directory} cannot be written ({error.strerror}): choose another --data-dir, or set "
                "BULKGRPC_DATA_DIR"
            ) from error
        with lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def exists(self) -> bool:
        """Return whether a stack was ever started in this data directory."""
        return self._path.exists()

    def forget(self) -> None:
        """Remove the files of this class, including the lock."""
        self._path.unlink(missing_ok=True)
        (self._directory / _LOCK).unlink(missing_ok=True)

    def _foreign(self) -> StackError:
        return StackError(f"{self._directory} belongs to another user: run as that user, or choose another --data-dir")


def _encode(state: State) -> dict[str, Any]:
    processes = {name: {"pid": one.pid, "started_s": one.started_s} for name, one in state.processes.items()}
    return {"version": _VERSION, "ports": dict(state.ports), "processes": processes}


def _decode(document: dict[str, Any]) -> State:
    if document["version"] != _VERSION:
        raise ValueError(f"version {document['version']}, this program writes {_VERSION}")
    processes = {
        str(name): Identity(int(one["pid"]), float(one["started_s"])) for name, one in document["processes"].items()
    }
    return State({str(name): int(port) for name, port in document["ports"].items()}, processes)
