"""A fault: something that breaks a part of a rig for a while."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass

from tests.chaos.rig import Rig

Hurt = Callable[[Rig, random.Random], AbstractContextManager[None]]


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault. name: also in documents. part: what it breaks; a storm draws at most one per part.

    hurt: a context manager: entering it breaks the part; leaving it repairs the part, or raises AssertionError if
    nothing broke. dwell_s: its minimum duration.
    """

    name: str
    part: str
    hurt: Hurt
    dwell_s: float = 1.0


@contextmanager
def repeating(step: Callable[[], None], every_s: float) -> Iterator[None]:
    """Do something repeatedly on a thread; an exception of it is raised at the end."""
    over = threading.Event()
    failures: list[BaseException] = []

    def run() -> None:
        try:
            while not over.is_set():
                step()
                over.wait(every_s)
        except BaseException as error:  # noqa: BLE001 - a thread's root: raised below
            failures.append(error)

    thread = threading.Thread(target=run, name="fault", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(30)
    if failures:
        raise failures[0]
