"""Named places on a record's way at which a test can end, stop or hold this process. Inert unless armed.

BULKGRPC_FAULT is `site:action`, or `site:action:n` for the n-th time the site is reached (from 1); several with commas
between. Actions: `kill` (SIGKILL), `stop` (SIGSTOP), `exit` (exit code 70).
"""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass
from typing import Literal

Site = Literal["after_poll", "mid_copy", "after_rows", "before_commit", "after_commit_before_kafka"]
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
    """Say that the process is at a site; what is armed there happens."""
    if not _armed or site not in _armed:
        return
    fault = _armed[site]
    fault.left -= 1
    if fault.left == 0:
        if fault.action == "exit":
            os._exit(70)
        # To this thread, not to the process: another thread might take it, and this one go on for a moment.
        signal.raise_signal(signal.SIGSTOP if fault.action == "stop" else signal.SIGKILL)
