"""Crash sites: named places in the path of a chunk where a test can kill or stop this process. Inert unless armed.

BULKGRPC_FAULT arms sites: `site:action`, or `site:action:n` for the n-th time that the site is reached, counted from 1;
several are separated by commas. Actions: `kill` (SIGKILL), `stop` (SIGSTOP), `exit` (exit status 70).
"""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass
from typing import Literal

Site = Literal[
    "after_poll",
    "mid_copy",
    "after_rows",
    "before_commit",
    "after_commit_before_kafka",
    "task_claimed",
    "task_slice",
    "task_before_commit",
    "task_after_commit",
]
VARIABLE = "BULKGRPC_FAULT"


@dataclass(slots=True)
class _Armed:
    action: str
    left: int


def _parse(text: str) -> dict[str, _Armed]:
    armed = {}
    for part in filter(None, text.split(",")):
        site, action, *count = part.split(":")
        armed[site] = _Armed(action, int(count[0]) if count else 1)
    return armed


_armed = _parse(os.environ.get(VARIABLE, ""))


def reach(site: Site) -> None:
    """Mark a site. If an action is armed for it, and it is reached for the armed time, the action happens."""
    if not _armed or site not in _armed:
        return
    fault = _armed[site]
    fault.left -= 1
    if fault.left == 0:
        if fault.action == "exit":
            os._exit(70)
        # To this thread, not to the process: if another thread received it, this one would run on for a moment.
        signal.raise_signal(signal.SIGSTOP if fault.action == "stop" else signal.SIGKILL)
