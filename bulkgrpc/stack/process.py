"""Daemons: start them detached, find them again, end them.

A process is identified by process ID *and* start time, so that a reused ID is never mistaken for ours and signalled.
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

# The start time is derived from the boot time, which changes when the clock is set. The tolerance is far below the time
# after which process IDs are reused.
_SAME_START_S = 1.0
_LOG_TAIL_BYTES = 8192

# The shell exits at once, so init is the daemon's parent: it leaves no zombie, and no terminal or signal of the
# caller's session reaches it. Its stdout is redirected to stderr, which is the log.
_DETACH = 'exec "$@" >&2 & echo $!'


@dataclass(frozen=True, slots=True)
class Identity:
    """The identity of a process: a later process with the same ID has another start time."""

    pid: int
    started_s: float
    """Seconds since the epoch."""


@dataclass(frozen=True, slots=True)
class Owner:
    """The system user that a daemon runs as, if it is not the caller."""

    name: str
    uid: int
    gid: int


@dataclass(frozen=True, slots=True)
class Command:
    """How to run one program.

    argv: the last item is a path in the data directory, by which `find` finds the daemon again.
    """

    argv: Sequence[str]
    directory: Path
    log: Path
    owner: Owner | None = None
    environment: Mapping[str, str] = field(default_factory=dict)


def spawn(command: Command) -> int:
    """Start a daemon in its own session and return its process ID.

    It continues when the caller exits or is killed. Its output is appended to `command.log`.
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
    """Return the command that runs `argv` as `owner`, without supplementary groups.

    The keywords of `subprocess` are not used: with them it forks instead of vforking, and a fork in a process with
    gRPC's threads runs gRPC's fork handlers, in which the child can crash.
    """
    if owner is None:
        return list(argv)
    return ["setpriv", f"--reuid={owner.uid}", f"--regid={owner.gid}", "--clear-groups", "--", *argv]


def _environment(extra: Mapping[str, str]) -> dict[str, str]:
    return {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C.UTF-8", **extra}


def identify(pid: int) -> Identity | None:
    """Return the identity of the process that has this ID now; None if there is none."""
    try:
        return Identity(pid, psutil.Process(pid).create_time())
    except psutil.Error:
        return None


def living(identity: Identity | None) -> psutil.Process | None:
    """Return the process; None if it has exited, is a zombie, or its ID was reused."""
    if identity is None:
        return None
    try:
        process = psutil.Process(identity.pid)
        same = abs(process.create_time() - identity.started_s) < _SAME_START_S
        return process if same and process.status() != psutil.STATUS_ZOMBIE else None
    except psutil.Error:
        return None


def find(argv: Sequence[str]) -> Identity | None:
    """Find a daemon by its program and last argument.

    Needed if the caller of `spawn` was killed before it could record the process ID.
    """
    program = Path(argv[0]).name
    for process in psutil.process_iter(["cmdline"]):
        line = process.info["cmdline"]
        if line and line[-1] == argv[-1] and Path(line[0]).name == program:
            return identify(process.pid)
    return None


def working_in(directory: Path) -> list[psutil.Process]:
    """Return the processes whose working directory is `directory`: for PostgreSQL, all processes of a cluster."""
    return [process for process in psutil.process_iter(["cwd"]) if process.info["cwd"] == str(directory)]


def family(process: psutil.Process) -> list[psutil.Process]:
    """Return the process and its descendants, itself first."""
    try:
        return [process, *process.children(recursive=True)]
    except psutil.Error:
        return [process]


def send(processes: Iterable[psutil.Process], number: signal.Signals) -> None:
    """Send a signal to each process that still exists. psutil checks that the ID was not reused."""
    for process in processes:
        try:
            process.send_signal(number)
        except psutil.NoSuchProcess:
            continue


def await_end(processes: Sequence[psutil.Process], timeout_s: float) -> bool:
    """Wait until all processes have exited, reaped or not. Returns False if one remains after `timeout_s`."""
    deadline_s = time.monotonic() + timeout_s
    return all(_await_one(process, max(0.0, deadline_s - time.monotonic())) for process in processes)


def _await_one(process: psutil.Process, timeout_s: float) -> bool:
    if not hasattr(os, "pidfd_open"):
        return bool(psutil.wait_procs([process], timeout=timeout_s)[0])
    # psutil waits until the parent has reaped the process, and init can be slow in a container. A pidfd becomes
    # readable when the process exits.
    try:
        descriptor = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return True
    try:
        if not process.is_running():
            return True  # the ID was reused
        ended = select.poll()
        ended.register(descriptor, select.POLLIN)
        return bool(ended.poll(timeout_s * 1000))
    finally:
        os.close(descriptor)


def last_line(log: Path) -> str:
    """Return the last line of a log that is not part of a stack trace; "" if there is none."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - _LOG_TAIL_BYTES))
            lines = file.read().decode(errors="replace").splitlines()
    except OSError:
        return ""
    return next((line.strip() for line in reversed(lines) if _is_message(line)), "")


def _is_message(line: str) -> bool:
    return bool(line.strip()) and not line[0].isspace() and not line.startswith("Caused by")
