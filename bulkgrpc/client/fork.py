"""A client does not survive a fork: its threads and those of gRPC are not in the child, so that every call would wait.

gRPC does not start again in such a child either, so a client that is opened there is refused too.
"""

from __future__ import annotations

import os

_opened = False
_forked = False


def opened() -> None:
    """Note that this process has a client. Raises RuntimeError if it is a fork of one that had a client before."""
    global _opened  # noqa: PLW0603 — a property of the process
    check()
    _opened = True


def check() -> None:
    """Raise RuntimeError if this process was forked from one that had opened a client."""
    if _forked:
        raise RuntimeError(
            "this process was forked after a client was opened, and gRPC does not work in such a child: start it with "
            "multiprocessing's method `spawn` or `forkserver`, or open clients only after the fork"
        )


def _after_in_child() -> None:
    global _forked  # noqa: PLW0603 — a property of the process
    _forked = _opened


os.register_at_fork(after_in_child=_after_in_child)
