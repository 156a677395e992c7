"""Daemons: starting them detached, knowing them again, ending them.

A process is known by pid *and* start time, so that a recycled pid is never taken for ours, nor signalled.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

# The start time is derived from the boot time, which moves when the clock is set: allow for a slewing clock,
# still far below the time in which pids come round again.
_SAME_START_S = 1.0
_LOG_TAIL_BYTES = 8192

# The shell ends at once, so the daemon belongs to init from birth: it leaves no zombie with its starter, and no
# terminal or signal of the starter's session reaches it. Its own stdout joins stderr, which is the log.
_DETACH = 'exec "$@" >&2 & echo $!'


@dataclass(frozen=True, slots=True)
class Identity:
    """A process that cannot be mistaken for a later one with the same pid."""

    pid: int
    started_s: float
    """Seconds since the epoch."""


@dataclass(frozen=True, slots=True)
class Owner:
    """The system user a daemon runs as, when that is not the caller."""

    name: str
    uid: int
    gid: int


@dataclass(frozen=True, slots=True)
class Command:
    """How to run one program.

    argv: its last item is a path inside the data directory, by which `find` knows the daemon again.
    """

    argv: Sequence[str]
    directory: Path
    log: Path
    owner: Owner | None = None
    environment: Mapping[str, str] = field(default_factory=dict)


def spawn(command: Command) -> int:
    """Start a daemon in a session of its own and return its pid.

    It survives the caller's exit, however violent. Its output is appended to `command.log`.
    """
    with command.log.open("ab") as log:
        shell = subprocess.run(
            as_owner(command.owner, ["/bin/sh", "-c", _DETACH, "sh", *command.argv]),
            cwd=command.directory,
            env=_environment(command.environment),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            start_new_session=True,
            check=True,
        )
    return int(shell.stdout)


def as_owner(owner: Owner | None, argv: Sequence[str]) -> list[str]:
    """Return the command that runs `argv` as `owner`, with no other groups.

    Not by the keywords of `subprocess`: with those it forks instead of vforking, and a fork in a process with gRPC's
    threads runs gRPC's fork handlers, in which the child can crash.
    """
    if owner is None:
        return list(argv)
    return ["setpriv", f"--reuid={owner.uid}", f"--regid={owner.gid}", "--clear-groups", "--", *argv]


def _environment(extra: Mapping[str, str]) -> dict[str, str]:
    return {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C.UTF-8", **extra}


def identify(pid: int) -> Identity | None:
    """Return the identity of the process that has this pid now, None if there is none."""
    try:
        return Identity(pid, psutil.Process(pid).create_time())
    except psutil.Error:
        return None


def living(identity: Identity | None) -> psutil.Process | None:
    """Return the process, or None if it ended, is a zombie, or its pid went to another."""
    if identity is None:
        return None
    try:
        process = psutil.Process(identity.pid)
        same = abs(process.create_time() - identity.started_s) < _SAME_START_S
        return process if same and process.status() != psutil.STATUS_ZOMBIE else None
    except psutil.Error:
        return None


def find(argv: Sequence[str]) -> Identity | None:
    """Find a daemon started with this program and this last argument.

    This is how one is known again whose starter was killed before it could write the pid down.
    """
    program = Path(argv[0]).name
    for process in psutil.process_iter(["cmdline"]):
        line = process.info["cmdline"]
        if line and line[-1] == argv[-1] and Path(line[0]).name == program:
            return identify(process.pid)
    return None


def working_in(directory: Path) -> list[psutil.Process]:
    """Return the processes whose working directory is `directory`: for PostgreSQL, all of one cluster's."""
    return [process for process in psutil.process_iter(["cwd"]) if process.info["cwd"] == str(directory)]


def family(process: psutil.Process) -> list[psutil.Process]:
    """Return the process and its descendants, itself first."""
    try:
        return [process, *process.children(recursive=True)]
    except psutil.Error:
        return [process]


def send(processes: Iterable[psutil.Process], number: signal.Signals) -> None:
    """Signal each process that is still there. psutil checks that the pid was not recycled."""
    for process in processes:
        try:
            process.send_signal(number)
        except psutil.NoSuchProcess:
            continue


def await_end(processes: Sequence[psutil.Process], within_s: float) -> bool:
    """Wait until all processes ended, reaped or not. Returns False if one is left after `within_s`."""
    deadline_s = time.monotonic() + within_s
    return all(_await_one(process, max(0.0, deadline_s - time.monotonic())) for process in processes)


def _await_one(process: psutil.Process, within_s: float) -> bool:
    if not hasattr(os, "pidfd_open"):
        return bool(psutil.wait_procs([process], timeout=within_s)[0])
    # psutil waits until the parent has reaped the process, which init may be slow to do in a container. A pidfd
    # becomes readable at the process's end.
    try:
        descriptor = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return True
    try:
        if not process.is_running():
            return True  # the pid has another owner by now
        ended = select.poll()
        ended.register(descriptor, select.POLLIN)
        return bool(ended.poll(within_s * 1000))
    finally:
        os.close(descriptor)


def last_line(log: Path) -> str:
    """Return the last line of a log that tells something, "" if there is none. Stack traces' lines do not."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - _LOG_TAIL_BYTES))
            lines = file.read().decode(errors="replace").splitlines()
    except OSError:
        return ""
    return next((line.strip() for line in reversed(lines) if _tells(line)), "")


def _tells(line: str) -> bool:
    return bool(line.strip()) and not line[0].isspace() and not line.startswith("Caused by")
