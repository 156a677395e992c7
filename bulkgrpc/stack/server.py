"""The interface of a kind of server, with which `Part` starts, finds, probes and stops it."""

from __future__ import annotations

import signal
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import ClassVar

from bulkgrpc.stack.model import Phase
from bulkgrpc.stack.process import Command


class Server(ABC):
    """One kind of server in its own directory: its configuration and protocol, not its process."""

    name: ClassVar[str]
    title: ClassVar[str]
    """The display name: `PostgreSQL`."""
    port_names: ClassVar[tuple[str, ...]]
    """The names of the ports that it needs, the public one first."""
    stop_signal: ClassVar[signal.Signals] = signal.SIGTERM
    stop_timeout_s: ClassVar[float] = 20.0
    ready_timeout_s: ClassVar[float] = 60.0

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.log = directory / f"{self.name}.log"

    @property
    def logs(self) -> tuple[Path, ...]:
        """The files that may contain the reason for an exit."""
        return (self.log,)

    @abstractmethod
    def is_prepared(self) -> bool:
        """Return whether the directory has data."""

    @abstractmethod
    def prepare(self, ports: Mapping[str, int], enter: Callable[[Phase], None]) -> Command:
        """Prepare the directory for a start, and return the command. Safe after any crash, also of this function.

        Called only while no process of this server runs.
        """

    @abstractmethod
    def process_arguments(self) -> tuple[str, str]:
        """Return the program's name and its last argument, by which its process is found."""

    @abstractmethod
    def address(self, port: int) -> str:
        """Return the address for clients."""

    @abstractmethod
    def why_not_ready(self, port: int) -> str | None:
        """Make one request in the server's protocol, within 2 s. Return None if it succeeds, or else the reason."""
