"""What the express path remembers for the main path, when the database that it applied to is gone."""

from __future__ import annotations

import threading
from collections.abc import Callable, Container, Mapping, Sequence
from datetime import UTC, datetime

import pytest

from bulkgrpc.consume.assembly import Fetched
from bulkgrpc.consume.decode import PreparedChunk
from bulkgrpc.consume.express_ports import ExpressPorts
from bulkgrpc.consume.ports import Applied
from bulkgrpc.positions import Ownership
from tests.support.waiting import wait_for
from tests.support.worker_ports import FakeLedger, FakeRegistry, seal
from workers.express import Express

BEFORE, LATER = datetime(2026, 11, 30, 11, tzinfo=UTC), datetime(2026, 11, 30, 12, tzinfo=UTC)
WITHIN_S = 20.0
MESSAGE = seal(0, 5)


class Log:
    """An `ExpressLog` with one message. ended: set once the run is over."""

    caught_up = False

    def __init__(self) -> None:
        self.pending = [MESSAGE]
        self.ended = threading.Event()

    def fetch(self, messages_max: int, timeout_s: float, left: Container[str]) -> Sequence[Fetched]:
        found, self.pending = self.pending, []
        return found

    def close(self) -> None:
        self.ended.set()


class Writer:
    """An `ExpressWriter`. during: called while a chunk is written."""

    def __init__(self, during: Callable[[], None]) -> None:
        self.during = during
        self.written = 0

    def write(self, prepared: PreparedChunk) -> Applied:
        self.during()
        self.written += len(prepared.chunk.items)
        return Applied({})

    def close(self) -> None:
        pass


def applied_ahead(owned: Ownership, *, forgets: bool) -> tuple[int, bool]:
    """Have the message applied ahead; return how many were written, and whether the main path would pass over it.

    forgets: the poll loop forgets what was applied while the message is written.
    """
    stopping, log, ledger = threading.Event(), Log(), FakeLedger()
    ledger.positions[0] = Ownership(0, 5, 1, BEFORE)
    writer = Writer(lambda: express.forget() if forgets else None)

    def open_log(offsets: Mapping[int, int]) -> Log:
        log.pending = [MESSAGE] if 0 in offsets else []
        return log

    express = Express(ExpressPorts(open_log, ledger, writer, FakeRegistry()), stopping)
    express.start()
    express.begin({0: owned}, frozenset({"hot"}))
    found = wait_for(lambda: express.was_applied(MESSAGE), 1 if forgets or owned.server_start == LATER else WITHIN_S)
    express.end()
    assert log.ended.wait(WITHIN_S)
    found = found or express.was_applied(MESSAGE)
    stopping.set()
    return writer.written, found


@pytest.mark.parametrize("forgets", [False, True])
def test_what_was_applied_is_passed_over_unless_it_was_to_be_forgotten_meanwhile(forgets: bool) -> None:
    assert applied_ahead(Ownership(0, 5, 1, BEFORE), forgets=forgets) == (1, not forgets)


def test_nothing_is_applied_ahead_of_a_position_of_another_server() -> None:
    assert applied_ahead(Ownership(0, 5, 1, LATER), forgets=False) == (0, False)
