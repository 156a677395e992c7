"""The poll loop when PostgreSQL restarts or comes back older, with its ports in memory."""

from __future__ import annotations

import threading
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from bulkgrpc.consume.heartbeat import Heartbeat
from bulkgrpc.positions import Outcome
from bulkgrpc.settings import WorkerSettings, load
from tests.support.worker_ports import Fakes, seal
from workers.partitions import CHECK_AGAIN_S
from workers.poller import Poller

LATER = datetime(2026, 11, 30, 12, tzinfo=UTC)


@pytest.fixture
def fakes() -> Fakes:
    return Fakes()


@pytest.fixture
def poller(fakes: Fakes) -> Poller:
    """A worker that owns partition 0, at offset 2."""
    poller = Poller(load(WorkerSettings), fakes.ports(), fakes.queue, fakes.express, threading.Event())
    poller.join()
    fakes.log.assign([0])
    fakes.log.pending += [seal(0, 0), seal(0, 1)]
    poller.step()
    fakes.queue.apply()
    poller.step()
    return poller


def come_back(fakes: Fakes, next_offset: int) -> None:
    """Another server has the ledger, at another offset, under the same epochs."""
    fakes.ledger.server_start = LATER
    fakes.ledger.positions = {
        partition: replace(owned, next_offset=next_offset, server_start=LATER)
        for partition, owned in fakes.ledger.positions.items()
    }


def test_a_worker_without_messages_reads_again_from_an_older_ledger(poller: Poller, fakes: Fakes) -> None:
    epoch = fakes.ledger.positions[0].owner_epoch
    come_back(fakes, 1)
    fakes.ledger_watch.restarts = True
    poller.step()
    assert fakes.log.seeks[-1] == {0: 1}
    assert fakes.log.paused == set()
    # Acquired again: an older ledger may give the epoch to another worker.
    assert fakes.ledger.positions[0].owner_epoch == epoch + 1
    assert [one.next_offset for one in fakes.ledger_watch.compared[-1].values()] == [1]
    assert fakes.express.forgotten
    assert fakes.registry.forgotten
    assert fakes.ledger_watch.watched == {0: fakes.ledger.positions[0]}


def test_a_chunk_that_an_older_ledger_does_not_accept_is_read_again(poller: Poller, fakes: Fakes) -> None:
    fakes.log.pending += [seal(0, 2)]
    poller.step()
    come_back(fakes, 0)
    fakes.queue.deny(Outcome.RESTARTED)
    poller.step()
    assert fakes.log.seeks[-1] == {0: 0}
    fakes.log.pending += [seal(0, 0)]
    poller.step()
    assert fakes.queue.apply().spans[0].server_start == LATER


def test_nothing_is_committed_before_an_older_ledger_is_compared(poller: Poller, fakes: Fakes) -> None:
    come_back(fakes, 1)
    fakes.ledger_watch.restarts, fakes.ledger_watch.available = True, False
    poller.step()
    assert poller.partitions.owned.owned == {}
    fakes.ledger_watch.beat = Heartbeat(7, LATER)
    poller.step()
    assert fakes.log.committed == {0: 2}
    fakes.ledger_watch.available = True
    fakes.now_s += CHECK_AGAIN_S + 1
    poller.step()
    assert fakes.log.seeks[-1] == {0: 1}


def test_a_heartbeat_is_committed_at_once_with_what_is_applied_and_with_what_follows(
    poller: Poller, fakes: Fakes
) -> None:
    assert fakes.log.notes == {0: ""}
    fakes.ledger_watch.beat = Heartbeat(7, LATER)
    poller.step()
    assert (fakes.log.committed, fakes.log.notes) == ({0: 2}, {0: Heartbeat(7, LATER).to_note()})
    fakes.log.pending += [seal(0, 2)]
    poller.step()
    fakes.queue.apply()
    poller.step()
    assert (fakes.log.committed, fakes.log.notes) == ({0: 3}, {0: Heartbeat(7, LATER).to_note()})
