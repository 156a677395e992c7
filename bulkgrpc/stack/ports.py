"""TCP ports on the loopback interface: choosing free ones, naming who holds a taken one."""

from __future__ import annotations

import secrets
import socket

import psutil

from bulkgrpc.stack.model import LOOPBACK

# Below Linux's range for outgoing connections (32768 up): a port chosen here cannot be lost to one between two runs.
_FIRST, _COUNT = 20_000, 12_000
_TRIES = 200


def is_free(port: int) -> bool:
    """Tell whether a server could listen on this port now."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
    return True


def choose_free() -> int:
    """Return a free port, at random: two stacks that start at once hardly ever choose the same."""
    for _ in range(_TRIES):
        port = _FIRST + secrets.randbelow(_COUNT)
        if is_free(port):
            return port
    raise OSError(f"no free port found between {_FIRST} and {_FIRST + _COUNT}")


def holder(port: int) -> str:
    """Name the program that listens on this port, as far as the caller may see."""
    try:
        pid = next(
            entry.pid
            for entry in psutil.net_connections("tcp")
            if entry.status == psutil.CONN_LISTEN and entry.laddr and entry.laddr.port == port and entry.pid
        )
        return f"{psutil.Process(pid).name()} (pid {pid})"
    except (StopIteration, psutil.Error):
        return "another program"
