"""The history: what each client saw, written as it happens, one JSON object per line and one file per client."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

Kind = Literal[
    "memory",  # grown_bytes, bound_bytes: what a process grew by, and may grow by
    "submit",  # key, base, batches, rows, bad: what a client is about to submit, all its batches
    "sent",  # key, batches: so many were handed to a stream at least once
    "acknowledged",  # key, batches: all before this one were acknowledged
    "sealed",  # key: the submission returned
    "refused",  # key, reason: the server refused the call for good; unacknowledged batches may be there or not
    "lost",  # key, reason: the server says that the job lost batches; the client submits it again
    "unknown",  # key, reason: the client broke off or gave up; the same
    "job",  # key, state, accepted, written, duplicate, rejected, expired: what GetJob reported; lost: of a loss
    "read",  # jobs: {key: [state, written, found]}, offsets: {partition: [next_offset, owner_epoch]}, in one snapshot
    "fault",  # name, phase: begun, healed
    "restored",  # PostgreSQL is at an earlier time from now on
    "not_contained",  # names, ended: processes that ended while users' faults alone were in force
    "stopped",  # partitions: those that workers stopped, with the cause of each
    "process",  # name, code, tail: a process ended by itself
    "caught_up",  # after_s: lag was zero and all sealed jobs ended, so long after the last fault healed
    "behind",  # after_s, what: it was not, by the deadline
]


@dataclass(frozen=True, slots=True)
class Event:
    """Something that `who` saw. at_s: seconds since the history began, on one monotonic clock."""

    at_s: float
    who: str
    kind: Kind
    data: dict[str, Any] = field(default_factory=dict)


class History:
    """A directory of files that are only appended to. Safe to use from several threads."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.directory = directory
        self._began_s = time.monotonic()
        self._lock = threading.Lock()

    def note(self, who: str, kind: Kind, **data: object) -> None:
        """Append an event; it is in the file when this returns."""
        line = json.dumps({"at_s": round(time.monotonic() - self._began_s, 4), "who": who, "kind": kind, "data": data})
        with self._lock, (self.directory / f"{who}.jsonl").open("a") as file:
            file.write(line + "\n")

    def events(self) -> list[Event]:
        """Return all events in the order in which they happened."""
        return sorted(read(self.directory), key=lambda event: event.at_s)


def read(directory: Path) -> Iterator[Event]:
    """Read the files of a history."""
    for path in sorted(directory.glob("*.jsonl")):
        for line in path.read_text().splitlines():
            yield Event(**json.loads(line))
