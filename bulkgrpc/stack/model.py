"""The stack's values: addresses, ports, states, progress. Imports nothing of ours."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

LOOPBACK = "127.0.0.1"


class StackError(Exception):
    """An operation on the stack failed. The message is one line: what happened, and what to do."""


@dataclass(frozen=True, slots=True)
class Addresses:
    """The addresses of the three parts. They contain the generated PostgreSQL password: treat them as secrets."""

    kafka: str
    """Bootstrap servers, `127.0.0.1:9092`."""
    postgres: str
    """A libpq URL, `postgresql://bulkgrpc:…@127.0.0.1:5432/bulkgrpc`."""
    redis: str
    """A Redis URL, `redis://127.0.0.1:6379/0`."""

    def environment(self) -> dict[str, str]:
        """Return the environment variables with which bulkgrpc's processes find the parts."""
        return {"BULKGRPC_KAFKA": self.kafka, "BULKGRPC_POSTGRES": self.postgres, "BULKGRPC_REDIS": self.redis}


@dataclass(frozen=True, slots=True)
class Ports:
    """The requested TCP ports. 0: the port of the last start, or a free one if there was none."""

    kafka: int = 0
    postgres: int = 0
    redis: int = 0


class PartState(StrEnum):
    """The state of a part, by its process."""

    RUNNING = "running"
    STOPPED = "stopped"
    """It has data, but no process."""
    ABSENT = "absent"
    """It was never started in this data directory."""


@dataclass(frozen=True, slots=True)
class PartStatus:
    """One line of `Stack.status()`. `pid` and `since` are None unless it runs, `address` until a port is known."""

    name: str
    state: PartState
    pid: int | None
    address: str | None
    since: datetime | None


class Phase(StrEnum):
    """The phases of starting a part."""

    INSTALLING = "installing"
    PREPARING = "preparing"
    STARTING = "starting"
    READY = "ready"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Progress:
    """A part entered a phase, `elapsed_s` seconds after the call began."""

    part: str
    phase: Phase
    elapsed_s: float


Report = Callable[[Progress], None]


def unreported(_: Progress) -> None:
    """Ignore progress: the default."""
