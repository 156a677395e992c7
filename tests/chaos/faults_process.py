"""Faults of our own processes: killed, terminated, stopped, at crash sites, started and stopped repeatedly."""

from __future__ import annotations

import random
import re
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from bulkgrpc import faults
from bulkgrpc.limits import LEASE_TTL_S
from tests.chaos.fault import Fault, Hurt, repeating
from tests.chaos.proxy import Mood, Way
from tests.chaos.rig import Rig
from tests.chaos.stand import SESSION_MS
from tests.support.processes import Process
from tests.support.waiting import wait_for

STRIKES_WITHIN_S = 30.0
CHURN_S = 2.0
FROZEN_S = SESSION_MS / 1000 + 2
"""Over the group's session time-out."""
PAUSED_S = LEASE_TTL_S + 2.0
ARRIVES_S = 3.0
"""In which what a server has sent to Kafka arrives there once it may."""
_ASSIGNED = r'"partitions": \[\d.*"partitions_assigned"'


def _signal(which: str, number: signal.Signals) -> Hurt:
    @contextmanager
    def hurt(rig: Rig, _: random.Random) -> Iterator[None]:
        victims = [rig.server] if which == "server" else list(rig.workers)
        pids = {victim.pid for victim in victims}
        for victim in victims:
            rig.signal(victim, number)
        yield
        back = wait_for(lambda: not pids & {v.pid for v in victims if v.ended is None}, STRIKES_WITHIN_S)
        assert back, f"{which} did not end by {number.name}"

    return hurt


def _at_site(site: faults.Site, times: int = 2) -> Hurt:
    """Kill workers at a site, the first time that each reaches it, or one of the first `times`."""

    @contextmanager
    def hurt(rig: Rig, chance: random.Random) -> Iterator[None]:
        before = _killed(rig)
        with _armed(rig, f"{site}:kill:{chance.randint(1, times)}", rig.workers):
            yield
            died = wait_for(lambda: _killed(rig) > before, STRIKES_WITHIN_S)
        assert died, f"no worker came to {site}"

    return hurt


def _killed(rig: Rig) -> int:
    return sum(code == -signal.SIGKILL for _, code in rig.ended)


@contextmanager
def _armed(rig: Rig, fault: str, workers: Sequence[Process]) -> Iterator[None]:
    """Restart workers with a fault armed. Processes that start later have no fault."""
    rig.worker_environment[faults.VARIABLE] = fault
    try:
        restart(rig, workers)
    finally:
        del rig.worker_environment[faults.VARIABLE]
    yield


def restart(rig: Rig, workers: Sequence[Process]) -> None:
    """Restart workers. They leave their group first, so that they need not wait for their old sessions to expire."""
    with rig.untended(*workers):
        for worker in workers:
            rig.signal(worker, signal.SIGTERM)
        for worker in workers:
            worker.wait()
    for worker in workers:
        rig.revive(worker)


def _freeze_at(site: faults.Site, refused: str, frozen_s: float) -> Hurt:
    """A worker that stops itself at a site, past its session, and continues as a zombie: its chunk is fenced."""

    @contextmanager
    def hurt(rig: Rig, _: random.Random) -> Iterator[None]:
        first = rig.workers[0]
        assigned = _count(first, _ASSIGNED)
        with _armed(rig, f"{site}:stop:1", [first]):
            back = wait_for(lambda: _count(first, _ASSIGNED) > assigned, STRIKES_WITHIN_S)
            assert back, "the worker was given no partition"
            seen = _count(first, refused)
            yield
            stopped = wait_for(lambda: _is_stopped(first), STRIKES_WITHIN_S)
            assert stopped, f"no worker came to {site}"
            wait_for(lambda: False, frozen_s)
            rig.signal(first, signal.SIGCONT)
        fenced = wait_for(lambda: _count(first, refused) > seen, STRIKES_WITHIN_S)
        assert fenced, "the zombie was not fenced"

    return hurt


def _count(process: Process, text: str) -> int:
    return len(re.findall(text, process.log.read_text()))


def _is_stopped(process: Process) -> bool:
    with open(f"/proc/{process.pid}/stat") as file:
        return file.read().rsplit(")", 1)[1].split()[0] == "T"


@contextmanager
def _stopped(rig: Rig, chance: random.Random) -> Iterator[None]:
    victim = chance.choice(rig.workers)
    rig.signal(victim, signal.SIGSTOP)
    try:
        yield
    finally:
        rig.signal(victim, signal.SIGCONT)


@contextmanager
def _superseded(rig: Rig, _: random.Random) -> Iterator[None]:
    """The server stops past its leases with batches on their way; its jobs are resumed and sealed on another one."""
    kafka = rig.proxies["server-kafka"]
    with rig.another_server() as address:
        kafka.set(Mood(stalled=frozenset({Way.TO})))
        wait_for(lambda: False, 0.5)
        rig.signal(rig.server, signal.SIGSTOP)
        try:
            with rig.clients_of(address):
                yield
                ended = wait_for(lambda: _sealed(rig) and not rig.behind(), STRIKES_WITHIN_S)
                rig.signal(rig.server, signal.SIGCONT)
                kafka.set(Mood())
                wait_for(lambda: False, ARRIVES_S)
        finally:
            rig.signal(rig.server, signal.SIGCONT)
            kafka.set(Mood())
    assert ended, "the jobs were not sealed on the other server"


def _sealed(rig: Rig) -> bool:
    """Whether the clients have sealed their jobs, but for the one that breaks off for good."""
    kinds = [event.kind for event in rig.history.events()]
    return kinds.count("sealed") >= kinds.count("submit") - 1


@contextmanager
def _past_max_poll(rig: Rig, _: random.Random) -> Iterator[None]:
    """One worker sleeps for longer than max.poll.interval."""
    rig.mutant, usual = "short_poll", rig.mutant
    try:
        restart(rig, rig.workers)
        victim = rig.workers[0]
        seen = len(rig.ended)
        rig.signal(victim, signal.SIGSTOP)
        yield
        rig.signal(victim, signal.SIGCONT)
        wait_for(lambda: len(rig.ended) > seen, 5)
    finally:
        rig.mutant = usual


@contextmanager
def _churn(rig: Rig, _: random.Random) -> Iterator[None]:
    joined: list[Process] = []

    def step() -> None:
        if joined:
            rig.remove_worker(joined.pop())
        else:
            joined.append(rig.add_worker())

    try:
        with repeating(step, CHURN_S):
            yield
    finally:
        while joined:
            rig.remove_worker(joined.pop())


SITES: tuple[faults.Site, ...] = ("after_poll", "mid_copy", "after_rows", "before_commit", "after_commit_before_kafka")
TASK_SITES: tuple[faults.Site, ...] = ("task_claimed", "task_before_commit", "task_after_commit")
"""Reached once in a trial: one of its jobs is atomic."""
PROCESS_FAULTS = (
    Fault("server: SIGKILL", "server", _signal("server", signal.SIGKILL)),
    Fault("server: SIGTERM", "server", _signal("server", signal.SIGTERM)),
    Fault("server: SIGSTOP past its leases, jobs sealed elsewhere", "server", _superseded, PAUSED_S),
    Fault("workers: SIGKILL", "worker", _signal("workers", signal.SIGKILL)),
    Fault("workers: SIGTERM", "worker", _signal("workers", signal.SIGTERM)),
    *(Fault(f"worker: killed {site}", "worker", _at_site(site)) for site in SITES),
    *(Fault(f"worker: killed {site}", "worker", _at_site(site, 1)) for site in TASK_SITES),
    Fault("worker: SIGSTOP past its session", "worker", _stopped, FROZEN_S),
    Fault("worker: a zombie with a pending chunk", "worker", _freeze_at("after_poll", "chunk_not_applied", FROZEN_S)),
    Fault(
        "worker: a zombie before its COMMIT",
        "worker",
        _freeze_at("before_commit", "chunk_not_applied|postgres_unavailable", 12.0),
    ),
    Fault("worker: SIGSTOP past max.poll.interval", "worker", _past_max_poll, 9.0),
    Fault("workers: one more or less every 2 s", "worker", _churn, 8.0),
)
