"""The stack's vocabulary: addresses, ports, states, progress. Values only; imports nothing of ours."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

LOOPBACK = "127.0.0.1"


class StackError(Exception):
    """The stack could not do what was asked. The message is one line: what happened, and what to do."""


@dataclass(frozen=True, slots=True)
class Addresses:
    """Where the three parts answer. The values hold the generated PostgreSQL password: treat them as secrets."""

    kafka: str
    """Bootstrap servers, `127.0.0.1:9092`."""
    postgres: str
    """A libpq URL, `postgresql://bulkgrpc:…@127.0.0.1:5432/bulkgrpc`."""
    redis: str
    """A Redis URL, `redis://127.0.0.1:6379/0`."""

    def environment(self) -> dict[str, str]:
        """Return the variables by which bulkgrpc's processes find the parts."""
        return {"BULKGRPC_KAFKA": self.kafka, "BULKGRPC_POSTGRES": self.postgres, "BULKGRPC_REDIS": self.redis}


@dataclass(frozen=True, slots=True)
class Ports:
    """The TCP ports asked for. 0: the one used before, or a free one when there was none."""

    kafka: int = 0
    postgres: int = 0
    redis: int = 0


class PartState(StrEnum):
    """What a part is doing, as far as its process tells."""

    RUNNING = "running"
    STOPPED = "stopped"
    """It has data, but no process."""
    ABSENT = "absent"
    """It was never started in this data directory."""


@dataclass(frozen=True, slots=True)
class PartStatus:
    """One line of `Stack.status()`. `pid` and `since` are set only while running, `address` once a port is known."""

    name: str
    state: PartState
    pid: int | None
    address: str | None
    since: datetime | None


class Phase(StrEnum):
    """Where a part is on its way up."""

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
    """Drop progress: the default for callers who only want the result."""
