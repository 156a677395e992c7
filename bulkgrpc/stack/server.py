"""What a kind of server has to say of itself, so that `Part` can start, find, ask and stop it."""

from __future__ import annotations

import signal
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import ClassVar

from bulkgrpc.stack.model import Phase
from bulkgrpc.stack.process import Command


class NotReadyError(Exception):
    """The server does not answer its protocol yet."""


class Server(ABC):
    """One kind of server in a directory of its own. Knows configuration and protocol; has no process."""

    name: ClassVar[str]
    title: ClassVar[str]
    """The name for people: `PostgreSQL`."""
    port_names: ClassVar[tuple[str, ...]]
    """The ports it needs, the public one first."""
    stop_signal: ClassVar[signal.Signals] = signal.SIGTERM
    stop_within_s: ClassVar[float] = 20.0
    ready_within_s: ClassVar[float] = 60.0

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.log = directory / f"{self.name}.log"

    @property
    def logs(self) -> tuple[Path, ...]:
        """The files that may tell why it ended."""
        return (self.log,)

    @abstractmethod
    def is_prepared(self) -> bool:
        """Tell whether the directory holds data already."""

    @abstractmethod
    def prepare(self, ports: Mapping[str, int], enter: Callable[[Phase], None]) -> Command:
        """Make the directory fit to start in, and return the command. Safe after any crash, also of itself.

        Called only while no process of this server runs.
        """

    @abstractmethod
    def trace(self) -> tuple[str, str]:
        """Return the program's name and the last argument: what its process is known by."""

    @abstractmethod
    def address(self, port: int) -> str:
        """Return where clients find it."""

    @abstractmethod
    def ask(self, port: int) -> None:
        """Do one real exchange in the server's protocol, within a second or so. Raises NotReadyError."""
