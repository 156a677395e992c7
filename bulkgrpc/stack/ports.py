"""TCP ports on the loopback interface: find free ones, and the program that uses one."""

from __future__ import annotations

import secrets
import socket

import psutil

from bulkgrpc.stack.model import LOOPBACK

# Below Linux's range for outgoing connections (from 32768): no such connection takes a port between two runs.
_FIRST, _COUNT = 20_000, 12_000
_TRIES = 200


def is_free(port: int) -> bool:
    """Return whether a server can listen on this port now."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
    return True


def choose_free() -> int:
    """Return a random free port: two stacks that start at the same time rarely choose the same."""
    for _ in range(_TRIES):
        port = _FIRST + secrets.randbelow(_COUNT)
        if is_free(port):
            return port
    raise OSError(f"no free port found between {_FIRST} and {_FIRST + _COUNT}")


def holder(port: int) -> str:
    """Return the program that listens on this port, as far as the caller has permission to see it."""
    try:
        pid = next(
            entry.pid
            for entry in psutil.net_connections("tcp")
            if entry.status == psutil.CONN_LISTEN and entry.laddr and entry.laddr.port == port and entry.pid
        )
        return f"{psutil.Process(pid).name()} (pid {pid})"
    except (StopIteration, psutil.Error):
        return "another program"
