"""CPU time of processes: what a measurement costs, apart from what else the machine does."""

from __future__ import annotations

from collections.abc import Iterable

import psutil


def cpu_s(pids: Iterable[int]) -> float:
    """Return the user and system seconds of processes and their descendants, since each of them started.

    Descendants that have ended count if their parent waited for them. Processes that have ended count as 0. The kernel
    counts in steps of 10 ms.
    """
    return sum(_own_s(process) for pid in pids for process in _tree(pid))


def _tree(pid: int) -> list[psutil.Process]:
    try:
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def _own_s(process: psutil.Process) -> float:
    try:
        times = process.cpu_times()
    except psutil.NoSuchProcess:
        return 0.0
    return float(times.user + times.system + times.children_user + times.children_system)
