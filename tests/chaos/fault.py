"""A fault: something that happens to a rig for a while, and is over afterwards."""

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
    """One fault. name: also in documents. part: what it hurts; a storm draws one a part at most.

    hurt: a context manager: entered, it strikes; left, it is healed, or it raises AssertionError as it never struck.
    dwell_s: how long it lasts at least.
    """

    name: str
    part: str
    hurt: Hurt
    dwell_s: float = 1.0


@contextmanager
def repeating(step: Callable[[], None], every_s: float) -> Iterator[None]:
    """Do something again and again on a thread; an exception of it comes out at the end."""
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
